"""Metrics: one value for a whole data set, kept as rows per sample so that any resample can be scored again."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from optimizer.data import scores
from optimizer.data.checks import closest, listed
from optimizer.data.samples import Array, Samples
from optimizer.data.scores import Unfit
from optimizer.data.seen import SeenLabel, floating, output_for, see_labels
from optimizer.faults import Fault, bad_input, usage
from passes.kit.model import Port, Signature

Outputs = Mapping[str, Any]
RowsOf = Callable[[Array, Array], Array]
Combine = Callable[[Array, Array], Array]
UserFunction = Callable[[dict[str, Any], dict[str, Array]], Any]

GROUPS = 20
"""Into how many groups samples are put when a user's function gives only one number for all of them."""


@dataclass(frozen=True)
class Metric:
    """How quality is measured.

    Attributes:
        name: As a user types it: ``top1``, ``top1:logits``, ``package.module:function``.
        higher_is_better: Direction; a drop is positive when the model got worse.
        unit: What one unit of the value is, for people.
        against: ``labels`` or ``reference`` (the source model's outputs on the same samples).
        points: The value lives on a scale up to 1, so that ``1%`` means one point, 0.01.
        binary: Rows of one column hold 0/1 outcomes; intervals can then be exact.
        whole: ``rows`` must be given all samples of a split in one call.
        output: The output that is scored; None picks the first that fits.
        label: The label array that is used; None picks the first.
        function: A user's own function, which measures in place of ``measure``.
        note: What people should know of the choice of this metric.
    """

    name: str
    higher_is_better: bool
    unit: str
    against: str
    measure: RowsOf
    combine: Combine
    points: bool = True
    binary: bool = False
    whole: bool = False
    output: str | None = None
    label: str | None = None
    function: UserFunction | None = None
    note: str = ""

    @property
    def word(self) -> str:
        """The name of a user's function without its module; otherwise as :attr:`base`."""
        return self.name.split(":")[1] if self.function and ":" in self.name else self.base

    @property
    def base(self) -> str:
        """The name without an output's name."""
        return self.name if self.function else self.name.partition(":")[0]

    def rows(self, outputs: Outputs, labels: Mapping[str, Array], reference: Outputs | None = None) -> Array:
        """What a batch contributes: float64 [n, k], one row per sample (see :mod:`optimizer.data.scores`).

        ``reference`` holds the source model's outputs for the same samples when ``against`` is ``reference``.
        Rows of several batches are joined with :func:`numpy.concatenate`. Raises :class:`Fault` (BAD_INPUT) when
        outputs and labels do not fit together.
        """
        if self.function is not None:
            return _user_rows(self.name, self.function, outputs, labels)
        try:
            if self.against == "reference":
                if reference is None:
                    raise Unfit("it compares with the source model, whose outputs were not given")
                return self._against_reference(outputs, reference)
            target = labels.get(self.label or "") if self.label else next(iter(labels.values()), None)
            if target is None:
                raise Unfit(f"there are no labels{f' named {self.label!r}' if self.label else ''}")
            return self.measure(_array(outputs, self.output, self.measure), target)
        except Unfit as unfit:
            hint = "Choose another metric, or name the output to score, as in top1:logits"
            raise bad_input(f"metric {self.name}: {unfit}", hint=hint, code="metric-unfit") from None

    def _against_reference(self, outputs: Outputs, reference: Outputs) -> Array:
        if self.output is not None or self.measure is not scores.cosine_rows:
            name = self.output or _first(reference, self.measure)
            return self.measure(_array(outputs, name, self.measure), _array(reference, name, self.measure))
        # Without a named output the worst of all float outputs speaks for the sample: the first alone would hide
        # damage to the others.
        names = [n for n, v in reference.items() if isinstance(v, np.ndarray) and floating(v.dtype) and v.ndim]
        if not names:
            raise Unfit("there is no float output")
        each = [self.measure(_array(outputs, n, self.measure), _array(reference, n, self.measure)) for n in names]
        stacked = np.stack([e for e in each if len(e) == len(each[0])])
        cosines = np.stack([[scores.mean_cosine(r[None], np.ones((1, 1)))[0] for r in e] for e in stacked])
        return np.asarray(stacked[cosines.argmin(axis=0), np.arange(stacked.shape[1])])

    def score(self, rows: Array) -> float:
        """The value over ``rows`` [n, k] (any subset or repetition of them)."""
        return float(self.weighted(rows, np.ones((1, len(rows))))[0])

    def weighted(self, rows: Array, weights: Array) -> Array:
        """Scores [b] when row i counts ``weights[:, i]`` times; weights float64 [b, n]."""
        if self.grouped(rows):
            return np.full(len(weights), rows[0, 0])
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # NaN is an answer: no score for these
            return self.combine(rows, weights)

    def grouped(self, rows: Array) -> bool:
        """Rows are (score of all, score without this group of samples): only a jackknife applies."""
        return self.whole and rows.shape[1] == 2

    def outcomes(self, *row_sets: Array) -> bool:
        """Whether all these rows are 0/1 outcomes of single samples."""
        return self.binary and all(r.shape[1] == 1 and bool(np.isin(r, (0.0, 1.0)).all()) for r in row_sets)


