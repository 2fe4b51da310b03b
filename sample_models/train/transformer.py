"""Trains the transformer: ``python -m sample_models.train.transformer``."""

from sample_models.train.loop import Recipe, train
from sample_models.transformer import WEIGHTS, Transformer

RECIPE = Recipe(epochs=100, learning_rate=1e-3, weight_decay=0.05)

if __name__ == "__main__":
    train(Transformer, RECIPE, WEIGHTS)
