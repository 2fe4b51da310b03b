"""The operators in the graph do what the Python reference does, on photographs of several sizes and formats."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from optimizer.boundary import pictures
from optimizer.boundary.graph import core, wrap
from optimizer.boundary.text import postprocess, preprocess
from optimizer.edging import decoder_says
from optimizer.faults import Exit, Fault
from passes.kit.model import Model
from tests.support.runtime import Array, model, run

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

NET = """<ir_version: 8, opset_import: ["": {opset}]> g (float[n,{c},{s}] x) => (float[n,{c}] y)
    {{ p = GlobalAveragePool(x) y = Flatten(p) }}"""
STEPS = (
    "resize=256, center-crop=224, normalize=imagenet",
    "resize=224x224, rescale=1/127.5, normalize{mean=[1], std=[1]}, nhwc->nchw",
    "resize=301, center-crop=224, bgr, to-float",
    "resize=225x228, center-crop=224",
)


def net(opset: int = 17, channels: int = 3, sides: str = "224,224") -> Model:
    return model(NET.format(opset=opset, c=channels, s=sides))


@pytest.fixture(scope="module")
def photographs() -> list[Array]:
    """Photographs, and pieces of them of odd sizes: wide, tall, small, one pixel more than a multiple."""
    from sklearn.datasets import load_sample_images

    first, second = load_sample_images().images
    return [first, second[:300, :281], first[100:401, :300], second[:37, :400], first[::3, ::3], second[:224, :224]]


@pytest.mark.parametrize("text", STEPS)
def test_on_decoded_pixels_the_graph_is_the_reference(text: str, photographs: list[Array]) -> None:
    steps = preprocess(text)
    whole = wrap(net(), steps, None)
    onnx.checker.check_model(whole.to_proto(), full_check=True)
    scale = (steps.factor or 1.0) * 255 / (min(steps.std) if steps.std else 1.0)  # of the range of pixels
    for pixels in photographs:
        wanted = pictures.apply(steps, pixels, channels_first=True)
        for optimized in (False, True):
            got = run(whole, {"pixels": pixels[None]}, ["x"], optimize=optimized)["x"][0]
            assert got.shape == wanted.shape
            assert np.abs(got - wanted).max() <= 1e-4 * scale
    both = np.stack([photographs[5], photographs[5][::-1]])
    assert run(whole, {"pixels": both})["y"].shape == (2, 3)


def test_the_reference_is_what_pipelines_on_pillow_images_do(photographs: list[Array]) -> None:
    """Beside Pillow's own 8-bit resize: nothing but its rounding to whole levels, twice, is between."""
    steps = preprocess("resize=256, center-crop=224, to-float")
    for pixels in photographs:
        image = Image.fromarray(pixels)
        short = min(image.size)
        resized = image.resize(tuple(256 * side // short for side in image.size), Image.Resampling.BILINEAR)
        left, top = (round((side - 224) / 2.0) for side in resized.size)
        wanted = np.asarray(resized.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1) / 255
        assert np.abs(pictures.apply(steps, pixels, channels_first=True) - wanted).max() <= 2 / 255


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP"])
def test_files_of_every_format_come_within_two_levels_of_the_photograph(form: str, photographs: list[Array]) -> None:
    """End to end as users do it: the file opened by Pillow, its pixels given to the graph."""
    steps = preprocess("resize=64x64, to-float")
    whole = wrap(net(sides="64,64"), steps, None)
    for pixels in photographs:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, form, **({"method": 0} if form == "WEBP" else {}))
        opened = pictures.open_pixels(stream.getvalue(), 3)
        got = run(whole, {"pixels": opened[None]}, ["x"])["x"][0]
        with Image.open(io.BytesIO(stream.getvalue())) as image:
            wanted = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)) / 255
        assert np.abs(got.transpose(1, 2, 0) - wanted).max() <= 2 / 255


def test_gray_images_and_channels_last_are_understood(photographs: list[Array]) -> None:
    steps = preprocess("gray, resize=64x64, normalize=half")
    whole = wrap(net(channels=1, sides="64,64"), steps, None)
    for pixels in photographs[:3]:
        got = run(whole, {"pixels": pixels[None]}, ["x"])["x"][0]
        assert np.abs(got - pictures.apply(steps, pixels, channels_first=True)).max() <= 4e-4
    own = wrap(net(channels=1, sides="8,8"), preprocess("to-float"), None)
    assert own.signature.inputs[0].dims == ("n", 8, 8, 1)
    last = model('<ir_version: 8, opset_import: ["": 18]> g (float[1,h,w,3] x) => (float[1,h,w,3] y) { y = Relu(x) }')
    got = run(wrap(last, preprocess("resize=50, rescale=1"), None), {"pixels": photographs[3][None]})["y"][0]
    assert np.abs(got - pictures.apply(preprocess("resize=50"), photographs[3], channels_first=False)).max() <= 0.0255


