"""The rulings of a gate: pure functions from a rule and what was found to pass, fail or undecided.

Nothing here measures, and nothing is waved through: what could not be judged is undecided and says what is missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from optimizer.decide.budget import Budget
from optimizer.decide.judge import need_text
from optimizer.decide.policy import Policy
from optimizer.faults import Fault, usage
from optimizer.measure.duel import LEAST_RESTARTS, Reading
from optimizer.measure.paired import SliceBound
from optimizer.measure.scales import QualityReading
from optimizer.records import Interval, Latency, NodeFinding, Quality, Ruled, Ruling

FEW = 3


@dataclass(frozen=True)
class Node:
    """A node of a graph: its name (else its first output), its operator with the domain unless ONNX's own."""

    name: str
    op: str


@dataclass(frozen=True)
class Facts:
    """What can be read off a model without running it. ``signature`` is plain data; ``needs`` are CPU features of which
    the artifact says that it needs one, ``None`` for a model that says nothing."""

    size_bytes: int
    signature: Mapping[str, object]
    opsets: Mapping[str, int]
    ir: int
    nodes: tuple[Node, ...]
    needs: tuple[str, ...] | None = None

    def operators(self) -> list[str]:
        """Every operator once, sorted."""
        return sorted({n.op for n in self.nodes})

    def used_opsets(self) -> dict[str, int]:
        """Opsets of the domains that have a node: exporters also list some that the graph never uses."""
        used = {n.op.rpartition(".")[0] or "ai.onnx" for n in self.nodes} | {"ai.onnx"}
        return {d: v for d, v in sorted(self.opsets.items()) if d in used}


# -- the file ----------------------------------------------------------------------------------------------------------
def verified(wrong: Sequence[str], checks: int) -> Ruled:
    """``wrong`` are the findings of the receiver's check that do not hold, of ``checks`` in all."""
    ruling = Ruling.FAIL if wrong else Ruling.PASS
    return Ruled("artifact.verify", ruling, "every check holds", "; ".join(wrong) or f"{checks} checks hold")


def skipped(policy: Policy, names: Collection[str]) -> list[Ruled]:
    """What is not judged because the artifact is not what it says: nothing of it is loaded."""
    why = "not judged: the artifact is not as it was shipped"
    return [Ruled(name, Ruling.SKIPPED, "", why) for name in names if policy[name] is not None]


def signature(now: Mapping[str, object], then: Mapping[str, object]) -> Ruled:
    """Inputs and outputs by name, type and dims, as plain data."""
    changed = [side for side in ("inputs", "outputs") if now[side] != then[side]]
    said = f"the {' and '.join(changed)} differ: {now[changed[0]]} were {then[changed[0]]}" if changed else "the same"
    return Ruled("artifact.signature", Ruling.FAIL if changed else Ruling.PASS, "as the baseline's", said)


def size(policy: Policy, now: int, then: int | None) -> list[Ruled]:
    """Bytes of the model, alone and over the baseline's."""
    return _amounts(policy, "size", now, then, "bytes")


def memory(policy: Policy, now: int, then: int | None) -> list[Ruled]:
    """Peak memory that loading and running adds, alone and over the baseline's."""
    return _amounts(policy, "memory", now, then, "bytes of memory")


def _amounts(policy: Policy, subject: str, now: int, then: int | None, unit: str) -> list[Ruled]:
    found = []
    if (most := policy[f"{subject}.max"]) is not None:
        found.append(_held(f"{subject}.max", now <= most, f"<= {most:,.0f} {unit}", f"{now:,} {unit}"))
    if (ratio := policy[f"{subject}.max_ratio"]) is not None and then is not None:
        said = f"{now / max(1, then):.4g}x ({now:,} over {then:,} {unit})"
        found.append(_held(f"{subject}.max_ratio", now <= ratio * then, f"<= {ratio:g}x", said))
    return found


