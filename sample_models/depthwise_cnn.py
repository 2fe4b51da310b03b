"""A depthwise-separable CNN for 8x8 digits, with BatchNorm and ReLU6, hard for per-tensor int8."""

# mypy: allow-subclassing-any

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights" / "depthwise_cnn.safetensors"


class SeparableBlock(nn.Module):
    """A 3x3 depthwise and a 1x1 convolution, each with BatchNorm and ReLU6 (MobileNet, arXiv:1704.04861).

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the depthwise convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU6()

    def forward(self, input: Tensor) -> Tensor:
        """Maps float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        hidden = self.activation(self.norm1(self.depthwise(input)))
        output: Tensor = self.activation(self.norm2(self.pointwise(hidden)))
        return output


class DepthwiseCnn(nn.Module):
    """An upsampling stem, eight separable blocks from 16x16 down to 4x4, global average pooling and a linear head.

    The BatchNorm scales start unequal, from 1 down to ``1 / spread`` in random order, most of them near 1. The weights
    that follow a small channel grow to make up for it, and training keeps much of that: once BatchNorm is folded, the
    channels of one depthwise weight differ widely in size. Nagel et al. 2019 (arXiv:1906.04721, figure 2) find the
    same in trained MobileNets; one int8 scale for the whole weight tensor cannot hold it.

    Args:
        width: Channels of the first block; the last ones have twice as many.
        spread: Largest over smallest starting scale of a BatchNorm.
        classes: Number of classes.
    """

    def __init__(self, width: int = 64, spread: float = 128.0, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
        )
        self.blocks = nn.Sequential(
            SeparableBlock(width, width, 1),
            SeparableBlock(width, 2 * width, 2),
            *(SeparableBlock(2 * width, 2 * width, 1) for _ in range(3)),
            SeparableBlock(2 * width, 2 * width, 2),
            *(SeparableBlock(2 * width, 2 * width, 1) for _ in range(2)),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, classes)
        self._spread_scales(spread)

    def forward(self, input: Tensor) -> Tensor:
        """Maps images, float32 [N, 1, 8, 8] in 0..1, to logits, float32 [N, 10]."""
        pooled = self.pool(self.blocks(self.stem(input))).flatten(1)
        logits: Tensor = self.head(pooled)
        return logits

    def _spread_scales(self, spread: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                steps = torch.linspace(0.0, 1.0, module.num_features) ** 3
                scales = spread ** -steps[torch.randperm(module.num_features)]
                nn.init.zeros_(module.bias)
                with torch.no_grad():
                    module.weight.copy_(scales)


def build() -> nn.Module:
    """Returns the trained model in evaluation mode, float32 on the CPU."""
    model = DepthwiseCnn()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """Returns the forward arguments of one call: ``input``, float32 [1, 1, 8, 8] in 0..1."""
    return (torch.linspace(0.0, 1.0, 64).reshape(1, 1, 8, 8),)
