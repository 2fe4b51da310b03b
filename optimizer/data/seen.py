"""What labels and outputs look like, and which output a metric can score with which label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.data.samples import Array, Samples
from optimizer.data.scores import IGNORED, Unfit
from passes.kit.model import Port

_USUAL = ("labels", "label", "y", "target", "targets")
_FLOATS = {"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"}
_LABELS = {"INT64", "INT32", "STRING", "UINT8", "INT8", "BOOL"}
_LOOKED_AT = 256


@dataclass(frozen=True)
class SeenLabel:
    """A label array as a metric will meet it.

    ``shape`` is without the sample axis; ``low``/``high`` are the smallest and largest number (ignored tokens left
    out; 0 and -1 when there is none); ``one_hot`` says that every row holds a single 1.
    """

    name: str
    shape: tuple[int, ...]
    integer: bool
    text: bool
    one_hot: bool
    low: float
    high: float

    @property
    def per_sample(self) -> bool:
        """One value per sample."""
        return int(np.prod(self.shape)) == 1

    @property
    def tokens(self) -> bool:
        """One whole number per token."""
        return self.integer and len(self.shape) == 1 and not self.per_sample and not self.one_hot


def floating(dtype: np.dtype[Any]) -> bool:
    """float16, bfloat16, float32 or float64."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def see_labels(samples: Samples) -> list[SeenLabel]:
    """The labels of ``samples``, those with a usual name (``labels``, ``y``, ...) first."""
    order = {name: k for k, name in enumerate(_USUAL)}
    names = sorted(samples.labels, key=lambda n: order.get(n, len(order)))
    first = samples.labels_of(0, 1)
    return [_see(name, samples.labels[name], first[name].shape[1:]) for name in names if first[name].ndim]


def _see(name: str, array: Array, shape: tuple[int, ...]) -> SeenLabel:
    text = array.dtype.kind in "OUS"
    integer = array.dtype.kind in "iub"
    one_hot = len(shape) == 1 and shape[0] > 1 and not text and _one_hot(np.asarray(array[:_LOOKED_AT]))
    low, high = (0.0, -1.0) if text or not array.size else _range(np.asarray(array))
    return SeenLabel(name, shape, integer or one_hot, text, one_hot, low, high)


def _one_hot(rows: Array) -> bool:
    return bool(np.isin(rows, (0, 1)).all() and (rows.sum(axis=-1) == 1).all())


def _range(array: Array) -> tuple[float, float]:
    if array.dtype.kind == "i" and array.min() == IGNORED:
        array = array[array != IGNORED]
    return (float(array.min()), float(array.max())) if array.size else (0.0, -1.0)


def output_for(metric: str, outputs: tuple[Port, ...], label: SeenLabel | None) -> Port:
    """The first of ``outputs`` that ``metric`` can score with ``label``. Raises :class:`Unfit` with a reason."""
    if metric in ("top1", "top5", "f1", "auroc"):
        assert label is not None
        return _class_output(metric, outputs, label)
    if metric == "perplexity":
        assert label is not None
        return _token_output(outputs, label)
    if metric in ("mse", "mae", "spearman", "pearson"):
        assert label is not None
        return _number_output(metric, outputs, label)
    if metric == "agreement":
        return _first((*_classifiers(outputs, 2), *_label_outputs(outputs), *_classifiers(outputs, 3)),
                      "it needs an output [N, C], [N, S, C] or of labels")  # fmt: skip
    return _first(_floats(outputs), "it needs a float output")


def _first(found: Iterator[Port] | tuple[Port, ...], reason: str) -> Port:
    port = next(iter(found), None)
    if port is None:
        raise Unfit(reason)
    return port


def _class_output(metric: str, outputs: tuple[Port, ...], label: SeenLabel) -> Port:
    where = f"labels '{label.name}'"
    if label.tokens and metric in ("top1", "top5"):
        return _in_range(
            _first(_classifiers(outputs, 3), f"{where} have one class per token, no output is [N, S, C]"), label
        )
    if not (label.integer or label.text) or not (label.per_sample or label.one_hot):
        raise Unfit(f"{where} are not one class per sample")
    if metric in ("top1", "f1"):
        return _labelled_output(outputs, label)
    scored = (*_classifiers(outputs, 2), *_maps(outputs))
    if metric == "auroc":
        if label.low == label.high:
            raise Unfit(f"{where} hold one class only")
        scored = (*scored, *(_singles(outputs) if label.low >= 0 and label.high <= 1 else ()))
    found = _in_range(_first(scored, f"no output is [N, C] to go with {where}"), label)
    if metric == "top5" and found.dims is not None and isinstance(found.dims[1], int) and found.dims[1] <= 5:
        raise Unfit(f"output '{found.name}' has {found.dims[1]} classes, so the label is always among the first five")
    return found


