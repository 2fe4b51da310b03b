"""Three small trained models with real data, described without importing any framework."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_DIGITS = Path(__file__).parent / "data" / "digits.npz"


@dataclass(frozen=True)
class Sample:
    """One sample model.

    Attributes:
        name: The kebab-case name, also its key in ``SAMPLES``.
        factory: ``module:function`` of a factory without arguments that returns the trained ``torch.nn.Module``;
            the same module holds ``example_inputs()``.
        data: An ``.npz`` of images the model was not trained on: ``input`` float32 [1147, 1, 8, 8] in 0..1 and
            ``labels`` int64 [1147] in 0..9. See ``data/ORIGIN.md``.
        summary: One line on what the model is.
    """

    name: str
    factory: str
    data: Path
    summary: str


_ALL = (
    Sample(
        name="residual-cnn",
        factory="sample_models.residual_cnn:build",
        data=_DIGITS,
        summary="Residual CNN, 96 channels at 16x16, with BatchNorm, Dropout and residual adds",
    ),
    Sample(
        name="depthwise-cnn",
        factory="sample_models.depthwise_cnn:build",
        data=_DIGITS,
        summary="Depthwise-separable CNN with BatchNorm and ReLU6, hard for per-tensor int8",
    ),
    Sample(
        name="transformer",
        factory="sample_models.transformer:build",
        data=_DIGITS,
        summary="Pre-LayerNorm encoder of 4 layers, 128 wide, over 16 image patches",
    ),
)

SAMPLES: dict[str, Sample] = {sample.name: sample for sample in _ALL}
"""The sample models by name."""
