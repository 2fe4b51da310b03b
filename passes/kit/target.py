"""What a deployment site can execute. A target is data: a TOML file that is read elsewhere and arrives here parsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Target:
    """A deployment site.

    ``activation`` and ``weight`` name the integer types that run fast there, ``weight_range`` the largest absolute
    quantized weight that cannot saturate an intermediate sum, ``static_ops`` the operators that have integer kernels
    worth using, ``dynamic_ops`` those for which dynamic quantization pays. ``requires`` lists CPU features, one of
    which the host must have for the speed to hold; ``max_opset`` and ``max_ir`` are ceilings of the runtime.
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

    @classmethod
    def from_toml(cls, tree: Mapping[str, Any]) -> Target:
        """Build from a parsed TOML tree. Raises ``ValueError`` naming the missing or unknown keys."""
        names = {f.name for f in fields(cls)}
        wrong = sorted(names ^ set(tree))
        if wrong:
            raise ValueError(f"missing or unknown keys: {', '.join(wrong)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
        return cls(**values)