def _held(rule: str, ok: bool, allowed: str, found: str, nodes: Sequence[NodeFinding] = ()) -> Ruled:
    return Ruled(rule, Ruling.PASS if ok else Ruling.FAIL, allowed, found, nodes=tuple(nodes))


# -- the graph ---------------------------------------------------------------------------------------------------------
def operators(policy: Policy, facts: Facts) -> list[Ruled]:
    """Operators, opsets and IR version; every node that breaks a rule is named."""
    found = []
    if (allow := policy["operators.allow"]) is not None:
        bad = [n for n in facts.nodes if n.op not in allow]
        found.append(_nodes("operators.allow", bad, f"only {_some(allow)}", f"all of {len(facts.nodes)} nodes"))
    if (deny := policy["operators.deny"]) is not None:
        bad = [n for n in facts.nodes if n.op in deny]
        found.append(_nodes("operators.deny", bad, f"no {_some(deny)}", f"none in {len(facts.nodes)} nodes"))
    if (highest := policy["operators.opsets"]) is not None:
        over = [f"{d} {v}" for d, v in facts.used_opsets().items() if v > highest.get(d, 0)]
        told = ", ".join(f"{d} {v}" for d, v in facts.used_opsets().items())
        wanted = ", ".join(f"{d} {v}" for d, v in highest.items())
        said = f"{', '.join(over)} is beyond" if over else told
        found.append(_held("operators.opsets", not over, f"<= {wanted}", said))
    if (ir := policy["operators.max_ir"]) is not None:
        found.append(_held("operators.max_ir", facts.ir <= ir, f"<= {ir}", f"IR {facts.ir}"))
    return found


def _nodes(rule: str, bad: Sequence[Node], allowed: str, fine: str) -> Ruled:
    counts = Counter(n.op for n in bad)
    said = ", ".join(f"{op} at {_some([n.name for n in bad if n.op == op])}" for op in counts)
    findings = [NodeFinding(n.name, n.op, f"{n.op} is not allowed") for n in bad]
    return _held(rule, not bad, allowed, said or fine, findings)


def coverage(policy: Policy, provider: str, ran: Mapping[str, Sequence[Node]]) -> Ruled:
    """``ran`` holds the nodes of the runtime's graph by the provider (full name) that ran them."""
    least, here, total = policy["coverage.min_nodes"], len(ran.get(provider, ())), sum(map(len, ran.values()))
    share = here / total if total else 0.0
    elsewhere = [(node, other) for other, nodes in ran.items() if other != provider for node in nodes]
    findings = [NodeFinding(n.name, n.op, f"{n.op} ran on {other}") for n, other in elsewhere]
    said = f"{share:.1%} of {total} nodes on {provider}"
    if elsewhere:
        said += f"; elsewhere: {_some([f'{n.op} {n.name} on {other}' for n, other in elsewhere])}"
    ok = share >= least
    return _held("coverage.min_nodes", ok, f">= {least:.1%} on {provider}", said, () if ok else findings)


def instructions(policy: Policy, facts: Facts, here: Collection[str]) -> list[Ruled]:
    """What the artifact needs against where it will run, and what its measurements need against this machine."""
    found = []
    if (fleet := policy["instructions.deployed_on"]) is not None:
        rule, allowed = "instructions.deployed_on", f"runs on {_some(fleet)}"
        if facts.needs is None:
            need = "an artifact, whose manifest says what it needs"
            found.append(Ruled(rule, Ruling.UNDECIDED, allowed, "a bare model says nothing of instructions", need))
        else:
            met = sorted(set(facts.needs) & set(fleet))
            said = f"it needs one of {_some(facts.needs)}" if facts.needs else "it needs none in particular"
            found.append(_held(rule, bool(met or not facts.needs), allowed, said))
    if (wanted := policy["instructions.here"]) is not None:
        missing = [f for f in wanted if f not in here]
        ruling = Ruling.UNDECIDED if missing else Ruling.PASS
        said = f"this machine lacks {_some(missing)}, so what is measured on it does not count" if missing else "here"
        need = "a machine that has them" if missing else ""
        found.append(Ruled("instructions.here", ruling, _some(wanted), said, need))
    return found


