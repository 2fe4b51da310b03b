"""A residual CNN for 8x8 digits, computed at 16x16 with 96 channels."""

# mypy: allow-subclassing-any

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights" / "residual_cnn.safetensors"


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around an identity shortcut (He et al. 2015, arXiv:1512.03385).

    Args:
        channels: Channels of the input and of the output.
        dropout: Chance that a whole channel is dropped between the convolutions while training.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, input: Tensor) -> Tensor:
        """Maps float32 [N, channels, H, W] to the same shape."""
        hidden = self.dropout(torch.relu(self.norm1(self.conv1(input))))
        return torch.relu(self.norm2(self.conv2(hidden)) + input)


class ResidualCnn(nn.Module):
    """Upsampling stem, residual blocks, global average pooling and a linear head.

    Args:
        channels: Channels throughout the body.
        blocks: Number of residual blocks.
        dropout: Dropout chance in the blocks and before the head.
        classes: Number of classes.
    """

    def __init__(self, channels: int = 96, blocks: int = 4, dropout: float = 0.1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(1, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.body = nn.Sequential(*(ResidualBlock(channels, dropout) for _ in range(blocks)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, classes)

    def forward(self, input: Tensor) -> Tensor:
        """Maps images, float32 [N, 1, 8, 8] in 0..1, to logits, float32 [N, 10]."""
        pooled = self.pool(self.body(self.stem(input))).flatten(1)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


def build() -> nn.Module:
    """Returns the trained model in evaluation mode, float32 on the CPU."""
    model = ResidualCnn()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """Returns the forward arguments of one call: ``input``, float32 [1, 1, 8, 8] in 0..1."""
    return (torch.linspace(0.0, 1.0, 64).reshape(1, 1, 8, 8),)
