"""The text of ``--preprocess`` and ``--postprocess``, parsed: ``resize=256, center-crop=224, normalize=imagenet``."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optimizer.faults import Fault, usage
from passes.kit.options import closest

ORDER = ("decode", "gray", "resize", "center-crop", "bgr", "to-float", "rescale", "normalize", "nhwc->nchw")
"""Steps before the network, each at most once, in this order."""

AFTER = ("softmax", "argmax", "topk", "nms")
"""Steps after the network."""

STATISTICS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Means and deviations by name, of values in 0..1: ``half`` gives -1..1."""

MOST = 16384
"""Pixels on a side that a step may ask for."""


@dataclass(frozen=True)
class Preprocess:
    """What is done to an image, 8-bit pixels in rows [H, W, C], before the network sees it.

    ``any_file``: files too that the decoder inside of a graph reads otherwise than the reference may be taken.
    ``shorter`` is the length that the shorter side is resized to, ``size`` (height, width) for both; ``crop`` is cut
    from the middle; ``factor`` multiplies, then ``mean`` is taken off and divided by ``std`` (one for all channels or
    one each). ``channels_first`` is ``None`` where the network's own input decides.
    """

    text: str
    decode: bool = False
    any_file: bool = False
    gray: bool = False
    shorter: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    bgr: bool = False
    factor: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels_first: bool | None = None

    @property
    def gives(self) -> tuple[int, int] | None:
        """Height and width of what comes out; ``None`` where they depend on the image."""
        return self.crop or self.size


