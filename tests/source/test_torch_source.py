"""PyTorch sources: built and exported in one shared worker, parity measured, failures told in a line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optimizer.faults import Exit, Fault
from optimizer.plan import SourceRequest
from optimizer.source.torch_source import (
    DYNAMO,
    OLDER,
    Attempt,
    Exported,
    Job,
    attempts,
    export_in,
    parse_dynamic,
    size_of,
    strip,
)
from optimizer.source.user_code import UserWorker, parse
from passes.kit.model import Model
from tests.support import runtime

HERE = Path(__file__).parent
Open = Callable[..., Exported]


def run(model: Model, feeds: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [runtime.run(model, f) for f in feeds]


@pytest.fixture(scope="module")
def worker() -> Iterator[UserWorker]:
    with UserWorker(HERE, "nets") as shared:
        yield shared


@pytest.fixture
def open_net(worker: UserWorker, tmp_path: Path) -> Open:
    def opened(factory: str, arrays: Mapping[str, Any] | None = None, **request: Any) -> Exported:
        asked = SourceRequest(factory if ":" in factory else f"nets:{factory}", folder=HERE, **request)
        return export_in(worker, Job(parse(asked.model, HERE), asked, runtime.target(), tmp_path, arrays or {}, run))

    return opened


def dims(found: Exported) -> dict[str, Any]:
    signature = found.model.signature
    return {port.name: port.dims for port in (*signature.inputs, *signature.outputs)}


def test_two_inputs_and_a_dict_export_with_a_dynamic_batch(open_net: Open) -> None:
    found = open_net("two_inputs", example="nets:two_inputs_example")
    assert found.exporter == DYNAMO and found.model.opset == 18
    assert dims(found) == {
        "image": ("batch", 3, 6, 6),
        "ids": ("batch", 5),
        "logits": ("batch", 4),
        "more": ("batch", 8),
        "more_1": ("batch", 5),
    }
    assert found.parity is not None and found.parity.ok and found.parity.max_rel < 1e-5
    assert {"batch=2", "batch=3", "batch=1"} <= set(found.parity.batches)
    text = " | ".join(found.warnings)
    assert "was in training mode and was put into eval mode" in text
    assert "built into the model: flip=True" in text and "'count' (int) is not a tensor" in text
    assert not any(node.op_type in ("Dropout", "BatchNormalization") for node in found.model.nodes())


def test_the_export_holds_no_local_paths_and_is_counted_without_them(open_net: Open, tmp_path: Path) -> None:
    found = open_net("two_inputs", example="nets:two_inputs_example")
    written = (tmp_path / "export-0" / "model.onnx").read_bytes()
    assert b"nets.py" in written and b"nets.py" not in found.model.to_bytes()
    assert found.size_bytes == len(found.model.to_bytes()) < len(written)


def test_a_scalar_input_stays_a_scalar(open_net: Open) -> None:
    found = open_net("two_inputs", example="nets:scalar_example")
    assert dims(found)["gain"] == () and dims(found)["image"][0] == "batch"
    one = {"image": np.ones((1, 3, 6, 6), np.float32), "ids": np.ones((1, 5), np.int64)}
    low, high = (runtime.run(found.model, {**one, "gain": np.array(g, np.float32)})["logits"] for g in (1, 3))
    np.testing.assert_allclose(high, 3 * low, rtol=1e-5)


def test_real_data_serves_as_example_rows_and_as_single_feeds(open_net: Open) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert open_net("Picky", {"x": rows, "labels": np.zeros(3)}).parity is not None
    found = open_net("Picky", {"x": rows[:, None]})
    assert dims(found)["x"] == ("batch", 4)
    mixed = open_net("linear", {"x": rows}, example="nets:rows")
    assert mixed.parity is not None and {"batch=1", "data batch=3"} <= set(mixed.parity.batches)
    entries = open_net("linear", {"x": rows[None]}, example="nets:rows")
    assert entries.parity is not None and "data batch=3" in entries.parity.batches


def test_what_stands_beside_the_factory_serves_when_data_does_not(open_net: Open) -> None:
    found = open_net("nets_with_example:Scale", {"x": np.ones((3, 4))})
    assert found.exporter == DYNAMO
    assert any("the data did not serve as example inputs" in warning for warning in found.warnings)
    assert dims(found) == {"x": ("people", "steps", 4), "output": ("people", "steps", 4)}


@pytest.mark.parametrize("opset", [18, 13])
def test_outputs_by_position_may_repeat_an_input(open_net: Open, opset: int) -> None:
    found = open_net("linear", shapes=("x:2,4",), opset=opset)
    assert [port.name for port in found.model.signature.outputs] == ["output", "output_1", "output_2"]


def test_an_output_may_be_called_like_a_value_inside_or_a_parameter(open_net: Open) -> None:
    found = open_net("Embeds", example="nets:embeds_example")
    assert found.exporter == DYNAMO and found.parity is not None and found.parity.ok
    assert dims(found) == {"ids": ("batch", 5), "embedding": ("batch", 8), "scale": ("batch", 8)}


def test_an_output_may_have_the_name_of_an_input_and_a_size_of_its_own(open_net: Open) -> None:
    found = open_net("Flat", shapes=("x:2,3,4",), dynamic=("x:0=rows", "x:1=columns"), opset=13)
    assert dims(found)["x"] == ("rows", "columns", 4) and dims(found)["x_out"][0] == "x_out_dim_0"


def test_nested_inputs_become_named_ones(open_net: Open) -> None:
    found = open_net("Cached", example="nets:cached_example")
    assert [port.name for port in found.model.signature.inputs] == ["x", "past_0_0", "past_0_1"]


def test_named_dimensions_are_kept(open_net: Open) -> None:
    found = open_net("linear", shapes=("x:2,5,4",), dynamic=("x:0=rows", "x:1=columns"))
    assert dims(found)["x"] == ("rows", "columns", 4) == dims(found)["output_1"]
    assert found.parity is not None and {"rows=3, columns=5", "rows=2, columns=6"} <= set(found.parity.batches)


def test_the_older_exporter_is_a_told_fallback(open_net: Open) -> None:
    found = open_net("Branch", example="nets:rows")
    assert found.exporter == OLDER
    text = " | ".join(found.warnings)
    assert "exported with torch's older exporter at opset 18: GuardOnDataDependentSymNode" in text
    assert "the tracer warned: Converting a tensor to a Python boolean" in text


def test_an_old_opset_goes_to_the_older_exporter(open_net: Open) -> None:
    found = open_net("two_inputs", example="nets:scalar_example", opset=11)
    assert (found.exporter, found.model.opset) == (OLDER, 11)
    assert any("the dynamo exporter writes opset 18 upward" in warning for warning in found.warnings)
    assert dims(found)["logits"] == ("batch", 4) and found.parity is not None and found.parity.ok


@pytest.mark.parametrize(
    ("net", "why"),
    [
        ("Fixed", "does not run at another batch size (RuntimeError)"),
        ("Mixed", "rows along axis 0 depend on one another"),
    ],
)
def test_what_is_no_batch_keeps_its_size(open_net: Open, net: str, why: str) -> None:
    found = open_net(net, example="nets:rows")
    assert dims(found)["x"] == (3, 4)
    assert any("exported with fixed shapes" in warning and why in warning for warning in found.warnings)


def test_half_outputs_are_compared_in_their_own_precision(open_net: Open) -> None:
    found = open_net("Half", example="nets:rows")
    assert found.parity is not None and found.parity.ok and found.parity.tolerance == 1e-2


@pytest.mark.parametrize(
    ("factory", "request_", "code", "text"),
    [
        ("raises", {}, "factory-failed", r"nets\.py:\d+: the factory 'nets:raises' raised KeyError: 'weights'"),
        ("leaves", {}, "factory-failed", r"nets\.py:\d+: .* raised SystemExit: 3"),
        ("reads", {}, "factory-failed", "raised EOFError"),
        ("state", {}, "not-a-module", r"returned an OrderedDict, not an nn\.Module\. Is it a state_dict\?"),
        ("nothing", {}, "not-a-module", "returned None.*return statement"),
        ("several", {}, "not-a-module", "returned a tuple.*Return the module alone"),
        ("NUMBER", {}, "not-a-module", "'nets:NUMBER' is an int"),
        ("rows", {}, "not-a-module", "returned a Tensor"),
        ("needs", {}, "factory-failed", r"'nets:needs' needs arguments \(width\)"),
        ("linaer", {}, "name-not-found", "'nets' has no 'linaer'. Did you mean 'linear'?"),
        ("linear", {}, "no-example", r"nothing says what forward\(x\) takes.*--example"),
        ("linear", {"example": "nets:raises"}, "example-failed", "'nets:raises' raised KeyError"),
        ("linear", {"example": "nets:tuple_of_wrong_count"}, "example-failed", r"do not fit forward\(x\)"),
        (
            "Picky",
            {"shapes": ("x:1,2,3",)},
            "example-failed",
            r"nets\.py:\d+: running the module .* x must be a matrix",
        ),
        ("Unknown", {"example": "nets:rows"}, "export-failed", "dynamo exporter: .*linalg_eig.*older exporter: "),
        ("Noisy", {"example": "nets:rows"}, "parity", "gives other outputs at every run"),
        ("Lying", {"example": "nets:rows"}, "parity", "output 'output' at .* is off by"),
        ("Fixed", {"example": "nets:rows", "dynamic": ("x:0=n",)}, "export-failed", "at one size of 'n' only"),
    ],
)
def test_failures_are_told(open_net: Open, factory: str, request_: dict[str, Any], code: str, text: str) -> None:
    with pytest.raises(Fault, match=text) as caught:
        open_net(factory, **request_)
    assert caught.value.code == code and caught.value.exit is Exit.BAD_INPUT
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"dynamic": ("x=batch",)}, "not of the form input:axis=name"),
        ({"dynamic": ("y:0=batch",)}, "there is no input 'y'"),
        ({"dynamic": ("x:2=batch",)}, "'x' has 2 axes"),
        ({"shapes": ("x",)}, "not of the form input:sizes"),
        ({"shapes": ("x:2,4:float33",)}, "'float33' is no dtype"),
        ({"opset": 99}, "opset 99 is newer"),
        ({"example": "nets"}, "'nets' is not of the form package.module:function"),
    ],
)
def test_texts_that_mean_nothing_are_usage_errors(open_net: Open, request_: dict[str, Any], text: str) -> None:
    with pytest.raises(Fault, match=text) as caught:
        open_net("linear", **{"example": "nets:rows", **request_})
    assert caught.value.exit is Exit.USAGE


def test_a_crashing_factory_takes_only_its_worker_down(tmp_path: Path) -> None:
    asked = SourceRequest("nets:crashes", folder=HERE)
    job = Job(parse(asked.model, HERE), asked, runtime.target(), tmp_path, {}, run)
    with UserWorker(HERE, "nets:crashes") as own, pytest.raises(Fault, match="SIGSEGV") as caught:
        export_in(own, job)
    assert caught.value.code == "user-code-crashed" and caught.value.exit is Exit.BAD_INPUT


def test_attempts_prefer_the_newer_exporter_then_named_dimensions() -> None:
    named = {"x": {0: "batch"}}
    assert attempts(18, named, False) == [
        Attempt(DYNAMO, 18, named),
        Attempt(OLDER, 18, named),
        Attempt(DYNAMO, 18, {}),
        Attempt(OLDER, 18, {}),
    ]
    assert attempts(18, named, True) == [Attempt(DYNAMO, 18, named), Attempt(OLDER, 18, named)]
    assert attempts(11, {}, False) == [Attempt(OLDER, 11, {})]
    assert attempts(23, {}, False) == [Attempt(DYNAMO, 23, {}), Attempt(OLDER, 20, {})]


def test_dynamic_texts_become_axes_and_offer_the_closest_input() -> None:
    inputs = [{"name": "input_ids", "dims": [1, 8]}]
    assert parse_dynamic(("input_ids:0=batch", "input_ids:1=seq"), inputs) == {"input_ids": {0: "batch", 1: "seq"}}
    with pytest.raises(Fault, match="Did you mean 'input_ids'"):
        parse_dynamic(("inputs_id:0=batch",), inputs)


def test_strip_reaches_nested_graphs_and_functions() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["r"], doc_string="/home/me/net.py")
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/me/net.py")
    info = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph([node], "body", [], [info("r", 1, [2])], doc_string="/home/me")
    choose = onnx.helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    graph = onnx.helper.make_graph([choose], "g", [info("x", 1, [2]), info("c", 9, [])], [info("y", 1, [2])])
    proto = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])
    inner = [node, onnx.helper.make_node("If", ["c"], ["s"], then_branch=body, else_branch=body)]
    function = onnx.helper.make_function("own", "F", ["x", "c"], ["s"], inner, [onnx.helper.make_opsetid("", 18)])
    proto.functions.append(function)
    model = Model.from_proto(proto)
    assert b"/home/me" in model.to_bytes()
    before, named = size_of(model), model.digest()
    strip(model)
    assert b"/home/me" not in model.to_bytes() and size_of(model) < before
    assert model.digest() == Model.from_proto(model.to_proto()).digest() != named, "no path of this machine is in it"


def test_a_worker_is_not_left_behind(tmp_path: Path) -> None:
    with UserWorker(tmp_path, "x") as own:
        pid = own._worker.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
