"""Files and folders become :class:`Samples`. Nothing that is read here can run code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from optimizer.boundary.text import Preprocess
from optimizer.data import images
from optimizer.data.checks import NO_PICKLES, from_arrays, listed
from optimizer.data.npz import load_npy, unpack
from optimizer.data.samples import Array, Samples
from optimizer.data.synthetic import synthetic
from optimizer.faults import Fault, bad_input, cannot
from passes.kit.model import Port

__all__ = ["FORMATS", "from_arrays", "read", "synthetic"]

FORMATS = ".npz, .npy, a folder of .npy/.npz, ONNX test_data_set_N folders, .jsonl or .parquet"

_UNSAFE = {".pkl", ".pickle", ".pt", ".pth", ".joblib"}
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


def read(
    path: Path, inputs: tuple[Port, ...], *, scratch: Path, nan_ok: bool = False, steps: Preprocess | None = None
) -> Samples:
    """Samples from ``path`` for a model with these ``inputs``.

    - ``.npz``: arrays whose names are inputs are inputs, the others are labels. Members are unpacked once, to
      memory-mapped ``.npy`` files in ``scratch`` (a folder named by the content of the archive).
    - ``.npy``: the input of that name, or the only input.
    - a folder of ``.npy`` (named by file) and ``.npz``; several ``.npz`` with the same arrays are joined in name order.
    - ``test_data_set_N`` with ``input_K.pb``/``output_K.pb`` in the order of the model's inputs, or a folder of such.
    - ``.jsonl``: one object a line, input names -> numbers or nested lists of equal lengths.
    - with preprocessing ``steps``, a folder of images (:mod:`optimizer.data.images`).
    - ``.parquet``: one column per array (needs pyarrow).

    Raises :class:`Fault`: BAD_INPUT for missing, broken, unsafe or unfit data, UNDECIDED when pyarrow is missing.
    """
    where = str(path)
    if not path.exists():
        raise bad_input("no such file or folder", where=where, hint=_neighbour(path), code="missing-data")
    if steps is not None and path.is_dir() and images.image_files(path):
        arrays = images.read_images(path, inputs, steps, scratch)
    else:
        arrays = _read_folder(path, inputs, scratch) if path.is_dir() else _read_file(path, inputs, scratch)
    return from_arrays(arrays, inputs, where=where, nan_ok=nan_ok)


def _neighbour(path: Path) -> str:
    import difflib

    names = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"Did you mean '{path.with_name(near[0])}'?" if near else "Check the path"


def _read_file(path: Path, inputs: tuple[Port, ...], scratch: Path) -> dict[str, Array]:
    kind = path.suffix.lower()
    if not path.is_file():
        raise bad_input("not a regular file", where=str(path), hint=f"Readable: {FORMATS}", code="bad-data")
    if kind in _UNSAFE:
        raise bad_input(f"'{kind}' files are pickles", where=str(path), hint=NO_PICKLES, code="pickled-data")
    if path.stat().st_size == 0:
        raise bad_input("the file is empty", where=str(path), hint="Save the data again", code="empty-data")
    if kind == ".npz":
        return unpack(path, scratch)
    if kind == ".npy":
        return {_input_for(path, inputs): load_npy(path)}
    if kind in {".jsonl", ".ndjson"}:
        return _read_jsonl(path, inputs)
    if kind == ".parquet":
        return _read_parquet(path)
    message = f"'{kind or path.name}' is not a data format"
    raise bad_input(message, where=str(path), hint=f"Readable: {FORMATS}", code="bad-data")


def _input_for(path: Path, inputs: tuple[Port, ...]) -> str:
    """The name that a single array goes by: its file's, unless the model has one input only."""
    names = [p.name for p in inputs]
    return names[0] if len(names) == 1 and path.stem not in names else path.stem


