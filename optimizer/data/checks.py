"""Named arrays become :class:`Samples`, or a fault that says which array is wrong, how, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.data.samples import CHUNK_BYTES, Array, Kind, Samples, Slicing, let_go
from optimizer.faults import Fault, bad_input
from passes.kit.model import Port

NAMES_SHOWN = 8


def from_arrays(
    arrays: Mapping[str, Any], inputs: tuple[Port, ...], *, where: str = "data", nan_ok: bool = False
) -> Samples:
    """Samples from arrays by name: those named like an input feed it, all others are labels.

    Per input: rank + 1 means one feed per entry, the input's own rank is sliced along axis 0, 0-d is a constant.
    float -> float and integer -> integer conversions are done (checked value by value where they narrow) and
    reported in ``warnings``. ``nan_ok`` allows NaN and infinities in the data (tree models read NaN as "missing").

    Raises :class:`Fault` (BAD_INPUT) for anything that cannot be fed as it stands.
    """
    given = {name: np.asanyarray(value) for name, value in arrays.items()}
    for name, array in given.items():
        if array.dtype.hasobject and not _only_text(array):
            raise bad_input(f"array '{name}' holds Python objects", where=where, hint=NO_PICKLES, code="pickled-data")
    _check_names(given, inputs, where)
    warnings: list[str] = []
    slicing = {p.name: _slice(p, given[p.name], where, warnings) for p in inputs}
    slicing = _settle_unknown_ranks(inputs, given, slicing)
    _check_batch_axis(inputs, slicing, where)
    fixed, whole, slicing = _batching(inputs, slicing)
    count = _count(inputs, given, slicing, where)
    labels = _labels(given, inputs, count, _entry_rows(given, slicing) if whole else 1, where, warnings)
    for port in inputs:
        _check_values(port.name, given[port.name], slicing[port.name], where, nan_ok)
    for name, array in labels.items():
        _check_values(name, array, None, where, nan_ok)
    chosen = {p.name: given[p.name] for p in inputs}
    return Samples(inputs, chosen, labels, slicing, np.arange(count), fixed, whole, tuple(warnings))


NO_PICKLES = "Pickled arrays can run code when they are loaded and are never read: save plain numeric arrays instead"


def closest(word: str, known: Sequence[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean '{near[0]}'?" if near else ""


def listed(names: Sequence[str]) -> str:
    """Names for people: at most eight, then a count."""
    shown = ", ".join(f"'{n}'" for n in names[:NAMES_SHOWN]) or "none"
    return shown + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")


def _check_names(given: Mapping[str, Array], inputs: tuple[Port, ...], where: str) -> None:
    wanted = [p.name for p in inputs]
    missing = [n for n in wanted if n not in given]
    if not missing:
        return
    spare = [n for n in given if n not in wanted]
    near = _rename_hint(missing, spare)
    if len(missing) == len(wanted):
        message = f"no array is named like an input of the model: arrays {listed(list(given))}, inputs {listed(wanted)}"
        raise bad_input(message, where=where, hint=near, code="no-input-array")
    message = f"input {listed(missing)} has no array: arrays {listed(list(given))}, inputs {listed(wanted)}"
    raise bad_input(message, where=where, hint=near, code="missing-input-array")


def _rename_hint(missing: Sequence[str], spare: Sequence[str]) -> str:
    if len(missing) == 1 and len(spare) == 1:
        return f"If '{spare[0]}' holds it, rename that array to '{missing[0]}'"
    for name in missing:
        near = difflib.get_close_matches(name, spare, n=1, cutoff=0.5)
        if near:
            return f"Did you mean '{near[0]}'? Rename that array to '{name}'"
    return f"Save the data under the model's input names, e.g. np.savez(path, {missing[0]}=...)"


def _slice(port: Port, array: Array, where: str, warnings: list[str]) -> Slicing:
    dtype = _dtype(port, array, where, warnings)
    if array.ndim == 0:
        _check_constant(port, where)
        return Slicing(Kind.CONSTANT, dtype)
    if port.dims is None:
        return Slicing(Kind.ROWS, dtype)
    rank = len(port.dims)
    if array.ndim == rank + 1:
        _check_dims(port, array, port.dims, array.shape[1:], where)
        return Slicing(Kind.ENTRY, dtype)
    if array.ndim == rank:
        _check_dims(port, array, port.dims[1:], array.shape[1:], where)
        return Slicing(Kind.ROWS, dtype)
    message = f"array '{port.name}' has shape {_shape(array)}, but the model takes {port}"
    hint = f"Give {rank} dimensions (sliced along the first) or {rank + 1} (one feed per entry)"
    raise bad_input(message, where=where, hint=hint, code="wrong-rank")


def _check_constant(port: Port, where: str) -> None:
    if port.dims is not None and any(not isinstance(d, int) for d in port.dims[1:]):
        message = f"array '{port.name}' is a single number, but {port} has dimensions whose size is not known"
        raise bad_input(message, where=where, hint="Give the whole array", code="wrong-rank")


def _check_dims(port: Port, array: Array, wanted: Sequence[int | str | None], got: Sequence[int], where: str) -> None:
    if any(isinstance(w, int) and w != g for w, g in zip(wanted, got, strict=True)):
        message = f"array '{port.name}' has shape {_shape(array)}, but the model takes {port}"
        hint = "Every fixed dimension must match; the first axis of the array counts the samples"
        if sorted(got) == sorted(w for w in wanted if isinstance(w, int)):
            hint = "The axes look swapped: transpose the array into the model's order"
        raise bad_input(message, where=where, hint=hint, code="wrong-shape")


def _dtype(port: Port, array: Array, where: str, warnings: list[str]) -> np.dtype[Any]:
    """The dtype to feed, and a warning when it is not the array's own."""
    try:
        wanted: np.dtype[Any] = np.dtype(ir.DataType[port.type].numpy())
    except (KeyError, TypeError):
        message = f"input '{port.name}' is of type {port.type}, which arrays cannot feed"
        hint = "Only tensor inputs can be read from files"
        raise bad_input(message, where=where, hint=hint, code="wrong-type") from None
    if wanted == array.dtype:
        return wanted
    if wanted.kind == "O" and array.dtype.kind in "UO":
        return wanted
    if not _convertible(array.dtype, wanted):
        message = f"array '{port.name}' is {array.dtype}, but the model takes {port.type} ({wanted})"
        hint = f"Convert it yourself, e.g. array.astype('{wanted}')"
        if wanted.kind == "f" and array.dtype == np.uint8:
            hint = "These look like raw pixels: scale and normalise them as in training, then save floats"
        raise bad_input(message, where=where, hint=hint, code="wrong-dtype")
    warnings.append(f"{where}: array '{port.name}' is {array.dtype} and is fed as {wanted}")
    return wanted


