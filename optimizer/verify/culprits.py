"""A pass whose result is wrong: which single rewrite it was, and what the pass makes of the model without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from passes.kit.context import Site
from passes.kit.contract import PassResult
from passes.kit.model import Model

MOST_LEFT_OUT = 4
"""A pass with more wrong rewrites than this is left out as a whole."""

Run = Callable[[frozenset[Site]], PassResult]
Fails = Callable[[Model], str]


@dataclass(frozen=True)
class Culprit:
    """One wrong rewrite: where it stands, what is wrong, the result that shows it and how many rewrites it holds."""

    site: Site
    fault: str
    shown_by: Model

    def __str__(self) -> str:
        rule, where = self.site
        return f"{rule} at {where}: {self.fault}"


def without_culprits(run: Run, fails: Fails, faulty: PassResult) -> tuple[PassResult, tuple[Culprit, ...]] | None:
    """The pass's result without its wrong rewrites, and those.

    ``run`` applies the pass without the given sites, ``fails`` says what is wrong with a model. ``None`` when no single
    rewrites account for the fault: the pass does not ask before it rewrites, or there are too many.
    """
    forbidden: frozenset[Site] = frozenset()
    culprits: list[Culprit] = []
    result = faulty
    while len(culprits) < MOST_LEFT_OUT:
        found = _first_culprit(run, fails, result, forbidden)
        if found is None:
            return None
        culprits.append(found)
        forbidden |= {found.site}
        result = run(forbidden)
        if forbidden & _sites(result).keys():
            return None
        if not result.changes or not fails(result.model):
            return result, tuple(culprits)
    return None


def _first_culprit(run: Run, fails: Fails, faulty: PassResult, forbidden: frozenset[Site]) -> Culprit | None:
    """By bisection over the rewrites in the order in which they were made: the first that makes the result wrong."""
    sites = list(_sites(faulty))
    good, bad = 0, len(sites)
    shown = faulty.model
    while bad - good > 1:
        middle = (good + bad) // 2
        left_out = forbidden | frozenset(sites[middle:])
        partial = run(left_out)
        if left_out & _sites(partial).keys():
            return None
        if partial.changes and fails(partial.model):
            bad, shown = middle, partial.model
        else:
            good = middle
    return Culprit(sites[bad - 1], fails(shown), shown) if sites else None


def _sites(result: PassResult) -> dict[Site, None]:
    """Where the pass rewrote, in order, each place once."""
    return dict.fromkeys((change.rule, change.where) for change in result.changes)
