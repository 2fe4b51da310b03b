"""Files that run code when a pickle reader opens them. The code makes one empty folder, which the tests look for."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Build = Callable[[Path], Path]


class Payload:
    """What would run: ``os.mkdir(marker)``."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


def opcodes(marker: Path) -> dict[str, bytes]:
    """One pickle for each opcode that can call something."""
    path = str(marker).encode()
    text = b"S'" + path + b"'\n"
    short = b"\x8c" + struct.pack("B", len(path)) + path
    return {
        "reduce": pickle.dumps(Payload(marker), 0),
        "reduce in protocol 2": pickle.dumps(Payload(marker), 2),
        "stack-global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + short + b"\x85R.",
        "inst": b"(" + text + b"ios\nmkdir\n.",
        "obj": b"(cos\nmkdir\n" + text + b"o.",
        "reduce behind a memo": b"\x80\x02cos\nmkdir\nq\x000h\x00" + text + b"\x85R.",
    }


def _archive(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"m/{name}", data)
    return out.getvalue()


def containers(evil: bytes) -> dict[str, tuple[str, bytes]]:
    """The pickle in each format that carries one: file name and bytes."""
    rest = {"version": b"3\n", "byteorder": b"little"}
    tensors = _archive({"data.pkl": evil, **rest})
    script = {"data.pkl": evil, "constants.pkl": evil, "code/__torch__.py": b"", **rest}
    exported = {"archive_format": b"pt2", "archive_version": b"0", "models/model.json": b"{}", "byteorder": b"little"}
    config = b'{"config": {"w": {"path_name": "weight_0", "use_pickle": true, "tensor_meta": null}}}'
    library = {"data/aotinductor/model/model.so": b"\x7fELF", "data/aotinductor/model/model.wrapper.cpp": b"x"}
    return {
        "pt": ("m.pt", tensors),
        "pth": ("m.pth", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + evil),
        "ckpt": ("m.ckpt", tensors),
        "bin": ("pytorch_model.bin", tensors),
        "torchscript": ("m.torchscript", _archive(script)),
        "torchscript as pt": ("m.pt", _archive(script)),
        "pt2 with pickled sample inputs": ("m.pt2", _archive({**exported, "data/sample_inputs/model.pt": tensors})),
        "pt2 with pickled weights": (
            "m.pt2",
            _archive({**exported, "data/weights/model_weights_config.json": config, "data/weights/weight_0": tensors}),
        ),
        "pt2 with a library": ("m.pt2", _archive({**exported, **library})),
        "pkl": ("m.pkl", evil),
        "pickle": ("m.pickle", evil),
        "joblib": ("m.joblib", evil),
        "pickle called onnx": ("m.onnx", evil),
        "archive called onnx": ("m.onnx", tensors),
        "pt2 called onnx": ("m.onnx", _archive(exported)),
        "archive called safetensors": ("m.safetensors", tensors),
        "keras": ("m.keras", tensors),
    }


def models(marker: Path) -> dict[str, Build]:
    """Every container with one opcode, and every opcode in the plainest containers."""
    found: dict[str, tuple[str, bytes]] = {}
    kinds = opcodes(marker)
    for name, file in containers(kinds["reduce in protocol 2"]).items():
        found[f"pickle: {name}"] = file
    for name, evil in kinds.items():
        for container in ("pt", "pkl", "pickle called onnx"):
            found[f"pickle: {name} in {container}"] = containers(evil)[container]
    return {name: lambda folder, file=file: _write(folder, *file) for name, file in found.items()}