@dataclass(frozen=True)
class After:
    """One step after the network."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Postprocess:
    """What is done to what the network gives."""

    text: str
    steps: tuple[After, ...]


@dataclass(frozen=True)
class _Piece:
    name: str
    value: str | None
    options: Mapping[str, Any]


def preprocess(text: str) -> Preprocess:
    """Parse the text of ``--preprocess``. Raises a usage :class:`~optimizer.faults.Fault`."""
    flag = "--preprocess"
    found = Preprocess(text)
    done: list[str] = []
    for piece in _pieces(text, flag):
        if piece.name not in ORDER:
            raise _fault(flag, text, f"there is no step '{piece.name}'{closest(piece.name, ORDER)}", _known(ORDER))
        if piece.name in done:
            raise _fault(flag, text, f"'{piece.name}' stands there twice", "Each step can be taken once")
        if done and ORDER.index(piece.name) < ORDER.index(done[-1]):
            raise _fault(
                flag, text, f"'{piece.name}' cannot come after '{done[-1]}'", f"The order is {', '.join(ORDER)}"
            )
        found = _TAKE[piece.name](found, piece, text)
        done.append(piece.name)
    return _whole(found, done)


def postprocess(text: str) -> Postprocess:
    """Parse the text of ``--postprocess``. Raises a usage :class:`~optimizer.faults.Fault`."""
    flag = "--postprocess"
    steps: list[After] = []
    for piece in _pieces(text, flag):
        if piece.name not in AFTER:
            raise _fault(flag, text, f"there is no step '{piece.name}'{closest(piece.name, AFTER)}", _known(AFTER))
        if steps and (steps[-1].name != "softmax" or piece.name in ("softmax", "nms")):
            hint = "softmax may go before argmax or topk, which come last; nms stands alone"
            raise _fault(flag, text, f"'{piece.name}' cannot come after '{steps[-1].name}'", hint)
        steps.append(_after(piece, text))
    return Postprocess(text, tuple(steps))


# -- the grammar -------------------------------------------------------------------------------------------------------
def _pieces(text: str, flag: str) -> list[_Piece]:
    """``name``, ``name=value`` and ``name{key=value, ...}`` between commas."""
    parts = re.split(r",(?![^{]*\})", text)
    found = [_piece(part.strip(), text, flag) for part in parts if part.strip()]
    if not found:
        raise _fault(flag, text, "it names no step", "Leave it out, or name steps")
    return found


def _piece(part: str, text: str, flag: str) -> _Piece:
    match = re.fullmatch(r"(?P<name>[a-z][a-z0-9>-]*)\s*(=\s*(?P<value>[^{}=]+)|(?P<options>\{.*\}))?", part, re.DOTALL)
    if match is None:
        raise _fault(flag, text, f"'{part}' is no step", "A step is name, name=value or name{key=value}")
    options: Mapping[str, Any] = {}
    if match["options"]:
        try:
            options = tomllib.loads(f"o = {match['options']}")["o"]
        except tomllib.TOMLDecodeError as error:
            raise _fault(flag, text, f"the options of '{match['name']}' cannot be read: {error}", _TOML) from None
    return _Piece(match["name"], match["value"].strip() if match["value"] else None, options)


_TOML = 'Options are TOML values, as in normalize{mean=[0.5], std=[0.25]} or nms{boxes="boxes"}'


def _fault(flag: str, text: str, message: str, hint: str) -> Fault:
    return usage(message, where=f"{flag} '{text}'", hint=hint, code="bad-boundary")


def _known(names: Sequence[str]) -> str:
    return f"Known: {', '.join(names)}"


# -- steps before ------------------------------------------------------------------------------------------------------
def _plain(piece: _Piece, text: str) -> None:
    if piece.value is not None or piece.options:
        raise _fault("--preprocess", text, f"'{piece.name}' takes no value", f"Write {piece.name}")


def _decode(found: Preprocess, piece: _Piece, text: str) -> Preprocess:
    if piece.value not in (None, "any") or piece.options:
        message = f"'decode={piece.value or '{...}'}' is not known"
        raise _fault("--preprocess", text, message, "Write decode, or decode=any for files that come out otherwise too")
    return replace(found, decode=True, any_file=piece.value == "any")


def _gray(found: Preprocess, piece: _Piece, text: str) -> Preprocess:
    _plain(piece, text)
    return replace(found, gray=True)


def _bgr(found: Preprocess, piece: _Piece, text: str) -> Preprocess:
    _plain(piece, text)
    return replace(found, bgr=True)


def _resize(found: Preprocess, piece: _Piece, text: str) -> Preprocess:
    size = _size(piece, text, "256 for the shorter side, or 224x320 for height x width")
    return replace(found, shorter=size[0]) if len(size) == 1 else replace(found, size=(size[0], size[1]))


def _crop(found: Preprocess, piece: _Piece, text: str) -> Preprocess:
    size = _size(piece, text, "224, or 224x320 for height x width")
    return replace(found, crop=(size[0], size[-1]))


def _to_float(found: Preprocess, piece: _Piece, text: str) -> Preprocess:
    _plain(piece, text)
    return replace(found, factor=1 / 255)


def _rescale(found: Preprocess, piece: _Piece, text: str) -> Preprocess:
    if found.factor is not None:
        raise _fault("--preprocess", text, "'to-float' and 'rescale' are the same step", "Leave one of them out")
    match = re.fullmatch(r"([0-9.eE+-]+)\s*(?:/\s*([0-9.eE+-]+))?", piece.value or "")
    try:
        factor = float(match[1]) / float(match[2] or 1) if match else math.nan
    except (ValueError, ZeroDivisionError):
        factor = math.nan
    if not math.isfinite(factor) or factor == 0:
        raise _fault("--preprocess", text, "'rescale' needs a number", "Write rescale=1/255")
    return replace(found, factor=factor)


def _normalize(found: Preprocess, piece: _Piece, text: str) -> Preprocess:
    hint = f"Write normalize=NAME (one of {', '.join(STATISTICS)}) or normalize{{mean=[0.5], std=[0.25]}}"
    if piece.value is not None:
        if piece.value not in STATISTICS:
            near = closest(piece.value, tuple(STATISTICS))
            raise _fault("--preprocess", text, f"there are no statistics '{piece.value}'{near}", hint)
        mean, std = STATISTICS[piece.value]
    else:
        if set(piece.options) != {"mean", "std"}:
            raise _fault("--preprocess", text, "'normalize' needs a name, or mean and std", hint)
        mean, std = (_numbers(piece.options[key], key, text, hint) for key in ("mean", "std"))
        if len(mean) != len(std) or min(std) <= 0:
            raise _fault("--preprocess", text, "mean and std must be as many, and std above 0", hint)
    return replace(found, mean=mean, std=std)


def _layout(found: Preprocess, piece: _Piece, text: str) -> Preprocess:
    _plain(piece, text)
    return replace(found, channels_first=True)


_TAKE: Mapping[str, Callable[[Preprocess, _Piece, str], Preprocess]] = {
    "decode": _decode,
    "gray": _gray,
    "resize": _resize,
    "center-crop": _crop,
    "bgr": _bgr,
    "to-float": _to_float,
    "rescale": _rescale,
    "normalize": _normalize,
    "nhwc->nchw": _layout,
}


def _whole(found: Preprocess, done: Sequence[str]) -> Preprocess:
    """What follows from the steps together: statistics are of values in 0..1, and a crop needs an image around it."""
    if found.crop is not None:
        high, wide = found.size or (found.shorter or 0, found.shorter or 0)
        if found.crop[0] > high or found.crop[1] > wide:
            hint = f"Put resize={max(found.crop)} or more before it"
            message = f"'center-crop' of {found.crop[0]}x{found.crop[1]} needs an image at least as large"
            raise _fault("--preprocess", found.text, message, hint)
    if found.gray and found.bgr:
        raise _fault("--preprocess", found.text, "'gray' leaves no channels to put in another order", "Leave out 'bgr'")
    channels = 1 if found.gray else 3
    if len(found.mean) not in (0, 1, channels):
        hint = f"Give one number, or one for each of {channels} channels"
        raise _fault("--preprocess", found.text, f"'normalize' has {len(found.mean)} means", hint)
    if found.mean and found.factor is None:
        return replace(found, factor=1 / 255)
    return found


def _size(piece: _Piece, text: str, like: str) -> tuple[int, ...]:
    match = re.fullmatch(r"(\d+)(?:\s*x\s*(\d+))?", piece.value or "")
    sizes = tuple(int(n) for n in match.groups() if n) if match else ()
    if not sizes or not all(0 < n <= MOST for n in sizes):
        raise _fault("--preprocess", text, f"'{piece.name}' needs a size up to {MOST}", f"Write {piece.name}={like}")
    return sizes


def _numbers(given: Any, key: str, text: str, hint: str) -> tuple[float, ...]:
    values = given if isinstance(given, list) else [given]
    if not values or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
        raise _fault("--preprocess", text, f"'{key}' of 'normalize' must be numbers", hint)
    return tuple(float(v) for v in values)


# -- steps after -------------------------------------------------------------------------------------------------------
_OPTIONS: Mapping[str, Mapping[str, type]] = {
    "softmax": {"output": str},
    "argmax": {"output": str},
    "topk": {"output": str, "k": int},
    "nms": {"boxes": str, "scores": str, "iou": float, "score": float, "max": int, "center": bool},
}


def _after(piece: _Piece, text: str) -> After:
    options = dict(piece.options)
    known = _OPTIONS[piece.name]
    if piece.name == "topk" and piece.value is not None:
        options["k"] = int(piece.value) if piece.value.isdecimal() else piece.value
    elif piece.value is not None:
        raise _fault("--postprocess", text, f"'{piece.name}' takes no value", f"Write {piece.name}")
    for key, value in options.items():
        if key not in known:
            near = closest(key, tuple(known))
            raise _fault("--postprocess", text, f"'{piece.name}' has no option '{key}'{near}", _known(tuple(known)))
        kind = (int, float) if known[key] is float else known[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and known[key] is not bool):
            raise _fault("--postprocess", text, f"'{key}' of '{piece.name}' must be a {known[key].__name__}", _TOML)
    wrong = _limits(piece.name, options)
    if wrong:
        raise _fault("--postprocess", text, wrong, "Write topk=5, or nms{iou=0.5, score=0.25, max=100}")
    return After(piece.name, options)


def _limits(name: str, options: Mapping[str, Any]) -> str:
    if name == "topk" and not (isinstance(options.get("k"), int) and 0 < options["k"] <= MOST):
        return f"'topk' needs a number from 1 to {MOST}"
    if name == "nms" and not (0 <= options.get("iou", 0.5) <= 1 and 0 < options.get("max", 1) <= MOST):
        return "'nms' needs iou from 0 to 1 and max above 0"
    return ""
