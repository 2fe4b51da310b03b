"""Mutations of a model file: of its bytes, and of its protobuf fields. Seeded, so that a number names an input."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tests.redteam.seeds import seeds

MOST_EDITS = 4
_INTEGERS = (0, 1, -1, 2, 7, 16, 127, 255, 1000, 2**16, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -1.0, 1e30, float("inf"), float("nan"))
_TEXTS = ("", "x", "w", "y", "../x", "/etc/hostname", "weights.bin", "a" * 300, "\N{SNOWMAN}", "If", "Loop", "ai.onnx")
_OPS = ("If", "Loop", "Scan", "Expand", "ConstantOfShape", "Reshape", "Tile", "Concat", "Gather", "Cast", "Identity",
        "Add", "Conv", "Gemm", "MatMul", "Relu", "Transpose", "Split", "Resize", "Pad", "Constant", "Range", "Where",
        "BatchNormalization", "ReduceMean", "Slice", "Shape", "OneHot", "SequenceAt", "Einsum", "NonZero")  # fmt: skip


def mutant(number: int) -> bytes:
    """The input of that number: even ones are changed as bytes, odd ones field by field."""
    draw = random.Random(number)
    seed = draw.choice(seeds())
    return of_fields(seed, draw) if number % 2 else of_bytes(seed, draw)


# -- bytes -----------------------------------------------------------------------------------------------------------
def of_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four edits of the bytes as they lie."""
    for _ in range(draw.randint(1, MOST_EDITS)):
        at, length = draw.randrange(len(data) + 1), draw.randint(1, 16)
        data = draw.choice(_BYTE_EDITS)(data, at, length, draw) or b"\x08"
    return data


def _flip(data: bytes, at: int, length: int, draw: random.Random) -> bytes:
    at = min(at, len(data) - 1)
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def _noise(data: bytes, at: int, length: int, draw: random.Random) -> bytes:
    return data[:at] + draw.randbytes(length) + data[at + length :]


def _splice(data: bytes, at: int, length: int, draw: random.Random) -> bytes:
    other = draw.choice(seeds())
    start = draw.randrange(len(other))
    return data[:at] + other[start : start + length * 8] + data[at:]


_BYTE_EDITS: tuple[Callable[[bytes, int, int, random.Random], bytes], ...] = (
    _flip,
    _flip,
    _noise,
    _splice,
    lambda data, at, length, draw: data[:at],
    lambda data, at, length, draw: data[:at] + data[at + length :],
    lambda data, at, length, draw: data[:at] + data[at : at + length] + data[at:],
    lambda data, at, length, draw: data[:at] + b"\xff" * length + data[at + length :],
    lambda data, at, length, draw: data[:at] + bytes(length) + data[at + length :],
)


# -- fields ----------------------------------------------------------------------------------------------------------
def of_fields(data: bytes, draw: random.Random) -> bytes:
    """One to four edits of fields of the message; now and then the bytes are cut as well."""
    proto = onnx.ModelProto.FromString(data)
    for _ in range(draw.randint(1, MOST_EDITS)):
        _edit(draw.choice(list(_messages(proto))), draw)
    try:
        return bytes(proto.SerializeToString())
    except (ValueError, DecodeError):
        return data


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if hasattr(value, "__len__") else (value,):
                yield from _messages(child)


def _edit(message: Message, draw: random.Random) -> None:
    if isinstance(message, onnx.NodeProto) and draw.random() < 0.2:
        message.op_type = draw.choice(_OPS)
        return
    held = [field for field, _ in message.ListFields()]
    field = draw.choice(held if held and draw.random() < 0.8 else list(message.DESCRIPTOR.fields))
    repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED
    if repeated:
        _edit_list(message, field, draw)
    elif draw.random() < 0.15:
        message.ClearField(field.name)
    elif field.message_type is not None:
        getattr(message, field.name).SetInParent()
    else:
        _set(message, field, draw)


def _edit_list(message: Message, field: Any, draw: random.Random) -> None:
    values = getattr(message, field.name)
    at = draw.randrange(len(values)) if len(values) else 0
    choice = draw.randrange(5)
    if not len(values) or choice == 0:
        if field.message_type is not None:
            values.add()
        else:
            values.append(_scalar(field, draw))
    elif choice == 1:
        del values[at]
    elif choice == 2:
        values.extend([values[at]] * draw.choice((1, 1, 2, 30)))
    elif field.message_type is None:
        values[at] = _scalar(field, draw, values[draw.randrange(len(values))])
    else:
        values[at].CopyFrom(type(values[at]).FromString(values[draw.randrange(len(values))].SerializeToString()))


def _set(message: Message, field: Any, draw: random.Random) -> None:
    setattr(message, field.name, _scalar(field, draw, getattr(message, field.name)))


def _scalar(field: Any, draw: random.Random, held: Any = None) -> Any:
    kind = field.cpp_type
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return draw.choice(_FLOATS)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return draw.choice([v.number for v in field.enum_type.values])
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            raw = held or b""
            return draw.choice((raw[: len(raw) // 2], raw + raw, raw + b"\0", b"", draw.randbytes(len(raw))))
        return draw.choice(_TEXTS)
    value = draw.choice((*_INTEGERS, (held or 0) + 1, (held or 0) - 1, draw.randrange(40)))
    bits = 64 if kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64) else 32
    signed = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return min(max(value, low), high)
