"""From distributions to one word: ok, drift, or undecided. Pure functions over what was seen before and now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optimizer.measure.adequacy import CLIPPED_AT_MOST
from optimizer.report.drift import Change, Clipped, Drift, DriftRecord
from optimizer.watch.compare import Tested, compare, detectable, holm, samples_for
from optimizer.watch.sketches import Seen

ALPHA = 0.01
"""How often, at most, data that did not change is called drift."""

SHIFT = 0.6
"""A verdict is ok only where a shift of any statistic by so many of its standard deviations would have been found: for
an ordinary model that takes some 150 samples."""

SHARES = {"input": 0.5, "tensor": 0.25, "answer": 0.25}
"""How ``alpha`` is shared out between the kinds of things that are looked at; what is absent leaves its share."""

Key = tuple[str, str]
"""(part, name): input, tensor, output or label, and which."""


@dataclass(frozen=True)
class _Part:
    """All tests of one kind of thing, with Holm's p-values; ``shift`` is what its weakest one finds at ``level``."""

    alpha: float
    tested: tuple[tuple[Key, Tested], ...]
    adjusted: tuple[float, ...]
    level: float
    shift: float
    samples: tuple[int, int]


def judge(before: Mapping[Key, Seen], now: Mapping[Key, Seen], alpha: float = ALPHA) -> DriftRecord:
    """Hold what is seen ``now`` against what was seen ``before``; keys that only one of them has are left out.

    The chance that unchanged data is called drift is at most ``alpha``: each kind of thing gets a share of it, within
    which the tests are adjusted by Holm's method. Things that never varied before are no basis for a test.
    """
    both = [key for key in before if key in now and before[key].count and now[key].count]
    constant = [key for key in both if _constant(before[key])]
    parts = _parts({k: (before[k], now[k]) for k in both if k not in constant}, alpha)
    changes = sorted((c for part in parts for c in _changes(part)), key=lambda c: c.p / c.alpha)
    clipping = tuple(_clipping(key, before[key], now[key], parts) for key in both if key[0] == "tensor")
    other = [key for key in constant if not _same(before[key], now[key])]
    verdict, reason, need = _word(tuple(changes), parts, other)
    return DriftRecord(
        verdict,
        reason,
        samples=max((now[key].count for key in both), default=0),
        reference=max((before[key].count for key in both), default=0),
        alpha=alpha,
        tests=sum(len(part.tested) for part in parts),
        shift=max((part.shift for part in parts), default=None),
        need=need,
        changes=tuple(changes),
        clipping=clipping,
    )


def _parts(pairs: Mapping[Key, tuple[Seen, Seen]], alpha: float) -> list[_Part]:
    kinds = {key: key[0] if key[0] in SHARES else "answer" for key in pairs}
    whole = sum(SHARES[kind] for kind in set(kinds.values()))
    parts = []
    for kind in SHARES:
        keys = [key for key in pairs if kinds[key] == kind]
        tested = [(key, test) for key in keys for test in compare(*pairs[key])]
        if not tested:
            continue
        share = alpha * SHARES[kind] / whole
        adjusted = holm([test.p for _, test in tested])
        counts = [(pairs[key][0].count, pairs[key][1].count) for key in keys]
        level = share / sum(2 * len(pairs[key][0].layout.names()) + 1 for key in keys)  # as if every test were made
        shift, worst = max((detectable(m, n, level), (m, n)) for m, n in counts)
        parts.append(_Part(share, tuple(tested), tuple(adjusted), level, shift, worst))
    return parts


def _changes(part: _Part) -> list[Change]:
    """The strongest finding of each statistic."""
    found: dict[tuple[Key, str], Change] = {}
    for (key, test), p in zip(part.tested, part.adjusted, strict=True):
        known = found.get((key, test.statistic))
        if p <= part.alpha and (known is None or p < known.p):
            change = Change(*key, test.statistic, test.test, p, part.alpha, test.before, test.now)
            found[key, test.statistic] = change
    return list(found.values())


def _clipping(key: Key, before: Seen, now: Seen, parts: list[_Part]) -> Clipped:
    p, alpha = 1.0, 0.0
    for part in parts:
        for (where, test), adjusted in zip(part.tested, part.adjusted, strict=True):
            if where == key and test.statistic == "clipped":
                p, alpha = min(p, adjusted), part.alpha
    was, is_now = float(before.means[0]), float(now.means[0])
    return Clipped(key[1], was, is_now, p, p <= alpha and is_now > was + CLIPPED_AT_MOST)


def _word(changes: tuple[Change, ...], parts: list[_Part], other: list[Key]) -> tuple[Drift, str, str]:
    if changes:
        places = {(c.part, c.name) for c in changes}
        things = f"{len(places)} thing{'s' if len(places) > 1 else ''}"
        return Drift.DRIFT, f"the data is not what the artifact was made for ({things} changed)", ""
    if other:
        names = ", ".join(f"{part} '{name}'" for part, name in other)
        reason = f"{names} never varied when the artifact was made and has another value now"
        return Drift.UNDECIDED, reason, "make the artifact with data in which it varies"
    if not parts:
        return Drift.UNDECIDED, "nothing that varies can be compared", "give data that varies, and more of it"
    worst = max(parts, key=lambda part: part.shift)
    if worst.shift <= SHIFT:
        return Drift.OK, "the data looks like the data that the artifact was made for", ""
    m, n = worst.samples
    wanted = samples_for(SHIFT, m, worst.level)
    reason = f"no change was found, but {n} samples against {m} would show large ones only"
    if wanted is None:
        return Drift.UNDECIDED, reason, f"{m} samples are too few to remember: make the artifact with more data"
    return Drift.UNDECIDED, reason, f"{wanted} samples would decide it"


def _constant(seen: Seen) -> bool:
    columns = (seen.column(place)[0] for place in range(len(seen.items)))
    return all(len(values) < 2 or values[0] == values[-1] for values in columns) and len(seen.classes) < 2


def _same(before: Seen, now: Seen) -> bool:
    places = range(len(before.items))
    equal = all(set(before.column(i)[0]) == set(now.column(i)[0]) for i in places)
    return equal and set(before.classes) == set(now.classes)