def _convertible(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """float -> float and integer -> integer. Values are checked against the new range afterwards."""
    if _floating(given):
        return _floating(wanted)
    return given.kind in "iu" and wanted.kind in "iu"


def _floating(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _settle_unknown_ranks(
    inputs: tuple[Port, ...], given: Mapping[str, Array], slicing: Mapping[str, Slicing]
) -> dict[str, Slicing]:
    """An input without a declared rank follows the others: one feed per entry when they are."""
    if not any(s.kind is Kind.ENTRY for s in slicing.values()):
        return dict(slicing)
    unknown = {p.name for p in inputs if p.dims is None and given[p.name].ndim}
    return {n: Slicing(Kind.ENTRY, s.dtype) if n in unknown else s for n, s in slicing.items()}


def _check_batch_axis(inputs: tuple[Port, ...], slicing: Mapping[str, Slicing], where: str) -> None:
    """Refuse to slice along axis 0 what has its batch behind: a recurrent state [layers, batch, units] beside an input
    [batch, ...]. Its layers would be fed with the states of several samples."""
    cut = [p for p in inputs if p.dims and slicing[p.name].kind is Kind.ROWS]
    batches = {p.dims[0] for p in cut if p.dims and not isinstance(p.dims[0], int)}
    for port in cut:
        first, *rest = port.dims or ()
        if isinstance(first, int) and first > 1 and batches & set(rest):
            message = f"the batch of {port} is not its first axis, so its array cannot be sliced along that one"
            feed = ", ".join(str(1 if d in batches else d) for d in port.dims or ())
            hint = f"Give whole feeds of one sample for every input: '{port.name}' as [samples, {feed}]"
            raise bad_input(message, where=where, hint=hint, code="batch-axis")


def _batching(inputs: tuple[Port, ...], slicing: Mapping[str, Slicing]) -> tuple[int | None, bool, dict[str, Slicing]]:
    """(the model's fixed batch, whether a sample is a whole feed, slicing with rows per sample)."""
    fixed = {p.name: p.dims[0] for p in inputs if p.dims and slicing[p.name].kind is Kind.ROWS}
    sizes = {d for d in fixed.values() if isinstance(d, int)}
    whole = any(s.kind is Kind.ENTRY for s in slicing.values()) or len(sizes) > 1
    if not whole:
        return (sizes.pop() if sizes else None), False, dict(slicing)
    rows = {n: d for n, d in fixed.items() if isinstance(d, int)}
    return None, True, {n: Slicing(s.kind, s.dtype, rows.get(n, 1)) for n, s in slicing.items()}


def _count(inputs: tuple[Port, ...], given: Mapping[str, Array], slicing: Mapping[str, Slicing], where: str) -> int:
    counts: dict[str, int] = {}
    for port in inputs:
        how, array = slicing[port.name], given[port.name]
        if how.kind is Kind.CONSTANT:
            continue
        if how.rows and len(array) % how.rows:
            message = f"array '{port.name}' has {len(array)} rows, not a multiple of the {how.rows} that {port} takes"
            raise bad_input(message, where=where, hint="Give whole feeds", code="wrong-shape")
        counts[port.name] = len(array) // max(1, how.rows)
    if any(c == 0 for c in counts.values()):
        empty = [n for n, c in counts.items() if c == 0]
        message = f"array {listed(empty)} holds no samples"
        raise bad_input(message, where=where, hint="Give at least one", code="no-samples")
    if len(set(counts.values())) > 1:
        told = ", ".join(f"'{n}' {c}" for n, c in counts.items())
        hint = "Give every input the same number of samples; use a 0-d array for a value that never changes"
        message = f"inputs differ in their number of samples: {told}"
        raise bad_input(message, where=where, hint=hint, code="lengths-differ")
    return next(iter(counts.values()), 1)


def _entry_rows(given: Mapping[str, Array], slicing: Mapping[str, Slicing]) -> int:
    """Rows inside one whole feed (1 when there is no such axis)."""
    for name, how in slicing.items():
        if how.kind is Kind.ENTRY and given[name].ndim > 1:
            return int(given[name].shape[1])
        if how.kind is Kind.ROWS:
            return how.rows
    return 1


def _labels(
    given: Mapping[str, Array], inputs: tuple[Port, ...], count: int, rows: int, where: str, warnings: list[str]
) -> dict[str, Array]:
    wanted = {p.name for p in inputs}
    labels: dict[str, Array] = {}
    for name, array in given.items():
        if name in wanted:
            continue
        if array.ndim == 0:
            warnings.append(f"{where}: '{name}' is a single value and was left out; labels need one value per sample")
        elif len(array) == count:
            labels[name] = array
        elif rows > 1 and len(array) == count * rows:
            labels[name] = array.reshape(count, rows, *array.shape[1:])
        else:
            message = f"labels '{name}' have length {len(array)}, but there are {count} samples"
            hint = "Give one label per sample, or remove the array if it is not a label"
            raise bad_input(message, where=where, hint=hint, code="labels-length")
    return labels


def _check_values(name: str, array: Array, how: Slicing | None, where: str, nan_ok: bool) -> None:
    """Every number must survive the conversion to the fed dtype, and be finite unless ``nan_ok``."""
    wanted = how.dtype if how is not None else array.dtype
    narrowed = wanted != array.dtype and array.dtype.kind in "iuf"
    first, bad = -1, 0
    for start, piece in _chunks(array):
        wrong = _wrong(piece, wanted, narrowed, nan_ok)
        if wrong is not None and wrong.any():
            axes = tuple(range(1, wrong.ndim))
            bad += int(wrong.sum())
            if first < 0:
                first = start + int(np.argmax(wrong.any(axis=axes))) if wrong.ndim else 0
    if bad:
        raise _value_fault(name, array, wanted, first, bad, where)


def _wrong(piece: Array, wanted: np.dtype[Any], narrowed: bool, nan_ok: bool) -> Array | None:
    if _floating(piece.dtype):
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(piece)
            fits = np.isfinite(piece.astype(wanted)) if narrowed and _floating(wanted) else finite
        return np.asarray(finite & ~fits if nan_ok else ~fits)
    if narrowed and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        return np.asarray((piece < limits.min) | (piece > limits.max))
    return None


def _value_fault(name: str, array: Array, wanted: np.dtype[Any], first: int, bad: int, where: str) -> Fault:
    values = f"{bad} value{'s' if bad > 1 else ''}"
    if _floating(array.dtype) and not np.isfinite(np.asarray(array[first] if array.ndim else array)).all():
        message = f"array '{name}' holds {values} that are NaN or infinite, the first in sample {first}"
        return bad_input(message, where=where, hint="Repair or remove these samples", code="not-finite")
    message = f"array '{name}' holds {values} outside the range of {wanted}, the first in sample {first}"
    return bad_input(message, where=where, hint="Repair or remove these samples", code="out-of-range")


def _chunks(array: Array) -> Iterator[tuple[int, Array]]:
    if array.ndim == 0:
        yield 0, np.asarray(array)
        return
    step = max(1, CHUNK_BYTES // max(1, array.nbytes // max(1, len(array))))
    for start in range(0, len(array), step):
        yield start, np.asarray(array[start : start + step])
        let_go(array)


def _only_text(array: Array) -> bool:
    return all(isinstance(v, str) for v in array.reshape(-1))


def _shape(array: Array) -> str:
    return "[" + ", ".join(str(d) for d in array.shape) + "]"
