"""The calls that benchmarks/peers.py makes, each in a process of its own:

    python benchmarks/peer_calls.py CALL OPTIONS FOLDER OUT

CALL is a function of this file, OPTIONS its keyword arguments as JSON. FOLDER holds ``source.onnx`` and the calibration
samples twice: ``feeds.pickle``, feed by feed, and ``calib.npz``, joined. The model that the call makes goes to OUT.
Nothing is imported before a call needs it, so that CPU time and memory are the peer's own. Every peer gets the
model after its own preprocessing, every call of Lathe after Lathe's.
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BLOCK = 32


class Reader:
    """Calibration feeds as onnxruntime wants to read them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rewind()

    def rewind(self) -> None:
        """Start again with the first feed."""
        self._feeds = iter(feeds(self._path.parent))

    def get_next(self) -> Any:
        """The next feed, ``None`` behind the last."""
        return next(self._feeds, None)

    def __iter__(self) -> Any:
        return iter(feeds(self._path.parent))

    def __deepcopy__(self, memo: Any) -> Reader:
        return Reader(self._path)  # onnxruntime copies readers, and an iterator cannot be copied


def feeds(folder: Path) -> list[dict[str, Any]]:
    """The calibration feeds, which the benchmark itself wrote."""
    return list(pickle.loads((folder / "feeds.pickle").read_bytes()))


# -- Lathe -------------------------------------------------------------------------------------------------------------
def lathe(folder: Path, out: Path, recipe: str, before: str = "", after: str = "") -> None:
    """Lathe's cleaning and ``recipe``. ``before`` names a function of this file that prepares the float model,
    ``after`` one that repairs the quantized one: a peer's algorithm with Lathe's quantizer."""
    from optimizer.plan import DataRequest, Settings, SourceRequest
    from optimizer.progress import Silent
    from optimizer.workshop import open_bench
    from passes.catalogue import LOSSLESS
    from passes.kit.model import Model
    from passes.kit.recipe import Recipe

    samples = str(folder / "calib.npz")
    with tempfile.TemporaryDirectory() as cache:
        settings = Settings(
            SourceRequest(str(folder / "source.onnx")), DataRequest(calibrate=samples, select=samples, confirm=samples),
            cache_dir=Path(cache),
        )  # fmt: skip
        with open_bench(settings, Silent()) as bench:
            builder = bench.builder
            clean = builder.build(bench.source.model, LOSSLESS).model
            if before:
                clean = Model.from_proto(globals()[before](clean.to_proto(), folder), str(folder))
            made = builder.build(clean, Recipe.parse(recipe))
            if made.faults:
                raise SystemExit("; ".join(made.fault_lines()))
            if not after:
                out.write_bytes(made.model.to_bytes())
            else:
                save(globals()[after](clean.to_proto(), made.model.to_proto(), feeds(folder)), out)


# -- onnxruntime -------------------------------------------------------------------------------------------------------
def preprocessed(folder: Path, out: Path) -> Path:
    """The source after onnxruntime's own preprocessing."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = out.with_suffix(".ready.onnx")
    try:
        quant_pre_process(folder / "source.onnx", ready)
    except Exception:  # symbolic shape inference knows fewer models than the quantizers do
        quant_pre_process(folder / "source.onnx", ready, skip_symbolic_shape=True)
    return ready


def ort_static(
    folder: Path, out: Path, observer: str = "MinMax", activation: str = "QUInt8", weight: str = "QInt8",
    per_channel: bool = True, **extra: Any,
) -> None:  # fmt: skip
    """``quantize_static``; ``extra`` are its ``extra_options``."""
    from onnxruntime import quantization as q

    ready = preprocessed(folder, out)
    q.quantize_static(
        ready, out, Reader(folder / "feeds.pickle"), per_channel=per_channel, extra_options=extra,
        activation_type=getattr(q.QuantType, activation), weight_type=getattr(q.QuantType, weight),
        calibrate_method=getattr(q.CalibrationMethod, observer),
    )  # fmt: skip
    ready.unlink()


def ort_dynamic(folder: Path, out: Path) -> None:
    """``quantize_dynamic`` with the form that is fast: signed weights, per channel."""
    from onnxruntime import quantization as q

    ready = preprocessed(folder, out)
    q.quantize_dynamic(ready, out, per_channel=True, weight_type=q.QuantType.QInt8)
    ready.unlink()


def ort_weights(folder: Path, out: Path, method: str = "", bits: int = 4, symmetric: bool = False) -> None:
    """``MatMulNBitsQuantizer``; ``method`` is the prefix of a configuration class (empty: the default one)."""
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as m

    ready = preprocessed(folder, out)
    config = None
    if method == "GPTQ":
        config = m.GPTQWeightOnlyQuantConfig(Reader(folder / "feeds.pickle"))
    elif method == "HQQ":
        config = m.HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=bits)
    elif method:
        config = getattr(m, f"{method}WeightOnlyQuantConfig")()
    made = m.MatMulNBitsQuantizer(
        onnx.load(ready), bits=bits, block_size=BLOCK, is_symmetric=symmetric, algo_config=config
    )
    made.process()
    save(made.model.model, out)
    ready.unlink()


# -- onnxsim: what prepares a float model ------------------------------------------------------------------------------
def simplified(folder: Path, opset: int = 0) -> Any:
    """The source after onnxsim's own simplification, at least at ``opset`` (the 4-bit schemes decline below 21)."""
    import onnx
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(folder / "source.onnx"))
    have = next(o.version for o in model.opset_import if o.domain == "")
    return onnx.version_converter.convert_version(model, opset) if have < opset else model


