"""onnxsim, used as a stranger's tool: asked politely, checked closely."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from passes.clean.fold_constants import TOO_LARGE, FoldConstants
from passes.kit.context import Context
from passes.kit.contract import Change, Exactness, Pass, PassResult, Skip
from passes.kit.model import LARGEST_PROTO_BYTES, Model
from passes.kit.options import option
from passes.kit.shapes import Shapes

_ROUNDS = 3
"""How often the tool is run on its own result before it must have come to rest."""

_LEFT_OUT = (
    # Turns MatMul + Add on 3-D values into Gemm between computed Reshapes: a 4-layer GPT grew from 180 to 224 nodes,
    # ran no faster, and dynamic quantization lost its MatMuls.
    "fuse_matmul_add_bias_into_gemm_batched",
    # Ties equal biases of convolutions together, which quantizers scale one by one; tidy shares the large ones.
    "eliminate_duplicate_initializer",
    # fold-batchnorm does it in float64, with reasons where it does not.
    "fuse_bn_into_conv",
    # Takes the second one's keepdims for both: the result of a first that drops its axes gets other dimensions.
    "fuse_consecutive_reduce",
)


_T = ir.DataType
_FOLDED_RIGHT = (
    *(_T.FLOAT, _T.DOUBLE, _T.FLOAT16, _T.BOOL, _T.STRING, _T.COMPLEX64, _T.COMPLEX128),
    *(_T.INT8, _T.INT16, _T.INT32, _T.INT64, _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64),
)
"""Element types that the tool's constant folding keeps."""


class _Refused(ValueError):
    """The tool, or its result, is not to be used for this model; the text says why."""


@dataclass(frozen=True)
class Simplify(Pass):
    """Run onnxsim for what it does best: constant folding with real kernels and onnx-optimizer's small clean-ups.

    What it does
        Hands the model to onnxsim in memory, without its random checks and its proofs, and repeats until nothing
        more happens (at most three times). What comes back is put under the original's signature, metadata and
        opsets, and is taken only if it passes the onnx checker, has the same inputs and outputs in the same order, and
        has not grown by more than ``max-growth-bytes``. It is asked not to fold when folding let the model grow, where
        a constant would be larger than that (the tool makes it before it looks), and where the model holds element
        types that its folding loses. Its batched Gemm, its folding of BatchNormalization and its sharing of biases are
        left out. The changes are the differences in the number of nodes of each type.

    When it applies
        To models that fit into one protobuf message and whose operators onnxsim knows.

    When it refuses
        Weights above 2 GiB (the tool needs one message), map types of ONNX-ML, whatever makes the tool raise, and
        results that break the rules above. A model that would come back with the same nodes stays as it is.

    Exactness
        NUMERIC. It evaluates float operators at compile time and moves biases and paddings into convolutions.
    """

    name: ClassVar[str] = "simplify"
    exactness: ClassVar[Exactness] = Exactness.NUMERIC
    native: ClassVar[bool] = True

    max_growth_bytes: int = option(
        1 << 20, "how many bytes of weights the model may gain by folding", low=0, high=LARGEST_PROTO_BYTES
    )

    def apply(self, model: Model, context: Context) -> PassResult:
        changes: list[Change] = []
        current = model
        for _ in range(_ROUNDS):
            try:
                found = self._once(current, context, model.weight_bytes() + self.max_growth_bytes)
            except _Refused as refusal:
                return PassResult(current, tuple(changes), (Skip("onnxsim", "model", str(refusal)),))
            differences = _differences(current, found)
            if not differences:
                break
            changes += differences
            current = found
        return PassResult(current, tuple(changes))

    def _once(self, model: Model, context: Context, most_bytes: int) -> Model:
        if model.weight_bytes() > LARGEST_PROTO_BYTES:
            raise _Refused(f"{model.weight_bytes():,} bytes of weights do not fit into the one message that it needs")
        if model.map_types:
            raise _Refused("it does not handle map types (ONNX-ML)")
        source = model.to_proto()
        nested = any(graph is not model.graph for graph in model.graphs())
        for fold in (False,) if _narrow(model) or self._bursts(model, context) else (True, False):
            proto = _ask(source, fold, self.max_growth_bytes)
            _accept(proto, source, nested)
            result = Model.from_proto(proto)
            grown = result.weight_bytes()
            if grown <= most_bytes:
                return result
        raise _Refused(f"its result holds {grown:,} bytes of weights, more than max-growth-bytes allows")

    def _bursts(self, model: Model, context: Context) -> bool:
        """Whether some constant would be larger than the model may grow."""
        ours = FoldConstants(max_bytes=self.max_growth_bytes, max_growth_bytes=self.max_growth_bytes)
        return any(skip.rule == TOO_LARGE for skip in ours(model, context).skips)


