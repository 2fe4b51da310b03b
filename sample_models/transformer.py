"""A small pre-LayerNorm transformer encoder for 8x8 digits cut into 2x2 patches."""

# mypy: allow-subclassing-any

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).parent / "weights" / "transformer.safetensors"


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762) with one joint projection.

    Args:
        width: Features of a token, a multiple of ``heads``.
        heads: Number of heads.
        dropout: Dropout chance of the attention weights while training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, input: Tensor) -> Tensor:
        """Maps float32 [N, tokens, width] to the same shape."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project_in(input).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        output: Tensor = self.project_out(mixed.transpose(1, 2).flatten(2))
        return output


class EncoderLayer(nn.Module):
    """Attention and a GELU perceptron, each behind a LayerNorm and inside a residual (arXiv:2002.04745).

    Args:
        width: Features of a token.
        heads: Number of attention heads.
        dropout: Dropout chance of the attention weights and of both branches while training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        """Maps float32 [N, tokens, width] to the same shape."""
        middle = input + self.dropout(self.attention(self.norm1(input)))
        hidden = functional.gelu(self.expand(self.norm2(middle)))
        output: Tensor = middle + self.dropout(self.contract(hidden))
        return output


class Transformer(nn.Module):
    """Patch embedding, learned positions, encoder layers, mean pooling and a linear head (after arXiv:2010.11929).

    Args:
        width: Features of a token.
        layers: Number of encoder layers.
        heads: Number of attention heads.
        dropout: Dropout chance while training.
        classes: Number of classes.
    """

    def __init__(
        self, width: int = 128, layers: int = 4, heads: int = 4, dropout: float = 0.1, classes: int = 10
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, input: Tensor) -> Tensor:
        """Maps images, float32 [N, 1, 8, 8] in 0..1, to logits, float32 [N, 10]."""
        tokens = self.embed(input).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.layers(tokens)).mean(dim=1))
        return logits


def build() -> nn.Module:
    """Returns the trained model in evaluation mode, float32 on the CPU."""
    model = Transformer()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """Returns the forward arguments of one call: ``input``, float32 [1, 1, 8, 8] in 0..1."""
    return (torch.linspace(0.0, 1.0, 64).reshape(1, 1, 8, 8),)