def test_an_image_from_a_file_is_decoded_inside(photographs: list[Array]) -> None:
    extensions: Any = pytest.importorskip("onnxruntime_extensions", reason="needs onnxruntime-extensions")
    steps = preprocess("decode, resize=256, center-crop=224, to-float")
    proto = wrap(net(), steps, None).to_proto()
    proto.graph.output.append(onnx.ValueInfoProto(name="x"))
    options = ort.SessionOptions()
    options.register_custom_ops_library(extensions.get_library_path())
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for form, more in (("PNG", {}), ("JPEG", {"quality": 90, "subsampling": 0})):
        for pixels in (photographs[0], photographs[3]):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, form, **more)
            (got,) = session.run(["x"], {"encoded": np.frombuffer(stream.getvalue(), np.uint8)})
            wanted = pictures.apply(steps, pictures.open_pixels(stream.getvalue(), 3), channels_first=True)
            assert np.abs(got[0] - wanted).max() <= (1e-4 if form == "PNG" else 2 / 255)


def test_the_parts_come_off_again_and_leave_the_network_as_it_was() -> None:
    subject = net()
    whole = wrap(subject, preprocess(STEPS[0]), postprocess("softmax, topk=2"))
    assert [str(p) for p in whole.signature.inputs] == ["pixels: UINT8[n, height, width, 3]"]
    assert [str(p) for p in whole.signature.outputs] == ["scores: FLOAT[n, 2]", "classes: INT64[n, 2]"]
    inside = core(whole, subject.signature.inputs, ["y"])
    assert inside.signature == subject.signature
    assert [n.op_type for n in inside.nodes()] == ["GlobalAveragePool", "Flatten"]
    x = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    assert run(inside, {"x": x})["y"].tobytes() == run(subject, {"x": x})["y"].tobytes()


SCORES = '<ir_version: 8, opset_import: ["": 17]> g (float[n,4] x) => (float[n,4] y) { y = Identity(x) }'


def test_scores_become_probabilities_classes_or_the_best_few() -> None:
    x = np.array([[1.0, 3.0, 2.0, 0.0], [0.0, -1.0, 5.0, 4.0]], np.float32)
    share = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    given = {text: run(wrap(model(SCORES), None, postprocess(text)), {"x": x})
             for text in ("softmax", "argmax", "topk=2", "softmax, topk=2", "softmax, argmax")}  # fmt: skip
    np.testing.assert_allclose(given["softmax"]["probabilities"], share, rtol=1e-6)
    assert given["argmax"]["class"].tolist() == given["softmax, argmax"]["class"].tolist() == [1, 2]
    assert given["topk=2"]["classes"].tolist() == [[1, 2], [2, 3]] and set(given["softmax, argmax"]) == {"class"}
    np.testing.assert_allclose(given["softmax, topk=2"]["scores"], np.sort(share)[:, :1:-1], rtol=1e-6)


BOXES = """<ir_version: 8, opset_import: ["": 17]>
    g (float[1,3,4] b, float[1,2,3] s) => (float[1,3,4] boxes, float[1,2,3] scores) {
    boxes = Identity(b) scores = Identity(s) }"""


def test_boxes_that_overlap_are_dropped() -> None:
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]], np.float32)
    scores = np.array([[[0.9, 0.8, 0.1], [0.0, 0.0, 0.7]]], np.float32)
    found = run(wrap(model(BOXES), None, postprocess("nms{iou=0.5, score=0.3}")), {"b": boxes, "s": scores})
    assert found["detected_boxes"].tolist() == [[0, 0, 10, 10], [20, 20, 30, 30]]
    assert found["detected_classes"].tolist() == [0, 1] and found["detected_images"].tolist() == [0, 0]
    np.testing.assert_allclose(found["detected_scores"], [0.9, 0.7])


@pytest.mark.parametrize(
    ("subject", "before", "after", "said"),
    [
        (net(), "resize=64x64", None, "the steps give 64x64, the model takes 224x224"),
        (net(), "resize=224", None, "keeps the proportions"),
        (net(channels=4), "to-float", None, "takes 4 channels"),
        (model(SCORES), "to-float", None, "0 inputs of four dimensions"),
        (model(SCORES), None, "topk=9", "which has 4 classes"),
        (model(SCORES), None, 'softmax{output="z"}', "'z' is no output of scores"),
        (model(SCORES), None, "nms", "needs outputs of boxes"),
    ],
)
def test_steps_that_do_not_fit_the_model_are_refused(
    subject: Model, before: str | None, after: str | None, said: str
) -> None:
    with pytest.raises(Fault) as caught:
        wrap(subject, preprocess(before) if before else None, postprocess(after) if after else None)
    assert caught.value.exit is Exit.USAGE and said in caught.value.message


def test_what_is_no_image_is_refused_in_one_line() -> None:
    with pytest.raises(Fault, match="cannot be read as an image"):
        pictures.open_pixels(b"not an image", 3)


def test_what_would_turn_white_in_eight_bits_is_refused() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), 30_000, np.uint16)).save(stream, "PNG")
    with pytest.raises(Fault, match="more than 8 bits per channel"):
        pictures.open_pixels(stream.getvalue(), 3)


@pytest.mark.parametrize(
    ("worst", "said"), [(44 / 255, "on 8 of your files .* up to 44 of 255"), (1 / 255, "PNG of 8")]
)
def test_a_decoder_inside_comes_with_a_warning(worst: float, said: str) -> None:
    assert re.search(said, decoder_says(worst, 8))