def _metric(name: str, measure: RowsOf, combine: Combine, **more: Any) -> Metric:
    settings = {"higher_is_better": True, "unit": "fraction", "against": "labels", **more}
    return Metric(name=name, measure=measure, combine=combine, **settings)


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        _metric("top1", scores.top_rows, scores.mean, binary=True),
        _metric("top5", partial(scores.top_rows, k=5), scores.mean, binary=True),
        _metric("f1", scores.f1_rows, scores.macro_f1),
        _metric("auroc", scores.auroc_rows, scores.area),
        _metric("mse", scores.squared_rows, scores.mean, higher_is_better=False, unit="squared", points=False),
        _metric("mae", scores.absolute_rows, scores.mean, higher_is_better=False, unit="absolute", points=False),
        _metric("spearman", scores.pair_rows, scores.rank_correlation, unit="correlation"),
        _metric("pearson", scores.pair_rows, scores.correlation, unit="correlation"),
        _metric(
            "perplexity",
            scores.perplexity_rows,
            scores.exp_mean,
            higher_is_better=False,
            unit="perplexity",
            points=False,
        ),
        _metric("agreement", scores.agreement_rows, scores.mean, binary=True, against="reference"),
        _metric("cosine", scores.cosine_rows, scores.mean_cosine, unit="cosine", against="reference"),
        _metric("sqnr", scores.sqnr_rows, scores.decibels, unit="dB", points=False, against="reference"),
    )
}
"""Every built-in metric by name."""


DIRECTIONS = {"lower": False, "higher": True}
"""What a user's metric may end with, and whether a higher value is then better."""

ERRORS = frozenset(
    "error errors err loss losses mae mse rmse mape nll wer cer eer fid perplexity ppl distance divergence".split()  # noqa: SIM905
)
"""Words that a user's function where less is better is called by."""


def user_spec(spec: str) -> tuple[str, bool]:
    """``module:function``, or ``module:function:lower``: the function, and whether a higher value is better.

    Raises a usage :class:`Fault` for a name that speaks of errors and gives no direction: taken for a score, a model
    that got worse would seem better.
    """
    function, _, ending = spec.rpartition(":")
    if ending in DIRECTIONS and ":" in function:
        return function, DIRECTIONS[ending]
    words = re.findall(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]+", ending)
    if found := [w for w in words if w.lower() in ERRORS]:
        hint = f"Write {spec}:lower, or {spec}:higher if more is better"
        where = f"--metric {spec}"
        raise usage(f"'{found[0]}' sounds as if less were better", where=where, hint=hint, code="bad-metric")
    return spec, True


def user_metric(name: str, function: UserFunction, *, higher_is_better: bool = True) -> Metric:
    """A user's ``function(outputs, labels)`` over dicts of arrays that returns a number or one value per sample.

    It is called with all samples of a split. One value per sample is averaged; one number is taken as it is, and the
    function is called again without each of 20 groups of samples, which gives the interval (delete-a-group
    jackknife). ``points`` is off: a ``1%`` budget is relative to the source's value.
    """
    return Metric(
        name, higher_is_better, "user", "labels", scores.pair_rows, scores.mean, points=False, binary=True, whole=True,
        function=function,
    )  # fmt: skip


