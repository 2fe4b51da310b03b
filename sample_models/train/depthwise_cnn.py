"""Trains the depthwise-separable CNN: ``python -m sample_models.train.depthwise_cnn``."""

from sample_models.depthwise_cnn import WEIGHTS, DepthwiseCnn
from sample_models.train.loop import Recipe, train

RECIPE = Recipe(epochs=40, learning_rate=4e-3, weight_decay=1e-4)

if __name__ == "__main__":
    train(DepthwiseCnn, RECIPE, WEIGHTS)
