"""The vocabulary that every pass speaks: model, contract, options, recipe, context, target, reducers."""