# -- quality -----------------------------------------------------------------------------------------------------------
def quality_drop(policy: Policy, reading: QualityReading, budget: Budget) -> Ruled:
    """Non-inferiority: pass when the one-sided 95 % upper bound of the drop is within the margin, fail when the lower
    bound is beyond it."""
    drop, margin = reading.drop, budget.quality_margin(reading.baseline.value) or 0.0
    ruling = Ruling.UNDECIDED
    if drop.upper_one_sided <= margin:
        ruling = Ruling.PASS
    elif drop.lower_one_sided > margin:
        ruling = Ruling.FAIL
    said = f"drop {drop.value:.4g} [{drop.lower_one_sided:.4g}, {drop.upper_one_sided:.4g}] on {drop.n:,} samples"
    need = need_text(drop, margin) if ruling is Ruling.UNDECIDED else ""
    measured = Interval(drop.value, drop.lower_one_sided, drop.upper_one_sided)
    return Ruled("quality.max_drop", ruling, f"<= {margin:.4g}", said, need, measured)


def slice_drop(by: str, slices: Sequence[SliceBound], margin: float) -> Ruled:
    """Non-inferiority in every slice: pass when each one's own 95 % bound is within the margin, fail when one of them
    is shown to be beyond it though so many were looked at, else undecided: the slice with the widest bound says why."""
    beyond = [s for s in slices if s.worse]
    worst = max(beyond or slices, key=lambda s: (s.drop.value if beyond else s.drop.upper_one_sided, s.name))
    drop, ruling, need = worst.drop, Ruling.UNDECIDED, ""
    if beyond:
        ruling = Ruling.FAIL
    elif drop.upper_one_sided <= margin:
        ruling = Ruling.PASS
    else:
        need = f"{need_text(drop, margin)} with {by} {worst.name}"
    said = f"{by} {worst.name}: drop {drop.value:.4g} [{drop.lower_one_sided:.4g}, {drop.upper_one_sided:.4g}] on "
    said += f"{drop.n:,} samples, the worst of {len(slices)} slices"
    if beyond:
        said += f"; {len(beyond)} of them {'are' if len(beyond) > 1 else 'is'} worse, corrected for so many looks"
    measured = Interval(drop.value, drop.lower_one_sided, drop.upper_one_sided)
    return Ruled("quality.max_slice_drop", ruling, f"<= {margin:.4g} in each", said, need, measured)


def margin_of(policy: Policy, metric: object, rule: str = "quality.max_drop") -> Budget:
    """The drop that ``rule`` allows, as a budget for this metric. Raises a usage Fault that names the policy."""
    try:
        return Budget.parse([f"drop<={policy[rule]}"], metric)  # type: ignore[arg-type]
    except Fault as fault:
        raise usage(fault.message, where=f"{policy.where}: {rule}", hint=fault.hint, code="bad-policy") from None


def quality_worst(policy: Policy, quality: Quality) -> Ruled:
    """The value itself against a bound, by its two-sided 95 % interval."""
    bound, up = policy["quality.worst"], quality.higher_is_better
    inside = quality.low >= bound if up else quality.high <= bound
    outside = quality.high < bound if up else quality.low > bound
    ruling = Ruling.PASS if inside else Ruling.FAIL if outside else Ruling.UNDECIDED
    said = (
        f"{quality.metric} {quality.value:.4g} [{quality.low:.4g}, {quality.high:.4g}] on {quality.samples:,} samples"
    )
    need = "more samples" if ruling is Ruling.UNDECIDED else ""
    measured = Interval(quality.value, quality.low, quality.high)
    return Ruled("quality.worst", ruling, f"{'>=' if up else '<='} {bound:g}", said, need, measured)