def choose(
    spec: str | None,
    model: Signature | tuple[Port, ...],
    samples: Samples | None,
    *,
    function: UserFunction | None = None,
) -> Metric:
    """The metric that ``spec`` names, or the default for these outputs and data.

    Args:
        spec: ``None``, a built-in name, ``name:output``, or ``module:function`` (see :func:`user_spec`) together with
            ``function``.
        model: The model's signature, or its outputs alone.
        samples: The data; None when there is none.
        function: The wrapped function that ``spec`` names, returning a number or one value per sample.

    Default: integer labels with an [N, S, C] output -> perplexity; with [N, C] -> top1 (also for models that put out
    labels themselves); 0/1 labels with one float per sample -> auroc; other numbers -> mse; without usable labels
    agreement for [N, C] or label outputs, else cosine.

    Raises :class:`Fault` (USAGE) for unknown names and for a metric that does not fit the data, with the reason.
    """
    outputs = model.outputs if isinstance(model, Signature) else model
    labels = see_labels(samples) if samples is not None else []
    if spec is None:
        return _default(outputs, labels)
    if function is not None:
        return user_metric(spec, function, higher_is_better=user_spec(spec)[1])
    name, _, wanted = spec.partition(":")
    if name not in METRICS:
        raise _unknown(spec, name)
    metric = METRICS[name]
    if wanted and wanted not in [p.name for p in outputs]:
        names = [p.name for p in outputs]
        hint = closest(wanted, names) or f"Outputs: {listed(names)}"
        raise usage(f"the model has no output '{wanted}'", where=f"--metric {spec}", hint=hint, code="unknown-output")
    candidates = tuple(p for p in outputs if not wanted or p.name == wanted)
    try:
        return _fitted(metric, candidates, labels, spec, named=bool(wanted))
    except Unfit as unfit:
        hint = "Choose another metric, or leave --metric out for the one that fits"
        raise usage(f"{name} does not fit: {unfit}", where=f"--metric {spec}", hint=hint, code="metric-unfit") from None


def _unknown(spec: str, name: str) -> Fault:
    hint = closest(name, list(METRICS)) or f"Known: {', '.join(METRICS)}, or module:function"
    return usage(f"unknown metric '{spec}'", where="--metric", hint=hint, code="unknown-metric")


def _fitted(metric: Metric, outputs: tuple[Port, ...], labels: list[SeenLabel], spec: str, *, named: bool) -> Metric:
    """The metric tied to an output and a label. Raises :class:`Unfit` with the reason when nothing fits."""
    if metric.against == "labels" and not labels:
        raise Unfit("it needs labels, and the data has none")
    reasons: list[str] = []
    for label in labels if metric.against == "labels" else [None]:
        try:
            output = output_for(metric.base, outputs, label)
        except Unfit as unfit:
            reasons.append(str(unfit))
            continue
        note = "" if named or label is None else _unjudged(spec, output, outputs)
        fitted = dataclasses.replace(
            metric, name=spec, label=label.name if label else None, output=output.name, note=note
        )
        if metric.base != "cosine":
            return fitted
        if output.dims is not None and all(d == 1 for d in output.dims[1:]):
            return dataclasses.replace(fitted, combine=scores.pooled_cosine)
        return fitted if named else dataclasses.replace(fitted, output=None)
    raise Unfit(reasons[0] if reasons else "nothing to score")


def _unjudged(spec: str, output: Port, outputs: tuple[Port, ...]) -> str:
    """What a metric of one output does not look at; empty when there is no other."""
    others = [p.name for p in outputs if p is not output and ("FLOAT" in p.type or "DOUBLE" in p.type)]
    if not others:
        return ""
    return f"{spec} is measured on the output '{output.name}' (--metric {spec}:NAME); not judged: {listed(others)}"


def _default(outputs: tuple[Port, ...], labels: list[SeenLabel]) -> Metric:
    unused = ""
    for label in labels:
        names = ("perplexity", "top1", "auroc", "mse") if label.integer or label.text else ("mse",)
        reasons = {}
        for name in names:
            try:
                return _fitted(METRICS[name], outputs, [label], name, named=False)
            except Unfit as unfit:
                reasons[name] = str(unfit)
        telling = "perplexity" if label.tokens else "top1"
        unused = unused or reasons.get(telling, reasons["mse"])
    return _against_source(outputs, f"labels are not used: {unused}" if unused else "")


