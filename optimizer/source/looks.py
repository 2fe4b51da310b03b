"""What a file looks like, for the line that says why it is not ONNX, and what the user may have meant."""

from __future__ import annotations

import difflib
import zipfile
from pathlib import Path

Reason = tuple[str, str]
_TO_FACTORY = "Name a function that returns the module instead: package.module:factory"

_WITH_WEIGHTS = f"{_TO_FACTORY}, with these as --weights"
_TRUST = "If you trust its maker, add --trust-code; or name a function that returns the module: package.module:factory"

_UNSAFE, _WEIGHTS = "unsafe-model", "not-a-model"

REFUSED: dict[str, tuple[str, str, str]] = {
    ".pt2": (_UNSAFE, "loading a .pt2 file can run any code inside it", _TRUST),
    ".pt": (_UNSAFE, "loading a PyTorch file can run any code inside it", _TRUST),
    ".pth": (_UNSAFE, "loading a PyTorch file can run any code inside it", _TRUST),
    ".torchscript": (_UNSAFE, "loading TorchScript can run any code inside it", _TRUST),
    ".ckpt": (_UNSAFE, "a checkpoint is a pickle, and loading it can run any code inside it", _TRUST),
    ".pkl": (_UNSAFE, "loading a pickle can run any code inside it", _TRUST),
    ".pickle": (_UNSAFE, "loading a pickle can run any code inside it", _TRUST),
    ".joblib": (_UNSAFE, "loading a pickle can run any code inside it", "Export it to ONNX (skl2onnx)"),
    ".bin": (_WEIGHTS, "it holds weights without the model's code", _WITH_WEIGHTS),
    ".safetensors": (_WEIGHTS, "it holds weights without the model's code", _WITH_WEIGHTS),
}
"""Files that are not opened, by suffix: code of the fault, why, and what to do instead."""

TRUSTED = frozenset(suffix for suffix, (_, _, hint) in REFUSED.items() if hint == _TRUST)
"""Those that ``--trust-code`` opens, in a worker for user code."""

FOREIGN: dict[str, tuple[str, str]] = {
    ".tflite": ("a TensorFlow Lite model", "Convert it to ONNX first (tf2onnx --tflite)"),
    ".pb": ("a TensorFlow graph or an ONNX tensor", "Convert it to ONNX first (tf2onnx)"),
    ".h5": ("a Keras model", "Convert it to ONNX first (tf2onnx)"),
    ".keras": ("a Keras model", "Convert it to ONNX first (tf2onnx)"),
    ".ort": ("onnxruntime's own format, already optimized", "Give the ONNX file that it was made from"),
    ".gguf": ("a llama.cpp model", "Give its PyTorch or ONNX form"),
    ".mlmodel": ("a Core ML model", "Give its PyTorch or ONNX form"),
    ".engine": ("a TensorRT engine", "Give the ONNX file that it was built from"),
    ".plan": ("a TensorRT engine", "Give the ONNX file that it was built from"),
    ".xml": ("an OpenVINO model", "Give the ONNX file that it was made from"),
}
"""Other tools' formats, by suffix."""


def not_onnx(head: bytes, path: Path) -> Reason | None:
    """Why a file that starts with ``head`` is not ONNX and what to do, or ``None`` when it may be."""
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself", "Fetch the file with: git lfs pull"
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    for magic, what, hint in _MAGIC:
        if head.startswith(magic):
            return what, hint
    if head[4:8] == b"TFL3":
        return "it is a TensorFlow Lite model", "Convert it to ONNX first (tf2onnx --tflite)"
    if head[4:8] == b"ORTM":
        return "it is in onnxruntime's own format", "Give the ONNX file that it was made from"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "it is a Python pickle, which can run any code when loaded", _TO_FACTORY
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 2**27:
        return "it is a safetensors file: weights without the model's code", _TO_FACTORY
    return _text(head)


_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file (Keras?)", "Convert it to ONNX first (tf2onnx)"),
    (b"\x1f\x8b", "it is compressed with gzip", "Unpack it first: gunzip"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd", "Unpack it first: unzstd"),
    (b"BZh", "it is compressed with bzip2", "Unpack it first: bunzip2"),
    (b"\xfd7zXZ\0", "it is compressed with xz", "Unpack it first: unxz"),
    (b"\x93NUMPY", "it is a numpy array", "Arrays are data: give them with --data"),
    (b"GGUF", "it is a llama.cpp model", "Give its PyTorch or ONNX form"),
    (b"\x7fELF", "it is a program", ""),
)


def _zip(path: Path) -> Reason:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        names = []
    if any(name.endswith("data.pkl") for name in names):
        return "it is a PyTorch file (a zip with a pickle), which can run any code when loaded", _TO_FACTORY
    if any(name.endswith(".npy") for name in names):
        return "it is a numpy archive", "Arrays are data: give them with --data"
    inside = next((name for name in names if name.endswith(".onnx")), None)
    return "it is a zip archive", f"Unpack it first; it holds {inside}" if inside else "Unpack it first"


def _text(head: bytes) -> Reason | None:
    start = head.lstrip()[:9].lower()
    # Protobuf's first byte for a model is 0x08; printable text that only looks like a message is caught here.
    if start.startswith((b"{", b"[")) and head.isascii():
        return "it is JSON", ""
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page or XML", "The download may have failed: fetch the file again"
    if head.isascii() and all(32 <= b < 127 or b in b"\t\r\n" for b in head):
        return "it is a text file", ""
    return None


def closest_file(path: Path) -> str:
    """A hint that names the ONNX files beside a path that does not exist, the nearest name first."""
    folder = path.parent
    if not folder.is_dir():
        return f"There is no folder '{folder}' either"
    names = sorted(p.name for p in folder.glob("*.onnx"))
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"Did you mean '{folder / close[0]}'?"
    return f"ONNX files there: {', '.join(names[:6])}" if names else f"No .onnx file lies in '{folder.resolve()}'"