def cross_layer_equalize(model: Any, folder: Path) -> Any:
    """onnxsim's own cross-layer equalization."""
    import onnxsim

    return onnxsim.cross_layer_equalize(model)


def quark_equalize(model: Any, folder: Path) -> Any:
    """onnxsim's port of AMD Quark's: depthwise triples too, until it settles, ReLU6 replaced by ReLU."""
    from onnxsim.quark_equalization import equalize

    return equalize(model, steps=-1, replace_clip6=True)


def quark_equalize_once(model: Any, folder: Path) -> Any:
    """The same as it comes: one round, ReLU6 kept."""
    from onnxsim.quark_equalization import equalize

    return equalize(model)


def smoothquant(model: Any, folder: Path) -> Any:
    """onnxsim's SmoothQuant at its default strength of 0.5."""
    import onnxsim

    return onnxsim.apply_smoothquant(model, calibration_data=feeds(folder))


# -- onnxsim: quantizers and what repairs their models -----------------------------------------------------------------
def sim_static(folder: Path, out: Path, method: str = "minmax", before: str = "", after: str = "", **more: Any) -> None:
    """``quantize_static``, between a function that prepares and one that repairs."""
    import onnxsim

    model = simplified(folder)
    if before:
        model = globals()[before](model, folder)
    made = onnxsim.quantize_static(model, calibration_data=feeds(folder), method=method, **more)
    save(globals()[after](model, made, feeds(folder)) if after else made, out)


def sim_full(folder: Path, out: Path, per_channel: bool = True, after: str = "") -> None:
    """``quantize_full_qdq``, which the int8 repairs need, and one of them."""
    from onnxsim.full_qdq import quantize_full_qdq

    model, data = simplified(folder), feeds(folder)
    made = quantize_full_qdq(model, data, per_channel=per_channel)
    save(globals()[after](model, made, data) if after else made, out)


def correct_bias(model: Any, quantized: Any, data: Sequence[Any]) -> Any:
    """onnxsim's own bias correction."""
    import onnxsim

    return onnxsim.correct_bias(model, quantized, calibration_data=data)


def correct_spatial_bias(model: Any, quantized: Any, data: Sequence[Any]) -> Any:
    """The same with a coarse map over positions."""
    import onnxsim

    return onnxsim.correct_spatial_bias(model, quantized, calibration_data=data)


def quark_bias(model: Any, quantized: Any, data: Sequence[Any]) -> Any:
    """onnxsim's port of AMD Quark's bias correction."""
    from onnxsim.quark_bias_correction import correct_bias_quark

    return correct_bias_quark(model, quantized, data)


def adaround_int8(model: Any, quantized: Any, data: Sequence[Any]) -> Any:
    """AdaRound on int8 weights."""
    from onnxsim.quark_weight_rounding import adaround_int8 as refine

    return refine(model, quantized, data)[0]


def gptq_int8(model: Any, quantized: Any, data: Sequence[Any]) -> Any:
    """GPTQ on int8 weights."""
    from onnxsim.quark_weight_rounding import gptq_int8 as refine

    return refine(model, quantized, data)[0]


def sim_plain(folder: Path, out: Path, function: str, opset: int = 0, calibrated: bool = False) -> None:
    """A function of onnxsim that takes the float model alone, or with calibration data."""
    import onnxsim

    known = {"calibration_data": feeds(folder)} if calibrated else {}
    save(getattr(onnxsim, function)(simplified(folder, opset), **known), out)


def sim_int4(folder: Path, out: Path, refine: str = "") -> None:
    """``quantize_weight_only_int4`` and what rounds or scales its codes anew."""
    import onnxsim

    model = simplified(folder, 21)
    made = onnxsim.quantize_weight_only_int4(model)
    if refine:
        made = getattr(onnxsim, refine)(model, made, calibration_data=feeds(folder))
    save(made, out)


def sim_quark_weights(folder: Path, out: Path, algorithm: str, compensate: bool = False) -> None:
    """onnxsim's port of AMD Quark's ``MatMulNBits``."""
    import numpy as np
    from onnxsim.quark_matmul_nbits import quantize_matmul_nbits

    options = {"GroupSize": BLOCK, "PerChannel": True, "WeightSymmetric": False, "Compensate": compensate}
    first = dict(np.load(folder / "calib.npz"))  # it reads one batch only
    made, _ = quantize_matmul_nbits(
        simplified(folder), group_size=BLOCK, symmetric=False, algorithm=algorithm, gptq_params=options,
        calibration=[first],
    )  # fmt: skip
    save(made, out)


def save(model: Any, out: Path) -> None:
    """Write a ModelProto."""
    out.write_bytes(model.SerializeToString())


def main() -> None:
    call, options, folder, out = sys.argv[1:]
    made: Callable[..., None] = globals()[call]
    made(Path(folder), Path(out), **json.loads(options))


if __name__ == "__main__":
    main()
