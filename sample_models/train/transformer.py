"""Trains the transformer: ``python -m sample_models.train.transformer``."""

from sample_models.train.loop import Recipe, train
from sample_models.transformer import WEIGHTS, Transformer

RECIPE = Recipe(epochs=200, learning_rate=5e-4, weight_decay=0.1)

if __name__ == "__main__":
    train(Transformer, RECIPE, WEIGHTS)
