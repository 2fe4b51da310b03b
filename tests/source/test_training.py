"""Training-mode graphs are found wherever they hide, and rewritten only when asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optimizer.faults import Exit, Fault
from optimizer.source import training
from optimizer.source.onnx_file import load
from passes.kit.model import Model
from tests.source.onnx_models import BOOL, FLOAT, INFO, model, node, save, tensor
from tests.support import runtime

STATISTICS = [tensor(name, values) for name, values in (("s", [1, 2]), ("b", [0, 1]), ("m", [1, 1]), ("v", [4, 9]))]
IMAGE = {"inputs": [INFO("x", FLOAT, ["n", 2])], "outputs": [INFO("y", FLOAT, ["n", 2])]}
ONE = {"x": np.array([[3, 4], [5, 6]], np.float32)}


def batchnorm(outputs: tuple[str, ...] = ("y", "rm", "rv"), **attributes: Any) -> onnx.NodeProto:
    return node("BatchNormalization", ["x", "s", "b", "m", "v"], outputs, name="bn", **attributes)


def dropout(flag: bool) -> list[onnx.NodeProto]:
    return [
        node("Constant", [], ["t"], value=tensor("", flag, np.bool_)),
        node("Dropout", ["x", "", "t"], ["y"], name="drop"),
    ]


def signs(proto: onnx.ModelProto) -> list[tuple[str, bool]]:
    return [(sign.op, sign.fixable) for sign in training.find(Model.from_proto(proto))]


def test_inference_forms_are_left_alone() -> None:
    assert signs(model([batchnorm(("y",))], STATISTICS, **IMAGE)) == []
    assert signs(model(dropout(False), **IMAGE)) == []
    assert signs(model([node("Dropout", ["x"], ["y", "mask"])], **IMAGE)) == []
    assert signs(model([node("Dropout", ["x"], ["y"], is_test=1)], opset=[("", 6)], **IMAGE)) == []
    assert signs(model([node("Bernoulli", ["x"], ["y"], domain="own")], opset=[("", 18), ("own", 1)], **IMAGE)) == []


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (model([batchnorm(training_mode=1)], STATISTICS, **IMAGE), ("BatchNormalization", True)),
        (model([batchnorm(("y", "rm"))], STATISTICS, opset=[("", 9)], **IMAGE), ("BatchNormalization", True)),
        (model(dropout(True), **IMAGE), ("Dropout", True)),
        (model([node("Dropout", ["x"], ["y"])], opset=[("", 6)], **IMAGE), ("Dropout", True)),
        (model([node("Bernoulli", ["x"], ["y"])], **IMAGE), ("Bernoulli", False)),
        (model([node("RandomNormalLike", ["x"], ["y"])], **IMAGE), ("RandomNormalLike", False)),
    ],
)
def test_training_forms_are_found(proto: onnx.ModelProto, expected: tuple[str, bool]) -> None:
    assert signs(proto) == [expected]


def test_a_flag_that_is_an_input_or_whose_statistics_are_used_is_told() -> None:
    inputs = [*IMAGE["inputs"], INFO("t", BOOL, [])]
    open_flag = model([node("Dropout", ["x", "", "t"], ["y"])], inputs=inputs, outputs=IMAGE["outputs"])
    assert "computed ('t')" in training.find(Model.from_proto(open_flag))[0].why
    outputs = [*IMAGE["outputs"], INFO("rm", FLOAT, [2])]
    used = model([batchnorm(training_mode=1)], STATISTICS, inputs=IMAGE["inputs"], outputs=outputs)
    assert signs(used) == [("BatchNormalization", False)]


def test_nested_graphs_and_functions_are_searched() -> None:
    body = onnx.helper.make_graph(dropout(True), "b", [], [INFO("y", FLOAT, None)])
    body.node[1].output[0] = body.output[0].name = "r"
    inputs = [*IMAGE["inputs"], INFO("c", BOOL, [])]
    branch = node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    assert signs(model([branch], inputs=inputs, outputs=IMAGE["outputs"])) == [("Dropout", True)] * 2
    function = onnx.helper.make_function("own", "F", ["x"], ["y"], dropout(True), [onnx.helper.make_opsetid("", 18)])
    called = model([node("F", ["x"], ["y"], domain="own")], opset=[("", 18), ("own", 1)], functions=[function], **IMAGE)
    assert signs(called) == [("Dropout", True)]
    function.node[1].CopyFrom(branch)
    function.input.append("c")
    called.functions[0].CopyFrom(function)
    assert signs(called) == [("Dropout", True)] * 2


def test_fixing_gives_the_inference_form(tmp_path: Path) -> None:
    nodes = [batchnorm(("h", "rm", "rv"), training_mode=1), *dropout(True), node("Relu", ["d"], ["y"])]
    nodes[2].input[0], nodes[2].output[0] = "h", "d"
    path = save(model(nodes, STATISTICS, ir_version=8, **IMAGE), tmp_path)
    found = load(path, runtime.target(), fix_training=True)
    assert training.find(found.model) == () and "Dropout" not in runtime.op_types(found.model)
    assert "rewritten to inference form: 1 BatchNormalization, 1 Dropout" in found.warnings[0]
    assert found.model.digest() == load(path, runtime.target(), fix_training=True).model.fork().digest()
    assert found.model.digest() != load(path, runtime.target()).model.digest(), "it is not the model of the file"
    expected = np.maximum((ONE["x"] - 1) / np.sqrt(np.array([4, 9]) + 1e-5) * [1, 2] + [0, 1], 0)
    np.testing.assert_allclose(runtime.run(found.model, ONE)["y"], expected, rtol=1e-6)


def test_a_dropout_that_writes_the_output_keeps_its_name(tmp_path: Path) -> None:
    found = load(save(model(dropout(True), **IMAGE), tmp_path), runtime.target(), fix_training=True)
    assert [port.name for port in found.model.signature.outputs] == ["y"]
    assert runtime.run(found.model, ONE)["y"].tolist() == ONE["x"].tolist()


def test_what_has_no_inference_form_is_said_to_be_left(tmp_path: Path) -> None:
    path = save(model([node("Bernoulli", ["x"], ["y"])], **IMAGE), tmp_path)
    found = load(path, runtime.target(), fix_training=True)
    assert found.warnings == (
        "still in training mode, and no inference form is known: 1 Bernoulli (first: 'y', it draws random numbers)",
    )


def test_by_default_it_is_kept_and_told_and_on_request_refused(tmp_path: Path) -> None:
    path = save(model(dropout(True), **IMAGE), tmp_path)
    found = load(path, runtime.target())
    assert "1 Dropout (first: 'drop', its training flag is true); --fix-training" in found.warnings[0]
    assert "Dropout" in runtime.op_types(found.model)
    with pytest.raises(Fault, match="in training mode: 1 Dropout") as caught:
        load(path, runtime.target(), refuse_training=True)
    assert caught.value.code == "training-mode" and caught.value.exit is Exit.BAD_INPUT
