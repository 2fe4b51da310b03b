"""The nouns and names that the receiver's check speaks of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL, WEIGHTS = "model.onnx", "model.onnx.data"
MANIFEST, EVIDENCE, GOLDEN = "manifest.json", "evidence.json", "golden"
SUMS = "SHA256SUMS"
"""Digests of every other file but the signature, in the form that ``sha256sum -c`` reads."""
SIGNATURE = "model.sig"
"""Signature over every other file, a Sigstore bundle as OpenSSF model-signing writes it."""
SCHEMA_FAMILY = "lathe.manifest/"
SCHEMA = SCHEMA_FAMILY + "1"

DOES_NOT_HOLD, USAGE, BAD_INPUT, CANNOT, FAULT = 1, 2, 3, 4, 5
MOST_TEXT_BYTES = 2**26
RUN_SECONDS = 600.0
Feeds = Mapping[str, Any]
Run = Callable[[Path, Sequence[Feeds], str, int], list[dict[str, Any]]]
"""path of a model, feeds, provider, threads -> one dict of outputs per feed."""
Timer = Callable[[Path, Feeds, str, int], float]
"""path of a model, one feed, provider, threads -> median milliseconds of one run on this machine."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. A ``warning`` is worth reading but does not make the artifact wrong."""

    check: str
    ok: bool
    detail: str
    warning: bool = False


@dataclass(frozen=True)
class VerifyReport:
    """What came out. ``ok`` is false as soon as one finding is."""

    ok: bool
    findings: tuple[Finding, ...]
    folder: str = ""


@dataclass(frozen=True)
class Trust:
    """What is asked of the signature: the public key, or the roots of certificates, that it must be made with."""

    required: bool = False
    key: Path | None = None
    roots: tuple[Path, ...] = ()


@dataclass
class Refusal(Exception):
    """Nothing can be said about the artifact; ``exit`` is the process exit code."""

    message: str
    exit: int = BAD_INPUT
    where: str = ""
    hint: str = ""
    code: str = "bad-input"

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}. {self.hint}" if self.hint else text
