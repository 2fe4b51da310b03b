"""How often a gate passes a model whose true drop is exactly the margin: at most one time in twenty is promised.

    .venv/bin/python benchmarks/gate_quality.py [--trials 1000]

Outcomes are drawn, not measured: 0/1 outcomes (top1) with a share of samples on which the two models differ, and
squared errors (mse) that grow by the margin on average, unevenly. Each draw goes through the ruling of a real gate.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from functools import cache

import numpy as np

from optimizer.data.metrics import METRICS, Metric
from optimizer.decide import gate
from optimizer.decide.policy import Policy
from optimizer.measure.exact import drop_upper
from optimizer.measure.quality import quality_of
from optimizer.measure.scales import QualityReading
from optimizer.measure.stats import DropEstimate, paired_drop
from optimizer.records import Quality, Ruling

Outcome = Iterator[Ruling]
TOP1, MSE = METRICS["top1"], METRICS["mse"]


def ruling(metric: Metric, base: Quality, mine: Quality, drop: DropEstimate, margin: float) -> Ruling:
    policy = Policy.from_toml({"quality": {"max_drop": margin}})
    return gate.quality_drop(policy, QualityReading(base, mine, drop), gate.margin_of(policy, metric)).ruling


def outcomes(n: int, margin: float, differ: float, trials: int) -> Outcome:
    """top1 with a true drop of ``margin`` when ``differ`` of the samples have another outcome."""

    @cache
    def known(lost: int, won: int) -> Ruling:
        # The estimate lies between its bounds, so only the one on the margin's side can decide: half the work.
        within = (lost - won) / n <= margin
        upper = drop_upper(lost, won, n, 0.05) if within else 1.0
        lower = -1.0 if within else -drop_upper(won, lost, n, 0.05)
        drop = DropEstimate((lost - won) / n, lower, upper, upper, lower, n, "", discordant=(lost, won))
        base, mine = (Quality("top1", v, v, v, True, n) for v in (0.9, 0.9 - drop.value))
        return ruling(TOP1, base, mine, drop, margin)

    chances = [(differ + margin) / 2, (differ - margin) / 2, 1 - differ]
    seed = [n, round(differ * 1e4)]
    for lost, won, _ in np.random.default_rng(seed).multinomial(n, chances, size=trials):
        yield known(int(lost), int(won))


def errors(n: int, margin: float, trials: int) -> Outcome:
    """mse around 1 with a true drop of ``margin``; errors and their growth are skewed, as errors are."""
    rng = np.random.default_rng(0)
    for trial in range(trials):
        base = rng.gamma(0.5, 2.0, (n, 1))
        grown = base + margin * rng.gamma(1.0, 1.0, (n, 1)) + rng.normal(scale=0.05, size=(n, 1))
        drop = paired_drop(MSE, base, grown, trial)
        yield ruling(MSE, quality_of(MSE, base), quality_of(MSE, grown), drop, margin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="draws for each row")
    trials = parser.parse_args().trials
    rows: list[tuple[str, int, float, Callable[[], Outcome]]] = [
        (f"top1, {differ:.0%} differ", n, margin, lambda n=n, m=margin, d=differ: outcomes(n, m, d, trials))
        for n, margin in ((200, 0.02), (500, 0.01), (2000, 0.005))
        for differ in (0.02, 0.06)
    ]
    rows += [("mse", n, 0.1, lambda n=n: errors(n, 0.1, trials)) for n in (20, 50, 300)]
    print("| metric | samples | margin = true drop | draws | pass | fail | undecided |\n|" + " --- |" * 7, flush=True)
    for name, n, margin, draw in rows:
        found = Counter(draw())
        count = sum(found.values())
        shares = " | ".join(f"{found[r] / count:.1%}" for r in (Ruling.PASS, Ruling.FAIL, Ruling.UNDECIDED))
        print(f"| {name} | {n} | {margin:g} | {count} | {shares} |", flush=True)
    print(f"\n{date.today()}; seeds are fixed, so every machine finds the same.")


if __name__ == "__main__":
    main()
