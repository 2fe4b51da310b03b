"""Two models on the same samples: published examples, scipy and statsmodels agree, and slices cry wolf seldom."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as sp

from optimizer.data.checks import from_arrays
from optimizer.data.metrics import METRICS, Metric
from optimizer.data.samples import Samples
from optimizer.faults import Fault
from optimizer.measure.exact import holm, mcnemar
from optimizer.measure.paired import all_against_first, compare, ranked, slices_of
from optimizer.measure.stats import USUAL_SHARE, DropEstimate, detectable, detectable_by, exact_drop, samples_for
from passes.kit.model import Port

TOP1, MSE = METRICS["top1"], METRICS["mse"]
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def outcomes(lost: int, won: int, n: int) -> tuple[Array, Array]:
    """0/1 rows of two models: the first ``lost`` samples only the first gets right, then ``won`` only the second."""
    base, mine = np.ones((n, 1)), np.ones((n, 1))
    mine[:lost], base[lost : lost + won] = 0, 0
    return base, mine


# -- published examples ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lost", "won", "p", "source"),
    [
        (9, 2, 0.06543, "Fay 2010, Biostatistics 11:373, the exact McNemar test of his exact2x2"),
        (150, 86, 3.7e-05, "Agresti 2002, table 10.1, approval of a prime minister: chi square 17.36"),
        (0, 0, 1.0, "nothing differs"),
    ],
)
def test_mcnemar_as_published(lost: int, won: int, p: float, source: str) -> None:
    assert mcnemar(lost, won)[0] == pytest.approx(p, rel=0.02), source
    assert mcnemar(won, lost)[0] == pytest.approx(p, rel=0.02)


@pytest.mark.parametrize(("lost", "won"), [(9, 2), (2, 9), (150, 86), (1, 0), (0, 7), (5, 5)])
def test_mcnemar_agrees_with_scipy_and_statsmodels(lost: int, won: int) -> None:
    both, worse = mcnemar(lost, won)
    assert both == pytest.approx(sp.binomtest(lost, lost + won).pvalue)
    assert worse == pytest.approx(sp.binomtest(lost, lost + won, alternative="greater").pvalue)
    tables = pytest.importorskip("statsmodels.stats.contingency_tables", reason="statsmodels is missing")
    assert both == pytest.approx(tables.mcnemar([[10, lost], [won, 10]], exact=True).pvalue)


def test_holm_as_published() -> None:
    """Holm 1979; these four are the usual textbook example."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is missing")
    values = np.random.default_rng(0).random(20) ** 3
    assert holm(list(values)) == pytest.approx(list(multitest.multipletests(values, method="holm")[1]))


def test_what_samples_can_show_agrees_with_statsmodels() -> None:
    """A mean of differences with variance p, one-sided at 5 %, 80 % power: the one-sample z-test."""
    z = sp.norm.ppf(0.95) + sp.norm.ppf(0.8)
    assert detectable(2000, 0.03) == pytest.approx(z * math.sqrt(0.03 / 2000))
    power = pytest.importorskip("statsmodels.stats.power", reason="statsmodels is missing")
    drop = detectable(2000, 0.03)
    assert power.normal_sample_size_one_tail(drop, 0.8, 0.05, std_null=math.sqrt(0.03)) == pytest.approx(2000)


# -- planning ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("margin", [0.05, 0.01, 0.004, 0.0005])
def test_as_many_samples_as_are_asked_for_show_it(margin: float) -> None:
    wanted = samples_for(margin)
    assert wanted is not None and detectable(wanted, USUAL_SHARE) <= margin < detectable(wanted - 1, USUAL_SHARE)
    assert samples_for(0.0) is None and samples_for(1e-9) is None


def test_a_drop_that_can_be_shown_mostly_is() -> None:
    n, differ = 800, 0.06
    drop, rng = detectable(n, differ), np.random.default_rng(0)
    chances = [(differ + drop) / 2, (differ - drop) / 2, 1 - differ]
    shown = [mcnemar(int(b), int(c))[1] <= 0.05 for b, c, _ in rng.multinomial(n, chances, size=2000)]
    assert 0.70 <= np.mean(shown) <= 0.88