def _write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# -- data ------------------------------------------------------------------------------------------------------------
def npy(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A ``.npy`` with that header text."""
    text = header.encode("latin1") + b"\n"
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + body


def _header(descr: str, shape: str) -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def _zip(members: dict[str, bytes], claim: int | None = None) -> bytes:
    """A deflated archive; ``claim`` is written over the unpacked size in the directory and before the data."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    whole = bytearray(out.getvalue())
    if claim is not None:
        for magic, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
            at = whole.find(magic)
            struct.pack_into("<I", whole, at + offset, claim)
    return bytes(whole)


def data(marker: Path) -> dict[str, Build]:
    """Samples that attack whoever reads them."""
    evil = opcodes(marker)["reduce in protocol 2"]
    objects = io.BytesIO()
    np.save(objects, np.array([Payload(marker)], object), allow_pickle=True)
    good = npy(_header("'<f4'", "(2, 4)"), bytes(32))
    zeros = npy(_header("'<f4'", f"({2**22}, 4)"), bytes(2**26))
    deep = b"[" * 100_000
    files: dict[str, tuple[str, bytes]] = {
        "npy of objects": ("x.npy", objects.getvalue()),
        "npy of records with objects": ("x.npy", npy(_header("[('a', '<f4'), ('b', '|O')]", "(1,)"), evil)),
        "npy that is a pickle": ("x.npy", evil),
        "npy with a header of a megabyte": ("x.npy", npy(" " * 2**20 + _header("'<f4'", "(1,)"), b"", b"\x02\x00")),
        "npy with a nested header": ("x.npy", npy("(" * 9000)),
        "npy with a header of minus signs": ("x.npy", npy("-" * 9000 + "1")),
        "npy with code in its header": ("x.npy", npy(_header("__import__('os').mkdir('m')", "(1,)"))),
        "npy of 2**62 elements": ("x.npy", npy(_header("'<f4'", f"({2**62},)"), bytes(16))),
        "npy of 2**80 elements": ("x.npy", npy(_header("'<f4'", f"({2**40}, {2**40})"), bytes(16))),
        "npy of negative size": ("x.npy", npy(_header("'<f4'", "(-4,)"), bytes(16))),
        "npy of huge elements": ("x.npy", npy(_header("'|V2147483647'", "(4,)"), bytes(16))),
        "npy of strange version": ("x.npy", npy(_header("'<f4'", "(2, 4)"), bytes(32), b"\x09\x00")),
        "npz of objects": ("d.npz", _zip({"x.npy": objects.getvalue()})),
        "npz that climbs out": ("d.npz", _zip({"../../evil.npy": good, "/tmp/evil.npy": good})),
        "npz with a pickle": ("d.npz", _zip({"x.npy": evil, "data.pkl": evil})),
        "npz that claims 4 GB": ("d.npz", _zip({"x.npy": good}, 2**32 - 16)),
        "npz whose array claims 2**50": ("d.npz", _zip({"x.npy": npy(_header("'<f4'", f"({2**50},)"), bytes(8))})),
        "npz that claims little": ("d.npz", _zip({"x.npy": zeros}, 64)),
        "npz cut short": ("d.npz", _zip({"x.npy": good})[:-30]),
        "npz in npz": ("d.npz", _zip({"x.npy": _zip({"x.npy": good})})),
        "jsonl nested 100,000 deep": ("d.jsonl", b'{"x": ' + deep + b"}\n"),
        "jsonl of huge numbers": ("d.jsonl", b'{"x": [1e999, -1e999]}\n'),
        "jsonl with a number of 10,000 digits": ("d.jsonl", b'{"x": [' + b"9" * 10_000 + b"]}\n"),
        "pickle as data": ("d.pkl", evil),
        "torch file as data": ("d.pt", containers(evil)["pt"][1]),
    }
    return {f"data: {name}": lambda folder, file=file: _write(folder, *file) for name, file in files.items()}


def tensors() -> dict[str, Build]:
    """ONNX test data sets whose tensors lie."""
    from onnx import TensorProto

    made = {
        "data: tensor of 2**50 elements": TensorProto(name="x", data_type=1, dims=[2**50], raw_data=bytes(4)),
        "data: tensor with external data": TensorProto(name="x", data_type=1, dims=[4], data_location=1),
        "data: tensor of negative size": TensorProto(name="x", data_type=1, dims=[-1], raw_data=bytes(4)),
    }
    made["data: tensor with external data"].external_data.add(key="location", value="../secret.bin")

    def write(tensor: TensorProto) -> Build:
        def build(folder: Path) -> Path:
            place = folder / "test_data_set_0"
            place.mkdir()
            (place / "input_0.pb").write_bytes(tensor.SerializeToString())
            return place

        return build

    return {name: write(tensor) for name, tensor in made.items()}