# -- folders -----------------------------------------------------------------------------------------------------
def _read_folder(path: Path, inputs: tuple[Port, ...], scratch: Path) -> dict[str, Array]:
    sets = [path] if _is_test_set(path) else sorted(filter(_is_test_set, path.iterdir()), key=_set_number)
    if sets:
        return _read_test_sets(sets, inputs, path)
    files = sorted(p for p in path.iterdir() if p.is_file())
    singles = [p for p in files if p.suffix.lower() == ".npy"]
    archives = [p for p in files if p.suffix.lower() == ".npz"]
    if not singles and not archives:
        raise _nothing_inside(path, files)
    arrays = {p.stem: load_npy(p) for p in singles}
    if len(singles) == 1 and not archives:
        arrays = {_input_for(singles[0], inputs): arrays[singles[0].stem]}
    members = _join([(p, unpack(p, scratch)) for p in archives])
    twice = sorted(set(arrays) & set(members))
    if twice:
        hint = "Keep one of them"
        raise bad_input(f"array {listed(twice)} comes from two files", where=str(path), hint=hint, code="doubled-array")
    return {**arrays, **members}


def _nothing_inside(path: Path, files: list[Path]) -> Fault:
    hint = f"Readable: {FORMATS}"
    if any(p.suffix.lower() in _IMAGES for p in path.rglob("*")):
        hint = "It looks like an image folder: say how the images become inputs, as in --preprocess 'resize=224x224'"
    what = f"{len(files)} files, none of them .npy or .npz" if files else "an empty folder"
    return bad_input(f"the folder holds no data ({what})", where=str(path), hint=hint, code="empty-data")


def _join(archives: list[tuple[Path, dict[str, Array]]]) -> dict[str, Array]:
    """One archive as it is; several with the same arrays, end to end; several with different arrays, side by side."""
    if not archives:
        return {}
    first_path, joined = archives[0]
    for path, arrays in archives[1:]:
        shared = set(joined) & set(arrays)
        if shared and shared != set(joined) | set(arrays):
            message = f"'{path.name}' and '{first_path.name}' share some arrays ({listed(sorted(shared))}) but not all"
            hint = "Give every part the same arrays, or every file arrays of its own"
            raise bad_input(message, where=str(path.parent), hint=hint, code="doubled-array")
        if not shared:
            joined = {**joined, **arrays}
    names = [n for n in joined if sum(n in a for _, a in archives) > 1]
    return {**joined, **{n: _concatenate(n, archives) for n in names}}


def _concatenate(name: str, archives: list[tuple[Path, dict[str, Array]]]) -> Array:
    parts = [arrays[name] for _, arrays in archives if name in arrays]
    shapes = {p.shape[1:] for p in parts}
    if len(shapes) > 1 or any(p.ndim == 0 for p in parts):
        told = ", ".join(sorted(str(list(p.shape)) for p in parts)[:4])
        hint = "Parts are joined along axis 0: pad the other axes to one size"
        where = str(archives[0][0].parent)
        message = f"the parts of '{name}' have different shapes ({told})"
        raise bad_input(message, where=where, hint=hint, code="wrong-shape")
    return np.concatenate(parts)


# -- ONNX test data sets -------------------------------------------------------------------------------------------
def _is_test_set(path: Path) -> bool:
    return path.is_dir() and (path / "input_0.pb").is_file()


def _set_number(path: Path) -> tuple[int, str]:
    tail = path.name.rpartition("_")[2]
    return (int(tail) if tail.isdigit() else -1, path.name)


def _read_test_sets(sets: list[Path], inputs: tuple[Port, ...], where: Path) -> dict[str, Array]:
    """Every set is one feed; expected outputs become labels named like the tensors in the files."""
    given: dict[str, list[Array]] = {}
    expected: dict[str, list[Array]] = {}
    for folder in sets:
        for k, port in enumerate(inputs):
            given.setdefault(port.name, []).append(_tensor(folder / f"input_{k}.pb", f"input_{k}")[1])
        extra = folder / f"input_{len(inputs)}.pb"
        if extra.exists():
            message = f"there is an {extra.name}, but the model has {len(inputs)} inputs"
            hint = "Check that the data belongs to this model"
            raise bad_input(message, where=str(folder), hint=hint, code="wrong-shape")
        for k in range(len(list(folder.glob("output_*.pb")))):
            name, array = _label(folder / f"output_{k}.pb", f"output_{k}")
            if array is not None:
                expected.setdefault(name, []).append(array)
    arrays = {name: _stack(name, parts, where) for name, parts in given.items()}
    same = {n: v for n, v in expected.items() if len(v) == len(sets) and len({a.shape for a in v}) == 1}
    for name, parts in same.items():
        arrays[name if name not in arrays else f"expected:{name}"] = np.stack(parts)
    return arrays