def _against_source(outputs: tuple[Port, ...], note: str) -> Metric:
    """The metric that needs no labels: how far the model still says what the source says."""
    # Several float outputs (a score and a carried state, say) are no classifier: the worst of them all is compared.
    floats = [p for p in outputs if "FLOAT" in p.type or "DOUBLE" in p.type]
    flat = tuple(p for p in outputs if p.dims is None or len(p.dims) != 3) if len(floats) <= 1 else ()
    for name, candidates in (("agreement", flat), ("cosine", outputs)):
        try:
            return dataclasses.replace(_fitted(METRICS[name], candidates, [], name, named=False), note=note)
        except Unfit:
            continue
    hint = "Give a metric of your own: --metric module:function"
    raise usage("no built-in metric fits the outputs of this model", where="--metric", hint=hint, code="metric-unfit")


# -- reading outputs -------------------------------------------------------------------------------------------------
def _array(outputs: Outputs, name: str | None, measure: RowsOf) -> Array:
    name = name if name is not None else _first(outputs, measure)
    if name not in outputs:
        raise Unfit(f"there is no output '{name}'")
    value = outputs[name]
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, dict) for v in value):
        # ZipMap's list of {class: probability}, one dict per sample, in the order of the classes.
        return np.array([[float(v[k]) for k in value[0]] for v in value])
    if not isinstance(value, np.ndarray):
        raise Unfit(f"output '{name}' is no tensor")
    return value.astype(np.float32) if value.dtype.name == "bfloat16" else value


def _first(outputs: Outputs, measure: RowsOf) -> str:
    """The first float output, else the first array."""
    arrays = {n: v for n, v in outputs.items() if isinstance(v, np.ndarray)}
    floats = [n for n, v in arrays.items() if floating(v.dtype)]
    ranks = (3,) if measure is scores.perplexity_rows else (2, 3, 1)
    fitting = [n for r in ranks for n in floats if arrays[n].ndim == r]
    found = next(iter([*fitting, *floats, *arrays]), None)
    if found is None:
        raise Unfit("no output is a tensor")
    return found


# -- users' functions ------------------------------------------------------------------------------------------------
def _user_rows(name: str, function: UserFunction, outputs: Outputs, labels: Mapping[str, Array]) -> Array:
    n = _samples_in(outputs, labels)
    first = _call(name, function, outputs, labels)
    if first.size == n and (first.ndim or n == 1):
        return first.reshape(n, 1)
    if first.size != 1:
        message = f"metric {name} returned {list(first.shape)} values for {n} samples"
        hint = "Return one number, or one value per sample"
        raise bad_input(message, hint=hint, code="metric-unfit")
    groups = np.arange(n) % min(GROUPS, n)
    rows = np.full((groups.max() + 1, 2), float(first.reshape(-1)[0]))
    for g in range(len(rows)):
        kept = np.flatnonzero(groups != g)
        part = _call(name, function, _pick(outputs, kept, n), _pick(labels, kept, n))
        if part.size != 1:
            raise bad_input(f"metric {name} returned a number once and {list(part.shape)} later", code="metric-unfit")
        rows[g, 1] = float(part.reshape(-1)[0])
    return rows


def _call(name: str, function: UserFunction, outputs: Outputs, labels: Mapping[str, Array]) -> Array:
    try:
        return np.asarray(function(dict(outputs), dict(labels)), np.float64)
    except Fault:
        raise
    except Exception as error:
        message = f"metric {name} failed: {type(error).__name__}: {error}"
        hint = "It is called as function(outputs, labels) with dicts of arrays and returns numbers"
        raise bad_input(message, hint=hint, code="metric-failed") from error


def _samples_in(outputs: Outputs, labels: Mapping[str, Array]) -> int:
    for value in (*labels.values(), *outputs.values()):
        if isinstance(value, (np.ndarray, list)) and np.ndim(value):
            return len(value)
    raise bad_input("a metric needs at least one output or label with a sample axis", code="metric-unfit")


def _pick(values: Mapping[str, Any], kept: Array, n: int) -> dict[str, Any]:
    """The kept samples of everything that has ``n`` of them."""

    def part(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value[kept] if value.ndim and len(value) == n else value
        return [value[i] for i in kept] if isinstance(value, list) and len(value) == n else value

    return {name: part(value) for name, value in values.items()}
