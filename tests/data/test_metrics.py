"""Metrics against scikit-learn and scipy, whatever the batches and whatever the resample."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from optimizer.data.checks import from_arrays
from optimizer.data.metrics import METRICS, Metric, choose, user_metric
from optimizer.data.samples import Samples
from optimizer.data.scores import softmax
from optimizer.faults import Exit, Fault
from passes.kit.model import Port, Signature

RNG = np.random.default_rng(7)
N, C, S = 120, 7, 9
LOGITS = RNG.normal(size=(N, C)).astype(np.float32)
CLASSES = np.where(RNG.random(N) < 0.5, LOGITS.argmax(1), RNG.integers(0, C, N))
TWO = RNG.integers(0, 2, N)
SCORES = np.round(RNG.normal(size=N) + TWO, 1).astype(np.float32)  # rounded: with ties
VALUES = np.round(RNG.normal(size=N), 1)
TOKENS = RNG.normal(size=(N, S, C)).astype(np.float32)
NEXT = np.where(RNG.random((N, S)) < 0.2, -100, RNG.integers(0, C, (N, S)))


def rows(metric: Metric, output: Any, labels: Any, step: int = 32) -> np.ndarray:
    """Rows in batches, as a measurement makes them."""
    reference = metric.against == "reference"
    parts = []
    for k in range(0, len(output), step):
        batch, other = {"out": output[k : k + step]}, {"out" if reference else "y": labels[k : k + step]}
        parts.append(metric.rows(batch, {} if reference else other, other if reference else None))
    return np.concatenate(parts)


def perplexity(logits: np.ndarray, labels: np.ndarray) -> float:
    kept = labels != -100
    return float(np.exp(sk.log_loss(labels[kept], softmax(logits[kept].astype(np.float64)), labels=range(C))))


def sqnr(output: np.ndarray, reference: np.ndarray) -> float:
    return float(10 * np.log10((reference**2).sum() / ((reference - output) ** 2).sum()))


CASES: dict[str, tuple[np.ndarray, np.ndarray, Any]] = {
    "top1": (LOGITS, CLASSES, lambda o, y: sk.accuracy_score(y, o.argmax(1))),
    "top5": (LOGITS, CLASSES, lambda o, y: sk.top_k_accuracy_score(y, o, k=5, labels=range(C))),
    "f1": (LOGITS, CLASSES, lambda o, y: sk.f1_score(y, o.argmax(1), average="macro")),
    "auroc": (SCORES, TWO, lambda o, y: sk.roc_auc_score(y, o)),
    "mse": (TOKENS[..., 0], TOKENS[..., 1], lambda o, y: sk.mean_squared_error(y, o)),
    "mae": (TOKENS[..., 0], TOKENS[..., 1], lambda o, y: sk.mean_absolute_error(y, o)),
    "spearman": (SCORES, VALUES, lambda o, y: stats.spearmanr(o, y).statistic),
    "pearson": (SCORES, VALUES, lambda o, y: stats.pearsonr(o.astype(float), y).statistic),
    "perplexity": (TOKENS, NEXT, perplexity),
    "agreement": (LOGITS, LOGITS[::-1], lambda o, r: (o.argmax(1) == r.argmax(1)).mean()),
    "cosine": (LOGITS, LOGITS[::-1], lambda o, r: np.diag(sk.pairwise.cosine_similarity(o, r)).mean()),
    "sqnr": (LOGITS, LOGITS[::-1], sqnr),
}


def test_perplexity_takes_probabilities_too() -> None:
    given = softmax(TOKENS.astype(np.float64)).astype(np.float32)
    found = METRICS["perplexity"].score(rows(METRICS["perplexity"], given, NEXT))
    assert found == pytest.approx(perplexity(TOKENS, NEXT), rel=1e-5)
    sure = np.zeros((1, 2, 3), np.float32)
    sure[..., 0] = 1
    assert METRICS["perplexity"].score(rows(METRICS["perplexity"], sure, np.zeros((1, 2), int))) == 1
    wrong = METRICS["perplexity"].score(rows(METRICS["perplexity"], sure, np.ones((1, 2), int)))
    assert np.isfinite(wrong) and wrong > 1e30


def test_every_metric_is_checked() -> None:
    assert set(CASES) == set(METRICS)


@pytest.mark.parametrize("name", CASES)
def test_metric_equals_its_reference_on_all_and_on_resamples(name: str) -> None:
    output, labels, expected = CASES[name]
    found = rows(METRICS[name], output, labels)
    assert len(found) == N
    assert METRICS[name].score(found) == pytest.approx(expected(output, labels), rel=1e-5)
    picks = np.random.default_rng(0).integers(0, N, (4, N))
    weights = np.stack([np.bincount(p, minlength=N) for p in picks]).astype(float)
    for pick, score in zip(picks, METRICS[name].weighted(found, weights), strict=True):
        assert score == pytest.approx(expected(output[pick], labels[pick]), rel=1e-5)
        assert METRICS[name].score(found[pick]) == pytest.approx(score, rel=1e-9)


@pytest.mark.parametrize("name", ["f1", "auroc"])
def test_classes_that_a_resample_lacks_do_not_count(name: str) -> None:
    found = rows(METRICS[name], softmax(LOGITS.astype(float)), CLASSES)
    few = np.isin(CLASSES, (0, 1, 2)) & np.isin(LOGITS.argmax(1), (0, 1, 2))
    score = METRICS[name].weighted(found, few[None].astype(float))[0]
    if name == "f1":
        expected = sk.f1_score(CLASSES[few], LOGITS[few].argmax(1), average="macro")
    else:
        probabilities = softmax(LOGITS[few].astype(float))
        expected = np.mean([sk.roc_auc_score(CLASSES[few] == c, probabilities[:, c]) for c in (0, 1, 2)])
    assert score == pytest.approx(expected)


def test_auroc_of_many_classes_is_one_versus_rest_of_probabilities() -> None:
    expected = sk.roc_auc_score(CLASSES, softmax(LOGITS.astype(float)), multi_class="ovr")
    for output in (LOGITS, softmax(LOGITS.astype(float))):
        assert METRICS["auroc"].score(rows(METRICS["auroc"], output, CLASSES)) == pytest.approx(expected, rel=1e-6)
    two = np.stack([-SCORES, SCORES], axis=1)
    expected = sk.roc_auc_score(TWO, SCORES)
    assert METRICS["auroc"].score(rows(METRICS["auroc"], two, TWO)) == pytest.approx(expected)


def test_label_forms_give_the_same_rows() -> None:
    plain = rows(METRICS["top1"], LOGITS, CLASSES)
    assert np.array_equal(rows(METRICS["top1"], LOGITS, CLASSES[:, None]), plain)
    assert np.array_equal(rows(METRICS["top1"], LOGITS, np.eye(C, dtype=np.int64)[CLASSES]), plain)
    assert set(np.unique(plain)) == {0.0, 1.0}


def test_tokens_count_each_by_itself() -> None:
    kept = NEXT != -100
    found = rows(METRICS["top1"], TOKENS, NEXT)
    assert METRICS["top1"].score(found) == pytest.approx((TOKENS.argmax(-1) == NEXT)[kept].mean())
    assert not METRICS["top1"].outcomes(found)
    agreed = rows(METRICS["agreement"], TOKENS, TOKENS[::-1])
    assert METRICS["agreement"].score(agreed) == pytest.approx((TOKENS.argmax(-1) == TOKENS[::-1].argmax(-1)).mean())


def test_models_that_put_out_labels_are_scored_by_equality() -> None:
    words = np.array(["cat", "dog", "eel"])
    output, label = words[CLASSES % 3].astype(object), words[CLASSES[::-1] % 3]
    for name in ("top1", "agreement"):
        assert METRICS[name].score(rows(METRICS[name], output, label)) == pytest.approx((output == label).mean())
    expected = sk.f1_score(label, output.astype(str), average="macro")
    assert METRICS["f1"].score(rows(METRICS["f1"], output, label)) == pytest.approx(expected)
    with pytest.raises(Fault, match="text"):
        METRICS["top1"].rows({"out": output}, {"y": CLASSES})


def test_lists_of_maps_are_read_as_class_scores_and_others_are_no_crash() -> None:
    maps = [{k: float(p) for k, p in enumerate(row)} for row in softmax(LOGITS.astype(float))]
    outputs = {"output_label": LOGITS.argmax(1), "output_probability": maps}
    ports = (Port("output_label", "INT64", ("N",)), Port("output_probability", "map", None))
    assert choose(None, ports, data(CLASSES)).output == "output_label"
    metric = choose("auroc", ports, data(CLASSES))
    assert metric.output == "output_probability"
    expected = sk.roc_auc_score(CLASSES, softmax(LOGITS.astype(float)), multi_class="ovr")
    assert metric.score(metric.rows(outputs, {"labels": CLASSES})) == pytest.approx(expected)
    with pytest.raises(Fault, match="no output is a tensor"):
        METRICS["mse"].rows({"s": [LOGITS]}, {"y": VALUES})


def test_a_model_that_gives_nan_is_wrong_not_lucky() -> None:
    broken = LOGITS.copy()
    broken[:, 0] = np.nan
    for name in ("top1", "top5"):
        assert METRICS[name].score(rows(METRICS[name], broken, CLASSES)) == 0
    assert METRICS["agreement"].score(rows(METRICS["agreement"], broken, LOGITS)) == 0
    assert np.isnan(METRICS["mse"].score(rows(METRICS["mse"], broken, LOGITS)))
    assert np.isnan(METRICS["spearman"].score(rows(METRICS["spearman"], np.full(N, np.nan), VALUES)))


def test_cosine_looks_at_the_worst_output_and_pools_single_values() -> None:
    fine = {"a": LOGITS, "b": LOGITS}
    hurt = {"a": LOGITS, "b": LOGITS[::-1]}
    metric = choose("cosine", (Port("a", "FLOAT", (None, C)), Port("b", "FLOAT", (None, C))), data())
    assert metric.score(metric.rows(fine, {}, fine)) == pytest.approx(1)
    assert metric.score(metric.rows(hurt, {}, fine)) < 0.9
    single = choose(None, (Port("a", "FLOAT", (None, 1)),), data())
    found = single.score(single.rows({"a": SCORES[:, None]}, {}, {"a": VALUES[:, None]}))
    assert found == pytest.approx(float(SCORES @ VALUES) / np.sqrt((SCORES**2).sum() * (VALUES**2).sum()), rel=1e-5)


def test_no_noise_is_a_finite_number_of_decibels() -> None:
    assert METRICS["sqnr"].score(rows(METRICS["sqnr"], LOGITS, LOGITS)) == 200


# -- users' functions --------------------------------------------------------------------------------------------
def test_a_function_of_one_value_per_sample_is_a_mean() -> None:
    metric = user_metric("m:f", lambda o, y: o["out"].argmax(1) == y["y"])
    found = metric.rows({"out": LOGITS}, {"y": CLASSES})
    assert found.shape == (N, 1) and metric.outcomes(found)
    assert metric.score(found) == pytest.approx((LOGITS.argmax(1) == CLASSES).mean())


def test_a_function_of_one_number_is_called_without_each_group() -> None:
    calls: list[int] = []

    def macro(outputs: dict[str, Any], labels: dict[str, Any]) -> float:
        calls.append(len(labels["y"]))
        return float(sk.f1_score(labels["y"], outputs["out"].argmax(1), average="macro"))

    metric = user_metric("m:f", macro)
    found = metric.rows({"out": LOGITS}, {"y": CLASSES})
    assert calls == [N] + [N - N // 20] * 20
    assert metric.grouped(found)
    assert metric.score(found) == pytest.approx(sk.f1_score(CLASSES, LOGITS.argmax(1), average="macro"))


def test_a_function_that_fails_or_returns_something_else_is_named() -> None:
    with pytest.raises(Fault, match=r"metric m:f failed: KeyError") as caught:
        user_metric("m:f", lambda o, y: y["missing"]).rows({"out": LOGITS}, {"y": CLASSES})
    assert caught.value.exit is Exit.BAD_INPUT
    with pytest.raises(Fault, match=r"returned \[3\] values for 120 samples"):
        user_metric("m:f", lambda o, y: np.zeros(3)).rows({"out": LOGITS}, {"y": CLASSES})


# -- choosing ----------------------------------------------------------------------------------------------------
def data(labels: Any = None, **more: Any) -> Samples:
    n = len(labels) if labels is not None else next((len(v) for v in more.values()), N)
    arrays = {"x": np.zeros((n, 2), np.float32), **more, **({} if labels is None else {"labels": labels})}
    return from_arrays(arrays, (Port("x", "FLOAT", ("n", 2)),))


LOGIT_PORT, TOKEN_PORT = Port("logits", "FLOAT", ("n", C)), Port("logits", "FLOAT", ("n", "s", C))
ONE_PORT, BOX_PORT = Port("score", "FLOAT", ("n", 1)), Port("boxes", "FLOAT", ("n", "k", 4))

DEFAULTS: list[tuple[tuple[Port, ...], Samples | None, str]] = [
    ((LOGIT_PORT,), data(CLASSES), "top1"),
    ((LOGIT_PORT,), data(CLASSES[:, None].astype(np.int32)), "top1"),
    ((LOGIT_PORT,), data(np.eye(C, dtype=int)[CLASSES]), "top1"),
    ((BOX_PORT, LOGIT_PORT), data(CLASSES), "top1"),
    ((Port("label", "STRING", ("n",)),), data(np.array(["a", "b"] * 60)), "top1"),
    ((TOKEN_PORT,), data(NEXT), "perplexity"),
    ((ONE_PORT,), data(TWO), "auroc"),
    ((ONE_PORT,), data(CLASSES), "mse"),
    ((ONE_PORT,), data(VALUES), "mse"),
    ((Port("image", "FLOAT", ("n", 3, "h", "w")),), data(np.zeros((4, 3, 8, 8), np.float32)), "mse"),
    ((LOGIT_PORT,), data(), "agreement"),
    ((LOGIT_PORT,), None, "agreement"),
    ((Port("label", "INT64", (None,)),), data(), "agreement"),
    ((TOKEN_PORT,), data(), "cosine"),
    ((ONE_PORT,), data(), "cosine"),
    ((BOX_PORT, Port("masks", "FLOAT", ("n", "k", 8, 8))), data(), "cosine"),
]


@pytest.mark.parametrize(("outputs", "samples", "name"), DEFAULTS)
def test_default_metric(outputs: tuple[Port, ...], samples: Samples | None, name: str) -> None:
    assert choose(None, outputs, samples).name == name
    assert choose(None, Signature((), outputs), samples).name == name


def test_the_label_and_output_that_fit_are_used() -> None:
    metric = choose(None, (BOX_PORT, LOGIT_PORT), data(y=CLASSES, extra=np.zeros((N, 3))))
    assert (metric.label, metric.output) == ("y", "logits")
    named = choose("top1:aux", (LOGIT_PORT, Port("aux", "FLOAT", ("n", C))), data(CLASSES))
    assert (named.name, named.base, named.output) == ("top1:aux", "top1", "aux")


def test_labels_that_no_metric_can_use_are_said() -> None:
    metric = choose(None, (LOGIT_PORT,), data(CLASSES + 1))
    assert metric.name == "agreement"
    assert metric.note == "labels are not used: labels 'labels' run from 1 to 7, but output 'logits' has 7 classes"
    assert not choose(None, (LOGIT_PORT,), data(CLASSES)).note and not choose(None, (LOGIT_PORT,), data()).note


REFUSED: list[tuple[str, tuple[Port, ...], Samples | None, str]] = [
    ("topp1", (LOGIT_PORT,), data(CLASSES), "Did you mean 'top1'?"),
    ("top1:logit", (LOGIT_PORT,), data(CLASSES), "Did you mean 'logits'?"),
    ("top1", (LOGIT_PORT,), data(), "needs labels, and the data has none"),
    ("top1", (LOGIT_PORT,), data(VALUES), "are not one class per sample"),
    ("top1", (ONE_PORT,), data(CLASSES), "no output is [N, C]"),
    ("top1", (LOGIT_PORT,), data(CLASSES + 1), "run from 1 to 7, but output 'logits' has 7 classes"),
    ("top5", (Port("o", "FLOAT", ("n", 4)),), data(CLASSES % 4), "always among the first five"),
    ("auroc", (LOGIT_PORT,), data(np.zeros(N, int)), "one class only"),
    ("perplexity", (LOGIT_PORT,), data(CLASSES), "not one whole number per token"),
    ("perplexity", (TOKEN_PORT,), data(np.full((4, S), -100)), "no token is scored"),
    ("perplexity", (TOKEN_PORT,), data(np.full((4, S), C)), "has 7 classes"),
    ("mse", (LOGIT_PORT,), data(VALUES), "no float output has the shape"),
    ("cosine", (Port("l", "INT64", ("n",)),), data(), "needs a float output"),
]


@pytest.mark.parametrize(("spec", "outputs", "samples", "words"), REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(
    spec: str, outputs: tuple[Port, ...], samples: Samples | None, words: str
) -> None:
    with pytest.raises(Fault) as caught:
        choose(spec, outputs, samples)
    assert words in str(caught.value)
    assert caught.value.exit is Exit.USAGE


def test_no_numpy_warnings_reach_people() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, (output, labels, _) in CASES.items():
            found = rows(METRICS[name], output, labels)
            METRICS[name].score(found[:1])
            METRICS[name].weighted(found, np.zeros((1, N)))
