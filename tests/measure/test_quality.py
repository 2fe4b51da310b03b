"""Quality by sample: what is remembered is remembered for what it depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.data.checks import from_arrays
from optimizer.data.metrics import METRICS, user_metric
from optimizer.faults import Fault
from optimizer.measure import quality
from optimizer.measure.quality import Judge
from optimizer.measure.scales import Scales, Weighed
from optimizer.runtime.sessions import Site
from optimizer.store.store import Store
from tests.support.runtime import model

SITE = Site("CPUExecutionProvider", 1, "test")
TEXT = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) { y = Mul(x, w) }'
WEIGHTS = {"a": [1, 1, 1, 1], "b": [1, 1, 1, -1], "c": [1, -1, -1, -1]}


def test_rows_are_remembered_by_reference_and_by_the_code_that_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    models = {name: model(TEXT, w=np.array(w, np.float32)) for name, w in WEIGHTS.items()}
    paths = {name: store.put_model(m) for name, m in models.items()}
    samples = from_arrays({"x": np.ones((3, 4), np.float32)}, models["a"].signature.inputs)
    judge = Judge(METRICS["cosine"], samples, SITE, store, paths["a"])

    def score(of: str, reference: str) -> float:
        rows = replace(judge, reference=paths[reference]).rows(paths[of], models[of].digest())
        return METRICS["cosine"].score(rows)

    assert score("b", "a") == pytest.approx(0.5)
    assert score("b", "b") == pytest.approx(1.0)
    assert score("b", "c") == pytest.approx(0.0, abs=1e-6)
    monkeypatch.setattr(Judge, "_batch_by_batch", lambda self, path: np.array([[4.0, 4.0, 4.0]]))
    assert score("b", "a") == pytest.approx(0.5), "from the store"
    monkeypatch.setattr(quality, "scoring_code", lambda: "other")
    assert score("b", "a") == pytest.approx(1.0)


def test_a_source_whose_quality_is_no_number_judges_nothing(tmp_path: Path) -> None:
    store, source = Store(tmp_path), model(TEXT, w=np.array(WEIGHTS["a"], np.float32))
    samples = from_arrays({"x": np.ones((3, 4), np.float32)}, source.signature.inputs)
    baseline = Weighed(store.put_model(source), source.digest(), 1)
    scales = Scales(baseline, SITE, store, {}, 0, "journal", user_metric("m:f", lambda outputs, labels: np.nan))
    with pytest.raises(Fault, match="the metric 'm:f' gives nan for the source model"):
        scales.quality(baseline, samples)
    with pytest.raises(Fault, match="the metric 'evaluator' gives nan for the source model"):
        replace(scales, evaluator=lambda path: np.nan).quality(baseline, samples)
