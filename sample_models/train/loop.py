"""The training loop that the sample models share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

_DATA = Path(__file__).parent.parent / "data"
TRAINING_DATA = _DATA / "digits_train.npz"
EVALUATION_DATA = _DATA / "digits.npz"


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Attributes:
        epochs: Passes over the training images.
        learning_rate: Peak learning rate of AdamW, reached after a tenth of the steps, then a cosine to zero.
        weight_decay: Weight decay of convolution and linear weights; vectors (norms, biases) have none.
        batch: Images in a step.
        label_smoothing: Share of the target spread over all classes.
        seed: Seed of the initial weights, the order of the images and the augmentation.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    batch: int = 50
    label_smoothing: float = 0.1
    seed: int = 0


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Reads images, float32 [N, 1, 8, 8] in 0..1, and labels, int64 [N], from an ``.npz`` of digits."""
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["input"]), torch.from_numpy(arrays["labels"])


def augment(images: Tensor) -> Tensor:
    """Turns, scales and shifts each image a little: float32 [N, 1, 8, 8] to the same shape."""
    count = len(images)
    angle = math.radians(12.0) * (2.0 * torch.rand(count) - 1.0)
    scale = 1.0 + 0.12 * (2.0 * torch.rand(count) - 1.0)
    shift = 0.2 * (2.0 * torch.rand(count, 2) - 1.0)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    grid = functional.affine_grid(torch.cat([rows, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the share of images, float32 [N, 1, 8, 8], whose highest logit is at the label, int64 [N]."""
    model.eval()
    with torch.inference_mode():
        guesses = torch.cat([model(part).argmax(1) for part in torch.split(images, 128)])
    return float((guesses == labels).float().mean())


def fit(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> None:
    """Trains the model in place on images, float32 [N, 1, 8, 8], and labels, int64 [N]."""
    optimizer = _optimizer(model, recipe)
    steps = recipe.epochs * math.ceil(len(images) / recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    model.train()
    for _ in range(recipe.epochs):
        for chosen in torch.split(torch.randperm(len(images)), recipe.batch):
            logits = model(augment(images[chosen]))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def train(create: Callable[[], nn.Module], recipe: Recipe, weights: Path) -> None:
    """Creates a model, trains it on the training images, prints its accuracy and writes its weights."""
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    model = create()
    fit(model, *load(TRAINING_DATA), recipe)
    images, labels = load(EVALUATION_DATA)
    print(f"{weights.stem}: accuracy {accuracy(model, images, labels):.4f} on {len(labels)} evaluation images")
    save_file(model.state_dict(), weights)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    groups = [{"params": others, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _rate(progress: float) -> float:
    """Returns the share of the peak learning rate at ``progress`` (0..1) through the training."""
    if progress < 0.1:
        return progress / 0.1
    return 0.5 * (1.0 + math.cos(math.pi * (progress - 0.1) / 0.9))