def test_after_the_run_the_spread_that_was_seen_counts() -> None:
    assert detectable_by(exact_drop(12, 8, 500)) == pytest.approx(detectable(500, 0.04))
    by_spread = DropEstimate(0.1, 0, 0.2, 0.1 + sp.norm.ppf(0.95) * 0.02, 0.05, 100, "")
    assert detectable_by(by_spread) == pytest.approx(0.02 * (sp.norm.ppf(0.95) + sp.norm.ppf(0.8)))
    assert detectable_by(DropEstimate.of_numbers(0.5, 0.4)) is None


# -- pairs and slices --------------------------------------------------------------------------------------------------
def test_flips_are_counted_both_ways() -> None:
    found = compare("b", "cpu", TOP1, *outcomes(6, 4, 200), seed=0)
    assert (found.lost, found.won, found.flip_rate) == (6, 4, 0.05)
    assert found.drop.value == pytest.approx(0.01) and found.p == pytest.approx(sp.binomtest(6, 10).pvalue)
    assert not found.slices and found.detectable == pytest.approx(detectable(200, 0.05))


def test_the_slice_that_is_worse_is_found() -> None:
    base, mine = outcomes(12, 0, 400)
    cut = np.where(np.arange(400) < 40, "night", np.where(np.arange(400) % 2, "day", "dusk"))
    found = compare("b", "cpu", TOP1, base, mine, 0, ("light", cut))
    worst = found.slices[0]
    assert (worst.name, worst.lost, worst.won, worst.samples) == ("night", 12, 0, 40)
    assert worst.p == pytest.approx(3 * 2.0**-12) and found.looks == 3 and found.sliced_by == "light"
    assert found.slices[1].p == 1.0


def test_among_many_slices_none_is_called_worse_by_chance() -> None:
    alarms, rng = 0, np.random.default_rng(0)
    for _ in range(100):
        lost, won, n = 60, 60, 1000
        base, mine = outcomes(lost, won, n)
        found = ranked(TOP1, base, mine, rng.integers(0, 50, n).astype(str), 0)
        alarms += found[0][2] <= 0.05 and len(found) == 50
    assert alarms <= 0.05 * 100 + 6


def test_other_metrics_have_slices_too() -> None:
    rng = np.random.default_rng(0)
    base = rng.gamma(2.0, size=(300, 1))
    cut = np.repeat(["a", "b", "c"], 100)
    mine = base + np.where(cut == "b", 0.3, 0.0)[:, None] + rng.normal(scale=0.05, size=(300, 1))
    found = compare("b", "cpu", MSE, base, mine, 0, ("part", cut))
    assert (
        found.slices[0].name == "b"
        and found.slices[0].p < 0.01
        and found.slices[0].drop.value == pytest.approx(0.3, abs=0.03)
    )
    assert found.lost is None and found.p is None and found.flip_rate is None
    assert found.slices[1].p > 0.05


# -- what is cut by what -----------------------------------------------------------------------------------------------
def samples(**arrays: np.ndarray) -> Samples:
    return from_arrays({"x": np.zeros((6, 2), np.float32), **arrays}, (Port("x", "FLOAT", ("n", 2)),))


def fitted(label: str) -> Metric:
    from dataclasses import replace

    return replace(TOP1, label=label)


def test_classes_unless_an_array_is_named() -> None:
    data = samples(labels=np.array([0, 1, 2, 0, 1, 2]), region=np.array(list("aabbcc")), pair=np.zeros((6, 2)))
    assert slices_of(data, fitted("labels"), None)[1].tolist() == list("012012")  # type: ignore[index]
    assert slices_of(data, MSE, None) is None
    named = slices_of(data, MSE, "region")
    assert named is not None and named[0] == "region" and named[1].tolist() == list("aabbcc")
    with pytest.raises(Fault, match=r"no array 'regoin'.*region"):
        slices_of(data, MSE, "regoin")
    with pytest.raises(Fault, match="one value per sample"):
        slices_of(data, MSE, "pair")


def test_only_the_same_samples_are_paired() -> None:
    base, mine = outcomes(1, 0, 6)
    data, metric = samples(labels=np.array([0, 1, 2, 0, 1, 2])), fitted("labels")
    judged = {
        ("a", "cpu"): (metric, data, base),
        ("b", "cpu"): (metric, data, mine),
        ("c", "cpu"): (metric, data, mine[:3]),
        ("b", "cuda"): (metric, data, mine),
    }
    found = all_against_first(judged, "a", 0, None)
    assert [(f.model, f.provider, f.lost) for f in found] == [("b", "cpu", 1)]
