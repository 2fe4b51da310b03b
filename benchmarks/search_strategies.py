"""The search's way through the aids of static int8 against random search and Optuna's TPE, at equal numbers of looks.

    python benchmarks/search_strategies.py record MODEL LANDSCAPE.json [--data SAMPLES]   # minutes: every combination
    python benchmarks/search_strategies.py replay LANDSCAPE.json...                       # seconds

``record`` measures signal over noise at the outputs for every combination of aids once; ``replay`` lets each strategy
look at as many of them as ours needs, over seeds, and tells how far from the best of all it ends. Optuna takes part
when it is installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from optimizer.decide.search import Ask, Depth, Facts, Seen, strategy
from optimizer.decide.space import STATIC, Aid, Offer, Point, Space, offered

SEEDS = 100
Landscape = dict[str, float]


def key(label: str) -> str:
    """A label whatever the order in which aids stand in it."""
    return ", ".join(sorted(label.split(", ")))


def combinations(space: Space) -> Iterator[Point]:
    """The form with every combination of aids, one of a kind at most."""
    kinds: dict[str, list[Aid | None]] = {}
    for aid in space.aids(STATIC):
        kinds.setdefault(aid.kind, [None]).append(aid)
    for chosen in itertools.product(*kinds.values()):
        point = Point(STATIC)
        for aid in chosen:
            point = point.with_aid(aid) if aid is not None else point
        yield point


def record(model: str, place: Path, data: str | None) -> None:
    """Measure every combination and write it to ``place``."""
    from optimizer.measure.explain_layers import output_sqnr
    from optimizer.plan import DataRequest, Settings, SourceRequest
    from optimizer.progress import Silent
    from optimizer.workshop import open_bench
    from passes.catalogue import LOSSLESS

    found: Landscape = {}
    with open_bench(Settings(SourceRequest(model), DataRequest(data)), Silent()) as bench:
        assert bench.splits is not None, "this needs data"
        base = bench.builder.build(bench.source.model, LOSSLESS)
        for point in combinations(Space(offered(), True, ("any",), ())):
            made = bench.builder.build(bench.source.model, point.recipe())
            value = output_sqnr(base.model, made.model, bench.splits.select, bench.site, bench.store)
            found[key(point.label())] = value if not made.faults else float("-inf")
            print(f"{len(found)} {point.label()}: {value:.2f} dB", file=sys.stderr)
    place.write_text(json.dumps({"model": model, "found": found}))


def ours(land: Landscape, space: Space) -> tuple[float, int]:
    """What the strategy ends with, in dB, and how many combinations it looked at."""
    looks: list[float] = []
    chosen = land[key(Point(STATIC).label())]
    walk = strategy(Facts(space, 0.0))
    answer: Seen | None = None
    while True:
        try:
            ask: Ask = walk.send(answer) if answer is not None else next(walk)
        except StopIteration:
            return chosen, len(looks)
        if ask.depth is Depth.GLANCE:
            looks.append(land[key(ask.point.label())])
            answer = Seen(sqnr=looks[-1])
        else:
            chosen = land[key(ask.point.label())]
            answer = Seen(drop=1.0, pays=True)  # it pays, and loses too much: the search goes on


def by_chance(land: Landscape, looks: int, seed: int) -> float:
    """The best of ``looks`` combinations drawn without putting back."""
    import random

    return max(random.Random(seed).sample(list(land.values()), min(looks, len(land))))


def by_optuna(space: Space) -> Callable[[Landscape, int, int], float] | None:
    """Optuna's TPE with the kinds of aids as categories, or ``None`` when it is not installed."""
    try:
        import optuna
    except ImportError:
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds: dict[str, list[Aid]] = {}
    for aid in space.aids(STATIC):
        kinds.setdefault(aid.kind, []).append(aid)

    def run(land: Landscape, looks: int, seed: int) -> float:
        def objective(trial: optuna.Trial) -> float:
            point = Point(STATIC)
            for kind, aids in kinds.items():
                pick = trial.suggest_categorical(kind, list(range(len(aids) + 1)))
                point = point.with_aid(aids[pick - 1]) if pick else point
            return land[key(point.label())]

        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.enqueue_trial(dict.fromkeys(kinds, 0))
        study.optimize(objective, n_trials=looks)
        return float(study.best_value)

    return run


def seen_in(land: Landscape) -> Space:
    """The space as it was when the landscape was recorded: aids that it does not hold are not offered."""
    whole = Space(offered(), True, ("any",), ())
    gone = {a.label for a in whole.aids(STATIC) if key(Point(STATIC, aids=(a,)).label()) not in land}
    kept = [a for a in whole.aids(STATIC) if a.label not in gone]

    class Fixed(Space):
        def aids(self, form: str) -> list[Aid]:
            return kept if form == STATIC else []

    return Fixed(Offer({STATIC: whole.offer.passes[STATIC]}), True, ("any",), ())


def replay(places: list[Path]) -> None:
    """The table: decibels short of the best combination, mean over seeds and worst tenth."""
    print("| model | combinations | looks | best | ours | random | Optuna TPE | TPE, twice the looks |")
    print("| --- " * 8 + "|")
    for place in places:
        tree = json.loads(place.read_text())
        land = {key(k): v for k, v in tree["found"].items() if v is not None}
        space = seen_in(land)
        best, (reached, looks) = max(land.values()), ours(land, space)
        cells = [f"{best - reached:.2f}", short([best - by_chance(land, looks, s) for s in range(SEEDS)])]
        tpe = by_optuna(space)
        for more in (1, 2):
            runs = range(SEEDS // 4) if tpe else ()
            cells.append(short([best - tpe(land, looks * more, s) for s in runs]) if tpe else "not installed")
        name = tree.get("model", place.stem)
        print(f"| {name} | {len(land)} | {looks} | {best:.2f} dB | " + " | ".join(cells) + " |")


def short(gaps: list[float]) -> str:
    """Mean and the worst tenth of how far short."""
    return f"{statistics.mean(gaps):.2f} (worst tenth {sorted(gaps)[int(len(gaps) * 0.9)]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    first = verbs.add_parser("record")
    first.add_argument("model")
    first.add_argument("landscape", type=Path)
    first.add_argument("--data")
    first.set_defaults(run=lambda a: record(a.model, a.landscape, a.data))
    second = verbs.add_parser("replay")
    second.add_argument("landscapes", type=Path, nargs="+")
    second.set_defaults(run=lambda a: replay(a.landscapes))
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
