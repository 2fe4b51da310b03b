"""The nouns of a compile: frozen records, no behaviour beyond reading themselves."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optimizer.measured import Bound as Bound
from optimizer.measured import Ceiling as Ceiling
from optimizer.measured import Ceilings as Ceilings
from optimizer.measured import Energy as Energy
from optimizer.measured import Interval as Interval
from optimizer.measured import LayerWork as LayerWork
from optimizer.measured import NodeCost as NodeCost
from optimizer.measured import OpCost as OpCost
from optimizer.measured import Profile as Profile
from optimizer.measured import Roofline as Roofline

SCHEMA = "lathe.record/1"


class Outcome(enum.StrEnum):
    """What a compile came to."""

    OPTIMIZED = "optimized"
    LOSSLESS = "lossless"
    UNCHANGED = "unchanged"
    NONE = "none"


class Confidence(enum.StrEnum):
    """How sure the quality claim is."""

    PROVEN = "proven"
    UNDECIDED = "undecided"
    UNPROVEN = "unproven"


class Judgement(enum.StrEnum):
    """The word of a verdict."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNDECIDED = "undecided"
    FAULTED = "faulted"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Quality:
    """A metric on a split. ``samples`` is how many it was measured on."""

    metric: str
    value: float
    low: float
    high: float
    higher_is_better: bool
    samples: int


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run: the median and its interval; tails only from enough runs. ``clock`` is cpu or wall.

    ``quantiles`` stand for equal shares of the runs, each by its middle: of n, the i-th is the (i + 1/2) / n quantile.
    ``other_ms`` is the mean by the other clock: wall time, which other processes lengthen, where ``clock`` is cpu; else
    CPU time, which is that of all threads together and leaves out what a device does.
    """

    p50: float
    low: float
    high: float
    clock: str
    runs: int
    p90: float | None = None
    p99: float | None = None
    quantiles: tuple[float, ...] = ()
    p90_interval: Interval | None = None
    p99_interval: Interval | None = None
    other_ms: float | None = None


@dataclass(frozen=True)
class Measured:
    """One model, measured. Whatever was not measured is ``None``. ``load_ms`` is the time to open it, ``first_ms`` that
    of its first run."""

    quality: Quality | None
    latency_ms: Latency | None
    size_bytes: int
    memory_bytes: int | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    profile: Profile | None = None
    roofline: Roofline | None = None


@dataclass(frozen=True)
class Verdict:
    """A judgement with its reason; ``need`` says what would decide an undecided one."""

    judgement: Judgement
    reason: str
    need: str = ""


@dataclass(frozen=True)
class PassNote:
    """What one pass did inside a recipe. ``exactness`` is the promise it was verified against.

    ``left_out`` names single rewrites that were found to be wrong: the pass went on without them. ``proved`` rewrites
    follow from the structure of the graph, ``tested`` ones held on every input, ``unreached`` ones stand where no
    input is known to lead (:mod:`optimizer.verify.proofs`).
    """

    name: str
    exactness: str
    changes: int
    seconds: float
    skips: tuple[str, ...] = ()
    fault: str = ""
    worst_difference: float | None = None
    left_out: tuple[str, ...] = ()
    proved: int = 0
    tested: int = 0
    unreached: int = 0


@dataclass(frozen=True)
class Step:
    """One whole recipe that was tried, what was measured of it, and the verdict."""

    recipe: str
    label: str
    verdict: Verdict
    model: str = ""
    quality: Quality | None = None
    drop: Interval | None = None
    speedup: Interval | None = None
    latency_ms: Latency | None = None
    size_bytes: int | None = None
    memory_bytes: int | None = None
    passes: tuple[PassNote, ...] = ()


@dataclass(frozen=True)
class FrontierPoint:
    """A recipe that nothing else measured beats in quality, speed and size together. ``recipe`` is empty for the
    source; ``holds`` says whether it met the budget on the select samples."""

    label: str
    recipe: str
    speedup: Interval
    latency_ms: float
    drop: Interval | None
    size_bytes: int
    holds: bool


@dataclass(frozen=True)
class Sensitivity:
    """Why layers were left in float: what each one alone does to the outputs, and what its integers save.

    ``layers`` maps a layer to the relative squared error ||y - r||^2 / ||r||^2 at the outputs when it alone is
    quantized, ``saved_ms`` to the milliseconds of one run by which its integer kernel is faster than the float one
    (the runtime's profile; a slower one is negative) and ``whole_ms`` the float model as a whole. ``groups`` are left
    in float together; ``method`` says how the errors were measured.
    """

    method: str
    layers: Mapping[str, float]
    saved_ms: Mapping[str, float] = field(default_factory=dict)
    whole_ms: float = 0.0
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Coverage:
    """What one provider ran of a model, by the runtime's profile: nodes of the graph that the runtime made of it, and
    their multiply-accumulates (``None``: nobody can tell). ``device`` is named where a provider has several."""

    provider: str
    nodes: int
    macs: int | None = None
    device: str = ""


@dataclass(frozen=True)
class Noise:
    """A model against itself, measured in the same rotation as everything else: what this machine made of equal speed
    just then. ``resolves`` is the relative difference below which a ratio says nothing (0.012: 1.2 %)."""

    batch: int
    threads: int
    clock: str
    ratio: Interval
    resolves: float


@dataclass(frozen=True)
class SweepPoint:
    """One value of a sweep: the batch, the number of threads or the length. ``throughput`` is samples per second,
    ``growth`` the throughput over that of the point before (for lengths: the latency), measured side by side.
    ``reason`` says why a point has no numbers."""

    value: int
    latency: Latency | None = None
    throughput: float | None = None
    growth: Interval | None = None
    memory_bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Sweep:
    """A model on one provider over a range of values. ``kind`` is batch, threads, or the name of a dimension;
    ``suggested`` is the value to take, ``why`` says why, or where the sweep ended. ``provider`` and ``asked`` are as in
    :class:`BenchmarkRow`."""

    kind: str
    model: str
    provider: str
    batch: int
    threads: int
    points: tuple[SweepPoint, ...]
    suggested: int | None = None
    why: str = ""
    asked: str = ""


@dataclass(frozen=True)
class BenchmarkRow:
    """One model at one provider, batch and thread count. ``reason`` says why a row has no numbers.

    ``provider`` is who ran it. ``asked`` is the provider that was asked for where the CPU stood in for it.
    ``throughput`` is samples per second, ``speedup`` the first row's latency over this one's at the same batch and
    number of threads. ``memory`` is the median peak over restarts with its smallest and largest.
    ``per_million`` is the price of a million inferences, in the currency of the price per hour.
    """

    model: str
    provider: str
    batch: int
    threads: int
    latency: Latency | None = None
    throughput: float | None = None
    speedup: Interval | None = None
    memory_bytes: int | None = None
    load_ms: float | None = None
    size_bytes: int | None = None
    quality: Quality | None = None
    reason: str = ""
    first_ms: float | None = None
    profile: Profile | None = None
    roofline: Roofline | None = None
    asked: str = ""
    coverage: tuple[Coverage, ...] = ()
    memory: Interval | None = None
    per_million: Interval | None = None
    energy: Energy | None = None


class Ruling(enum.StrEnum):
    """What became of a rule of a gate, and of the gate as a whole. A skipped rule could not be judged because the
    artifact is not what it says, which fails already."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class NodeFinding:
    """A node of the graph that breaks a rule, or a group of equal ones: ``node`` is the name (or the place)."""

    node: str
    op: str
    detail: str


@dataclass(frozen=True)
class Ruled:
    """A rule of a policy and what became of it: what is allowed, what was found, and what would decide it."""

    rule: str
    ruling: Ruling
    allowed: str
    found: str
    need: str = ""
    measured: Interval | None = None
    nodes: tuple[NodeFinding, ...] = ()


@dataclass(frozen=True)
class GateRecord:
    """The single truth of a gate. ``file`` is the model inside the artifact, ``baseline`` is empty when there was
    none."""

    artifact: str
    file: str
    baseline: str
    policy: str
    rules: tuple[Ruled, ...]
    warnings: tuple[str, ...] = ()
    quality: Quality | None = None
    baseline_quality: Quality | None = None
    latency_ms: Latency | None = None
    baseline_latency_ms: Latency | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ruling(self) -> Ruling:
        """Fail when a rule fails, else undecided when one is, else pass. A gate is always strict."""
        found = {r.ruling for r in self.rules}
        return next((r for r in (Ruling.FAIL, Ruling.UNDECIDED) if r in found), Ruling.PASS)

    def as_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        return {"schema": "lathe.gate/1", "verdict": self.ruling.value, **to_plain(self)}


@dataclass(frozen=True)
class CheckedOn:
    """The inputs that every pass was checked on: how many real (or made-up) ones, the names of the adversarial ones,
    and of those that are no measure because the source itself does not run on them."""

    real: int
    adversarial: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Boundary:
    """Steps before and after the network that are part of the artifact, and what they change.

    ``inputs`` and ``outputs`` are what the artifact takes and gives with them. ``worst_difference`` is how far what the
    network is given may be from the Python reference, as a share of the range of pixels, on ``images`` images.
    ``core_latency_ms`` is without the steps, ``latency_ms`` with them, ``times`` the second over the first.
    """

    preprocess: str
    postprocess: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    worst_difference: float
    images: int
    core_latency_ms: Latency
    latency_ms: Latency
    times: Interval


@dataclass(frozen=True)
class Record:
    """The single truth of a compile, which every report renders.

    ``libraries`` are the files of custom operators on this machine without which the artifact does not load.
    """

    outcome: Outcome
    source: str
    artifact: str | None
    recipe: str
    baseline: Measured | None
    final: Measured | None
    speedup: Interval | None
    quality_drop: Interval | None
    confidence: Confidence
    budget: tuple[str, ...]
    target: str
    provider: str
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()
    confirm: Verdict | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: Mapping[str, str] | None = None
    frontier: tuple[FrontierPoint, ...] = ()
    sensitivity: Sensitivity | None = None
    checked_on: CheckedOn | None = None
    date: str = ""
    origin: Origin | None = None
    boundary: Boundary | None = None
    libraries: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        plain = to_plain(self)
        steps = [
            {
                **step,
                "verdict": step["verdict"]["judgement"],
                "reason": step["verdict"]["reason"],
                "need": step["verdict"]["need"],
            }
            for step in plain.pop("steps")
        ]
        return {"schema": SCHEMA, **plain, "steps": steps}


@dataclass(frozen=True)
class Origin:
    """What a compile started from, as far as making it again needs it: digests (SHA-256) and settings."""

    source_digest: str
    model_digest: str
    seed: int
    batch: int
    threads: int
    metric: str = ""
    data: Mapping[str, str] = field(default_factory=dict)


def to_plain(thing: Any) -> Any:
    """Records as dicts, lists, numbers and text, ready for JSON. NaN and infinities become ``None``."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: to_plain(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
    if isinstance(thing, enum.Enum):
        return thing.value
    if isinstance(thing, Mapping):
        return {str(k): to_plain(v) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [to_plain(v) for v in thing]
    if isinstance(thing, float) and (thing != thing or thing in (float("inf"), float("-inf"))):
        return None
    return thing


@dataclass(frozen=True)
class ScenarioRow:
    """One model under one scenario. ``result`` is what the scenario is judged by, in ``unit``, with its interval over
    process restarts (within one run when ``restarts`` is 1): a percentile of the latency, or a rate.

    ``reason`` says why a row has no result, ``code`` the fault behind it. ``percentiles`` are milliseconds by percent,
    of all queries of the restarts together (server: of the run at the lowest of their rates, which is ``held``: every
    restart kept ``bound_ms`` there). ``verdict`` and ``checks`` are loadgen's own words, empty for the built-in driver.
    ``against`` is the first model's result over this one's where less is better, else the reverse: above 1 this one
    does better. ``others_cores`` is how many cores other processes kept busy meanwhile, ``None`` where nobody can say.
    """

    model: str
    scenario: str
    driver: str
    provider: str
    threads: int
    batch: int
    judged_by: str = ""
    result: Interval | None = None
    unit: str = ""
    restarts: int = 0
    queries: int = 0
    percentiles: Mapping[str, float] = field(default_factory=dict)
    against: Interval | None = None
    bound_ms: float | None = None
    held: float | None = None
    real_time_factor: Interval | None = None
    verdict: str = ""
    checks: Mapping[str, bool] = field(default_factory=dict)
    reason: str = ""
    code: str = ""
    warnings: tuple[str, ...] = ()
    others_cores: float | None = None


@dataclass(frozen=True)
class SliceDrop:
    """One class or slice: how much worse the model does there. ``p`` is one-sided, corrected for all looks (Holm)."""

    name: str
    samples: int
    drop: Interval
    p: float
    lost: int | None = None
    won: int | None = None


@dataclass(frozen=True)
class PairedQuality:
    """A model against the first one on the same samples. ``drop`` is worse when positive, in the metric's unit.

    ``lost`` and ``won`` count 0/1 outcomes that flipped (only the first is right; only this one), ``p`` is McNemar's
    exact one, two-sided; all ``None`` for other metrics. ``detectable`` is the smallest drop that so many samples show
    with 80 % power at one-sided 95 %. ``slices`` are those that lose most, worst first, of ``looks`` in all, cut by
    ``sliced_by``.
    """

    model: str
    provider: str
    metric: str
    higher_is_better: bool
    samples: int
    drop: Interval
    lost: int | None = None
    won: int | None = None
    p: float | None = None
    detectable: float | None = None
    sliced_by: str = ""
    looks: int = 0
    slices: tuple[SliceDrop, ...] = ()

    @property
    def flip_rate(self) -> float | None:
        """Share of samples whose outcome flipped, either way."""
        return None if self.lost is None or self.won is None else (self.lost + self.won) / self.samples
