"""The text of steps: what it means, and one clear line for everything that it cannot mean."""

from __future__ import annotations

import pytest

from optimizer.boundary.text import ORDER, postprocess, preprocess
from optimizer.faults import Exit, Fault


def test_a_text_says_what_is_done() -> None:
    found = preprocess("resize=256, center-crop=224, normalize=imagenet")
    assert (found.shorter, found.crop, found.factor, found.gives) == (256, (224, 224), 1 / 255, (224, 224))
    assert found.mean == (0.485, 0.456, 0.406) and len(found.std) == 3
    own = preprocess(
        "decode, resize=200x300,center-crop=100x 120, bgr, rescale=2, normalize{mean=[1, 2, 3.5], std=[4, 5, 6]}"
    )
    assert (own.decode, own.size, own.crop, own.bgr, own.factor) == (True, (200, 300), (100, 120), True, 2.0)
    assert (own.mean, own.std) == ((1.0, 2.0, 3.5), (4.0, 5.0, 6.0))
    assert preprocess("to-float, nhwc->nchw").channels_first and preprocess("to-float").channels_first is None
    assert preprocess("gray, normalize=half").gray and preprocess("bgr").factor is None
    assert [s.name for s in postprocess("softmax, topk=5").steps] == ["softmax", "topk"]
    assert postprocess('nms{iou=0.5, score=0, boxes="b", center=true}').steps[0].options["center"] is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no step"),
        ("resise=256", "no step 'resise'"),
        ("decode=some", "'decode=some' is not known"),
        ("resize", "'resize' needs a size"),
        ("resize=0", "'resize' needs a size"),
        ("resize=99999999", "'resize' needs a size up to"),
        ("resize=1x2x3", "'resize' needs a size"),
        ("resize==3", "is no step"),
        ("center-crop=224", "needs an image at least as large"),
        ("resize=200x300, center-crop=224", "needs an image at least as large"),
        ("normalize=imagenet, resize=256", "'resize' cannot come after 'normalize'"),
        ("resize=256, resize=224", "stands there twice"),
        ("normalize", "needs a name, or mean and std"),
        ("normalize=imagnet", "no statistics 'imagnet'"),
        ("normalize{mean=[0.5]}", "needs a name, or mean and std"),
        ("normalize{mean=[0.5], std=[0]}", "std above 0"),
        ("normalize{mean=[0.5, 1], std=[1, 1]}", "has 2 means"),
        ("normalize{mean=['a'], std=[1]}", "must be numbers"),
        ("normalize{mean=[0.5, std=[1]}", "cannot be read"),
        ("rescale=x/255", "'rescale' needs a number"),
        ("rescale=1/0", "'rescale' needs a number"),
        ("to-float, rescale=1/255", "the same step"),
        ("to-float=3", "takes no value"),
        ("gray, bgr", "no channels"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_fault_that_names_it(text: str, said: str) -> None:
    with pytest.raises(Fault) as caught:
        preprocess(text)
    assert caught.value.exit is Exit.USAGE and said in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("softmaks", "no step 'softmaks'"),
        ("argmax, softmax", "'softmax' cannot come after 'argmax'"),
        ("softmax, nms", "'nms' cannot come after 'softmax'"),
        ("topk", "'topk' needs a number"),
        ("topk=-1", "must be a int"),
        ("topk=0", "'topk' needs a number"),
        ("nms{iou=2}", "'nms' needs iou"),
        ("nms{ion=0.5}", "no option 'ion'"),
        ("softmax=3", "takes no value"),
        ("nms{iou=true}", "must be a float"),
    ],
)
def test_the_same_holds_after_the_network(text: str, said: str) -> None:
    with pytest.raises(Fault) as caught:
        postprocess(text)
    assert caught.value.exit is Exit.USAGE and said in caught.value.message


def test_the_faults_name_the_flag_and_the_order() -> None:
    with pytest.raises(Fault) as caught:
        preprocess("to-float, resize=3")
    assert str(caught.value).startswith("--preprocess 'to-float, resize=3': ")
    assert all(step in caught.value.hint for step in ORDER)
