"""What a deployment site can execute. A target is data: a TOML file that is read elsewhere and arrives here parsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Target:
    """A deployment site.

    Attributes:
        name: What it is called on the command line.
        summary: One line for people.
        provider: Full name of onnxruntime's execution provider.
        requires: CPU features as Linux names them, one of which the host must have for speed and answers to hold
            (none: any host with the provider).
        max_opset: Newest opset of the default domain that the runtime loads.
        max_ir: Newest IR version that the runtime loads.
        export_opset: Opset that exports are made with.
        activation: Integer type of activations that is fast there.
        weight: Integer type of weights that is fast there.
        per_channel: Whether kernels take one weight scale per output channel.
        weight_range: Largest absolute quantized weight that cannot saturate an intermediate sum.
        static_ops: Operators that have integer kernels worth using when ranges are known.
        dynamic_ops: Operators for which dynamic quantization pays.
        channel_multiple: Channel counts that are multiples of this fill the vector units.
        fast: Pairs ``activation*weight`` of integer types that have kernels faster than float.
        right: Pairs that compute what the model says; what is fast but not right saturates beyond ``weight_range``.
        symmetric_activations: Whether activations must have their zero in the middle of the integers.
        float_bias: Whether biases must stay float instead of becoming int32.
        float_types: Floating types with kernels of their own, fastest first; others are cast.
        float8: Types of 8-bit floats that compute there (empty: they would only be simulated).
        sparse: Forms of sparse weights that have kernels which skip the zeros, as in ``2:4``.
        weight_bits: Bits per weight for which weight-only MatMul has kernels.
        rank: Of several targets that fit a host, the one with the highest rank is taken.
        notes: What else to know, with where it comes from.
    """

    name: str
    summary: str
    provider: str
    requires: tuple[str, ...]
    max_opset: int
    max_ir: int
    export_opset: int
    activation: str
    weight: str
    per_channel: bool
    weight_range: int
    static_ops: tuple[str, ...]
    dynamic_ops: tuple[str, ...]
    channel_multiple: int
    fast: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    symmetric_activations: bool = False
    float_bias: bool = False
    float_types: tuple[str, ...] = ("float32",)
    float8: tuple[str, ...] = ()
    weight_bits: tuple[int, ...] = ()
    sparse: tuple[str, ...] = ()
    rank: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def from_toml(cls, tree: Mapping[str, Any]) -> Target:
        """Build from a parsed TOML tree. Raises ``ValueError`` naming the missing or unknown keys."""
        needed = {f.name for f in fields(cls) if f.default is MISSING}
        wrong = sorted((needed - set(tree)) | (set(tree) - {f.name for f in fields(cls)}))
        if wrong:
            raise ValueError(f"missing or unknown keys: {', '.join(wrong)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
        return cls(**values)