# -- speed -------------------------------------------------------------------------------------------------------------
def latency_ratio(policy: Policy, reading: Reading) -> Ruled:
    """Time of one run over the baseline's."""
    return _ratio("latency.max_ratio", reading, f"<= {policy['latency.max_ratio']:g}x", reading.interval)


def throughput_ratio(policy: Policy, reading: Reading) -> Ruled:
    """Samples per second over the baseline's: one over the ratio of the times."""
    shown = Interval(1 / reading.value, 1 / reading.high, 1 / reading.low if reading.low else math.inf)
    return _ratio("throughput.min_ratio", reading, f">= {policy['throughput.min_ratio']:g}x", shown)


def _ratio(rule: str, reading: Reading, allowed: str, shown: Interval) -> Ruled:
    need = ""
    if reading.ruling is Ruling.UNDECIDED:
        more = reading.more_minutes
        need = _minutes(more) if more is not None else "more time than is realistic: the ratio lies on the margin"
    measured = Interval(shown.value, shown.low or -math.inf, shown.high)  # a bound of zero is none: null in JSON
    return Ruled(rule, reading.ruling, allowed, f"{shown.value:.3f}x {_bounds(measured, reading)}", need, measured)


def _bounds(shown: Interval, reading: Reading) -> str:
    """Both bounds, or the one that so few restarts have."""
    over = f"over {reading.restarts} restart{'s' if reading.restarts != 1 else ''}"
    low, high = math.isfinite(shown.low), math.isfinite(shown.high)
    if low and high:
        return f"[{shown.low:.3f}, {shown.high:.3f}] {over}"
    need = f" ({LEAST_RESTARTS} are needed)" if reading.restarts < LEAST_RESTARTS else ""
    few = f"{over}, too few for {'the other' if low or high else 'a'} bound{need}"
    if not (low or high):
        return few
    return f"[at least {shown.low:.3f}] {few}" if low else f"[at most {shown.high:.3f}] {few}"


def _minutes(more: float) -> str:
    return (
        f"about {max(more, 0.1):.1f} more minutes (--seconds)"
        if more < 10
        else f"about {more:.0f} more minutes (--seconds)"
    )


def latency_bound(policy: Policy, found: Latency) -> Ruled:
    """Time of one run on this machine, by its 95 % interval."""
    most = policy["latency.max"]
    said = f"{found.p50:.4g} ms [{found.low:.4g}, {found.high:.4g}], {found.clock} time"
    measured = Interval(found.p50, found.low, found.high)
    return _bounded("latency.max", found.high <= most, found.low > most, f"<= {most:g} ms", said, measured)


def throughput_bound(policy: Policy, found: Latency, samples: int) -> Ruled:
    """Samples per second on this machine when ``samples`` go into one run."""
    least = policy["throughput.min"]
    value, low, high = (samples / t * 1e3 if t > 0 else float("inf") for t in (found.p50, found.high, found.low))
    said = f"{value:.4g} samples/s [{low:.4g}, {high:.4g}], {found.clock} time"
    return _bounded("throughput.min", low >= least, high < least, f">= {least:g} /s", said, Interval(value, low, high))


def _bounded(rule: str, inside: bool, outside: bool, allowed: str, said: str, measured: Interval) -> Ruled:
    ruling = Ruling.PASS if inside else Ruling.FAIL if outside else Ruling.UNDECIDED
    need = "more time (--seconds): the interval holds the bound" if ruling is Ruling.UNDECIDED else ""
    return Ruled(rule, ruling, allowed, said, need, measured)


def undecided(rule: str, found: str, need: str) -> Ruled:
    """A rule that cannot be judged with what there is."""
    return Ruled(rule, Ruling.UNDECIDED, "", found, need)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:FEW])
    return f"{shown} and {len(names) - FEW} more" if len(names) > FEW else shown or "nothing"