def _ask(source: onnx.ModelProto, fold: bool, threshold: int) -> onnx.ModelProto:
    """One call of the tool. ``threshold`` is the size in bytes of a tensor that it leaves unfolded."""
    try:
        import onnxsim
    except ImportError as error:
        raise _Refused(f"onnxsim is not installed: {error}") from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it talks about custom operators; a pass has no terminal
            found, _ = onnxsim.simplify(
                source,
                check_n=0,
                certify=False,
                skipped_optimizers=list(_LEFT_OUT),
                skip_constant_folding=not fold,
                tensor_size_threshold=f"{threshold}B",
                include_subgraph=True,
                mutable_initializer=True,
            )
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _Refused(f"onnxsim raised {type(error).__name__}: {first[:200]}") from error
    if not isinstance(found, onnx.ModelProto) or not found.HasField("graph"):
        raise _Refused("onnxsim returned no model")
    return found


def _accept(proto: onnx.ModelProto, source: onnx.ModelProto, nested: bool) -> None:
    """Put the result under the original's declared signature and metadata. Raises :class:`_Refused`.

    With graphs inside graphs (``nested``) types and shapes must agree too: there the tool has put a bias of the wrong
    rank behind a convolution.
    """
    listed = {i.name for i in source.graph.initializer}
    present = {i.name for i in proto.graph.initializer}
    for side in ("input", "output"):
        mine, theirs = getattr(source.graph, side), getattr(proto.graph, side)
        wanted = [_port(v) for v in mine if v.name not in listed]
        got = [_port(v) for v in theirs if v.name not in listed]
        if wanted != got:
            raise _Refused(f"its {side}s are {', '.join(got)} instead of {', '.join(wanted)}")
        kept = [v for v in mine if v.name not in listed or v.name in present]
        del theirs[:]
        theirs.extend(kept)
    if {o.domain: o.version for o in proto.opset_import} != {o.domain: o.version for o in source.opset_import}:
        raise _Refused("it changed the opset")
    proto.ir_version = max(proto.ir_version, source.ir_version)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(proto, field, getattr(source, field))
    del proto.metadata_props[:]
    proto.metadata_props.extend(source.metadata_props)
    proto.graph.name = source.graph.name
    del proto.graph.value_info[:]  # its guesses about inner shapes are not needed: they can be inferred again
    try:
        onnx.checker.check_model(proto, full_check=nested)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _Refused(f"its result is not valid: {str(error).strip().splitlines()[0][:200]}") from error


def _narrow(model: Model) -> bool:
    """Whether any value has an element type of 8-bit floats, of less than a byte, or bfloat16.

    What the tool folds to such a type becomes a constant of the unsigned integers that hold its bits, under a name of
    its own, and a CastLike to it then casts to integers.
    """
    shapes = Shapes(model)
    values = (v for g in model.graphs() for n in g for v in (*n.inputs, *n.outputs) if v is not None)
    return any(shapes.dtype(v) not in (None, *_FOLDED_RIGHT) for v in values)


def _port(value: onnx.ValueInfoProto) -> str:
    """Name and kind; the dimensions are put back."""
    return f"{value.name}: {value.type.WhichOneof('value')} {value.type.tensor_type.elem_type}"


def _differences(before: Model, after: Model) -> list[Change]:
    """How many nodes of each type came or went, and how the weights changed."""
    old, new = _census(before), _census(after)
    return [
        Change("onnxsim", kind, f"{old[kind]} -> {new[kind]}")
        for kind in sorted(old.keys() | new.keys())
        if old[kind] != new[kind]
    ]


def _census(model: Model) -> Counter[str]:
    return Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in model.nodes())
