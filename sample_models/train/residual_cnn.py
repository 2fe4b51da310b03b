"""Trains the residual CNN: ``python -m sample_models.train.residual_cnn``."""

from sample_models.residual_cnn import WEIGHTS, ResidualCnn
from sample_models.train.loop import Recipe, train

RECIPE = Recipe(epochs=24, learning_rate=2e-3, weight_decay=0.02)

if __name__ == "__main__":
    train(ResidualCnn, RECIPE, WEIGHTS)