def _label(path: Path, fallback: str) -> tuple[str, Array | None]:
    """An expected output; sequences and maps are no labels."""
    try:
        return _tensor(path, fallback)
    except Fault:
        return fallback, None


def _tensor(path: Path, fallback: str) -> tuple[str, Array]:
    if not path.is_file():
        hint = "Every input needs its input_K.pb"
        raise bad_input(f"no {path.name}", where=str(path.parent), hint=hint, code="missing-data")
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        if tensor.data_type == onnx.TensorProto.UNDEFINED:
            raise ValueError("it holds no tensor")
        if tensor.external_data:
            raise ValueError("it refers to another file")
        array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # protobuf raises its own kinds, to_array several
        message = f"cannot be read as a tensor: {error}"
        hint = "The file is broken, or holds a sequence or map, which cannot be fed from files"
        raise bad_input(message, where=str(path), hint=hint, code="bad-data") from None
    if array.dtype.kind == "O":
        words = [v.decode() if isinstance(v, bytes) else str(v) for v in array.reshape(-1)]
        array = np.array(words).reshape(array.shape)
    return tensor.name or fallback, array


def _stack(name: str, parts: list[Array], where: Path) -> Array:
    if len({p.shape for p in parts}) > 1:
        told = ", ".join(sorted({str(list(p.shape)) for p in parts})[:4])
        hint = "Keep the data sets of one size, or compile for each size apart"
        message = f"'{name}' differs in shape between the data sets ({told})"
        raise bad_input(message, where=str(where), hint=hint, code="wrong-shape")
    return np.stack(parts)


# -- tables --------------------------------------------------------------------------------------------------------
def _read_jsonl(path: Path, inputs: tuple[Port, ...]) -> dict[str, Array]:
    columns: dict[str, list[Any]] = {}
    lines = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    _take_line(columns, line, f"{path}:{number}", lines)
                    lines += 1
    except UnicodeDecodeError:
        raise bad_input("is not UTF-8 text", where=str(path), hint="Save it as UTF-8", code="bad-data") from None
    if not lines:
        raise bad_input("the file holds no samples", where=str(path), hint="Give one object a line", code="no-samples")
    return _columns(columns, inputs, str(path))


def _take_line(columns: dict[str, list[Any]], line: str, where: str, before: int) -> None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise bad_input(f"is not JSON ({error})", where=where, hint="Give one object a line", code="bad-data") from None
    if not isinstance(row, dict):
        raise bad_input("is not an object", where=where, hint='Give {"input name": [...]} a line', code="bad-data")
    if before and set(row) != set(columns):
        told = listed(sorted(set(row) ^ set(columns)))
        message = f"differs in its names from the lines before ({told})"
        raise bad_input(message, where=where, hint="Give every line the same names", code="bad-data")
    for name, value in row.items():
        columns.setdefault(name, []).append(value)


def _columns(columns: Mapping[str, list[Any]], inputs: tuple[Port, ...], where: str) -> dict[str, Array]:
    floats = {p.name for p in inputs if p.type in {"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"}}
    arrays: dict[str, Array] = {}
    for name, values in columns.items():
        try:
            array = np.array(values)
        except ValueError:
            hint = "Pad or pack the lists to one length (label -100 is ignored by perplexity)"
            message = f"the lists of '{name}' differ in length"
            raise bad_input(message, where=where, hint=hint, code="wrong-shape") from None
        if array.dtype.hasobject:
            message = f"'{name}' holds something other than numbers or text"
            raise bad_input(message, where=where, hint="Give numbers or nested lists of numbers", code="bad-data")
        arrays[name] = array.astype(np.float32) if name in floats and array.dtype.kind in "iuf" else array
    return arrays


def _read_parquet(path: Path) -> dict[str, Array]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise cannot("reading parquet needs pyarrow", where=str(path), hint="Run: pip install pyarrow") from None
    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow's own kinds
        message = f"cannot be read as parquet: {error}"
        raise bad_input(message, where=str(path), hint="Save the data again", code="bad-data") from None
    return _columns({name: table[name].to_pylist() for name in table.column_names}, (), str(path))