def _labelled_output(outputs: tuple[Port, ...], label: SeenLabel) -> Port:
    """Class scores [N, C], or an output that is a label itself.

    A model of ONNX-ML puts out both; there the label is the authority, as column c need not be class c.
    """
    given = tuple(_label_outputs(outputs)) if label.per_sample else ()
    named = tuple(p for p in given if "label" in p.name.lower())
    if label.text or named:
        return _first((*named, *given), f"no output gives text like labels '{label.name}'")
    scored = tuple(_classifiers(outputs, 2))
    if scored:
        try:
            return _in_range(scored[0], label)
        except Unfit:
            if not given:
                raise
    return _first((*given, *_maps(outputs)), f"no output is [N, C] or gives labels like '{label.name}'")


def _token_output(outputs: tuple[Port, ...], label: SeenLabel) -> Port:
    if not label.integer or len(label.shape) != 1 or label.one_hot:
        raise Unfit(f"labels '{label.name}' are not one whole number per token")
    if label.high < label.low:
        raise Unfit(f"labels '{label.name}' are all {IGNORED}, so no token is scored")
    return _in_range(_first(_classifiers(outputs, 3), "no output is [N, S, C]"), label)


def _number_output(metric: str, outputs: tuple[Port, ...], label: SeenLabel) -> Port:
    if label.text:
        raise Unfit(f"labels '{label.name}' are text")
    if metric in ("spearman", "pearson") and len(label.shape) > 1:
        raise Unfit(f"labels '{label.name}' have {len(label.shape)} axes per sample; correlations take one or none")
    fitting = (p for p in _floats(outputs) if _same_size(p, label.shape))
    return _first(fitting, f"no float output has the shape of labels '{label.name}' ([N{_axes(label.shape)}])")


def _axes(shape: tuple[int, ...]) -> str:
    return "".join(f", {d}" for d in shape)


def _same_size(port: Port, shape: tuple[int, ...]) -> bool:
    """Could one sample of this output have as many values as one label? Dynamic dimensions may be anything."""
    if port.dims is None:
        return True
    own = [d for d in port.dims[1:] if d != 1]
    wanted = [d for d in shape if d != 1]
    return len(own) == len(wanted) and all(not isinstance(o, int) or o == w for o, w in zip(own, wanted, strict=True))


def _in_range(port: Port, label: SeenLabel) -> Port:
    """``port``, unless the labels name classes that it does not have."""
    count = port.dims[-1] if port.dims else None
    count = 2 if port.dims is not None and len(port.dims) == 1 else count
    if label.one_hot or label.text or not isinstance(count, int):
        return port
    if label.low < 0 or label.high >= max(count, 2):
        run = f"labels '{label.name}' run from {label.low:g} to {label.high:g}"
        raise Unfit(f"{run}, but output '{port.name}' has {count} classes")
    return port


def _floats(outputs: tuple[Port, ...]) -> Iterator[Port]:
    return (p for p in outputs if p.type in _FLOATS)


def _classifiers(outputs: tuple[Port, ...], rank: int) -> Iterator[Port]:
    """Float outputs [N, C] (or [N, S, C]) with at least two classes."""
    for port in outputs:
        if port.type in _FLOATS and port.dims is not None and len(port.dims) == rank and port.dims[-1] != 1:
            yield port


def _maps(outputs: tuple[Port, ...]) -> Iterator[Port]:
    """Maps of class to probability (ZipMap)."""
    return (p for p in outputs if p.type == "map")


def _singles(outputs: tuple[Port, ...]) -> Iterator[Port]:
    """Float outputs with one value per sample."""
    return (p for p in _floats(outputs) if p.dims is not None and p.dims and all(d == 1 for d in p.dims[1:]))


def _label_outputs(outputs: tuple[Port, ...]) -> Iterator[Port]:
    """Outputs that are labels themselves: whole numbers or text, one per sample."""
    for port in outputs:
        if port.type in _LABELS and (port.dims is None or (port.dims and all(d == 1 for d in port.dims[1:]))):
            yield port
