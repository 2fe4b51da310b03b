"""Results to a table: what is required, what was found, and every case that needs a word."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.conformance.harness import LATHE, Result

LEVEL = "-O1"
MOST_LEFT_OUT = 5

Bad = Callable[[Result], Iterable[str]]
"""The reasons for which a result misses a requirement."""


@dataclass(frozen=True)
class Requirement:
    """What must hold: at most ``most`` cases for which ``bad`` has something to say."""

    text: str
    bad: Bad
    most: int = 0

    def missed_by(self, results: Sequence[Result]) -> dict[str, list[str]]:
        """Reasons by case."""
        return {r["case"]: why for r in results if (why := list(self.bad(r)))}


def _told(result: Result, *words: str, only: Callable[[str], bool] = lambda name: True) -> list[str]:
    return [
        f"{name}: {t['word']}: {t['why']}" for name, t in result["trials"].items() if t["word"] in words and only(name)
    ]


def left_out(result: Result) -> list[str]:
    """What was rolled back or raised, in -O1 and alone."""
    return [f"{name}: {line}" for name, t in result["trials"].items() for line in t.get("faults", ())]


def executes(result: Result) -> bool:
    """Whether onnxruntime runs the case before anything is done to it."""
    return result["runtime"] in ("passes", "differs")


REQUIREMENTS = (
    Requirement("process deaths", lambda r: _told(r, "dead")),
    Requirement("untyped errors", lambda r: _told(r, "untyped error")),
    Requirement("wrong results of `-O1`", lambda r: _told(r, "wrong", only=lambda n: n == LEVEL)),
    Requirement("wrong results of a pass alone, unverified", lambda r: _told(r, "wrong", only=lambda n: n != LEVEL)),
    Requirement("results that do not load", lambda r: _told(r, "does not load")),
    Requirement("results that the checker newly rejects", lambda r: _told(r, "checker rejects")),
    Requirement("signatures changed", lambda r: _told(r, "signature changed")),
    Requirement("refused although onnxruntime runs it", lambda r: _told(r, "refused") if executes(r) else ()),
    Requirement("cases with a pass rolled back or raising", left_out, MOST_LEFT_OUT),
)


def missed(results: Sequence[Result]) -> list[Requirement]:
    """The requirements that do not hold."""
    return [r for r in REQUIREMENTS if len(r.missed_by(results)) > r.most]


def summary(results: Sequence[Result]) -> str:
    """The table that a run prints."""
    lines = [f"{len(results):>6} cases"]
    for name, count in census(results):
        lines.append(f"{count:>6} {name}")
    for requirement in REQUIREMENTS:
        found = requirement.missed_by(results)
        mark = "ok" if len(found) <= requirement.most else "MISSED"
        lines.append(f"{len(found):>6} {requirement.text} (at most {requirement.most}): {mark}")
        lines += [f"         {case}: {why}" for case, reasons in found.items() for why in reasons]
    return "\n".join(lines)


def census(results: Sequence[Result]) -> list[tuple[str, int]]:
    """What the runtime does with the cases, and who checked the results of -O1."""
    before = Counter(r["runtime"] for r in results)
    by = Counter(_checked_by(r) for r in results)
    return [
        ("give the expected outputs on onnxruntime", before["passes"]),
        ("run on onnxruntime and give others", before["differs"]),
        ("do not run on onnxruntime", before["cannot"] + before["dies"]),
        ("checked by onnxruntime against what the case expects", by["runtime"]),
        ("checked by onnxruntime against its own outputs before", by["runtime before"]),
        ("checked by onnx's reference evaluator", by["reference"]),
        ("gone through the passes, but nobody can compute them", by[""]),
    ]


def _checked_by(result: Result) -> str:
    return str(result["trials"].get(LEVEL, {}).get("by", ""))


def table(results: Sequence[Result]) -> str:
    """Every case and trial with its verdict and the reason, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["case", "on onnxruntime before", "trial", "verdict", "checked by", "changes", "reason"])
    for r in results:
        for name, t in r["trials"].items():
            reason = "; ".join([*filter(None, [t["why"]]), *t.get("faults", ())]) or (r["why"] if not t["by"] else "")
            changes = sum(t.get("changes", {}).values())
            writer.writerow([r["case"], r["runtime"], name, t["word"], t["by"], changes, " ".join(reason.split())])
    return text.getvalue()


# -- the page ---------------------------------------------------------------------------------------------------------
def page(results: Sequence[Result], peers: dict[str, Sequence[Result]]) -> str:
    """``docs/conformance.md``."""
    seconds = sum(r["seconds"] for r in results)
    return "\n".join(
        [
            _HEAD.format(versions=", ".join(f"{n} {importlib.metadata.version(n)}" for n in _VERSIONS)),
            *_requirements(results),
            "",
            "## What was taken through",
            "",
            "| cases | what |",
            "|---:|---|",
            f"| {len(results)} | in all |",
            *(f"| {count} | {name} |" for name, count in census(results)),
            "",
            f"That took {seconds / 120:.0f} minutes with two processes side by side.",
            "",
            *_per_pass(results),
            "",
            *_peers_table(results, peers),
            "",
            *_listed(results),
            "",
        ]
    )


_VERSIONS = ("onnx", "onnxruntime", "onnx-ir", "onnxsim")

_HEAD = """# Conformance

`make conformance` takes every offline case of the installed onnx package through the lossless preset `-O1`, as
`lathe optimize` applies it, and then through each lossless pass *alone with verification off*, and compares what comes
out with the outputs and the tolerances of the case. This page is its last result; a slice runs in `make test`. A run
that was cut off goes on where it was; `python -m tests.conformance --only gelu` takes the cases of that name.

Measured with {versions}.

## What is required
"""


def _requirements(results: Sequence[Result]) -> list[str]:
    rows = [(r, len(r.missed_by(results))) for r in REQUIREMENTS]
    return [
        "| | found | allowed |",
        "|---|---:|---:|",
        *(f"| {r.text} | {count}{'' if count <= r.most else ' **missed**'} | {r.most} |" for r, count in rows),
    ]


def _per_pass(results: Sequence[Result]) -> list[str]:
    names = list(dict.fromkeys(n for r in results for n in r["trials"] if n != LEVEL))
    rows = []
    for name in names:
        told = [r["trials"][name] for r in results if name in r["trials"]]
        words = Counter(t["word"] for t in told)
        inside = sum(name in r["trials"].get(LEVEL, {}).get("changes", {}) for r in results)
        wrong = words["wrong"] + words["does not load"] + words["checker rejects"]
        nobody = sum(t["word"] == "unchecked" and bool(t.get("changes")) for t in told)
        rows.append(f"| `{name}` | {inside} | {words['changed, right']} | {wrong} | {nobody} | {words['no data']} |")
    whole = Counter(r["trials"].get(LEVEL, {}).get("word") for r in results)
    return [
        "## How many cases each pass changed",
        "",
        f"`-O1` as a whole left {whole['same']} cases as they were and changed {whole['changed, right']}.",
        "",
        "| pass | changed in `-O1` | alone: changed, right | alone: wrong | alone: changed, unchecked | needs data |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
    ]


_PEER_WORDS = ("right", "wrong", "does not load", "checker rejects", "signature changed", "raises", "dead")


def _peers_table(results: Sequence[Result], peers: dict[str, Sequence[Result]]) -> list[str]:
    if not peers:
        return ["## Beside other optimizers", "", "Not measured in this run: `make conformance-peers`."]
    sound = {r["case"] for r in results if r["runtime"] == "passes"}
    whole = len(sound)
    for told in peers.values():
        sound &= {r["case"] for r in told}
    rows = []
    for name, told in {LATHE: results, **peers}.items():
        trial = LEVEL if name == LATHE else name
        words = Counter(r["trials"].get(trial, {}).get("word", "dead") for r in told if r["case"] in sound)
        words["right"] = words["same"] + words["changed, right"]
        label = "Lathe `-O1`" if name == LATHE else f"{name} {importlib.metadata.version(name)}"
        rows.append(f"| {label} | " + " | ".join(str(words[w]) for w in _PEER_WORDS) + " |")
    return [
        "## Beside other optimizers",
        "",
        f"On {len(sound)} of the {whole} cases that onnxruntime passes before; each optimizer as its documentation",
        "calls it, in a process of its own with a time limit. *Raises*: an error instead of a model. *Dead*: a crash,",
        "or no answer in time.",
        "",
        "| | " + " | ".join(_PEER_WORDS) + " |",
        "|---|" + "---:|" * len(_PEER_WORDS),
        *rows,
        "",
        *_worst_of(peers, sound),
    ]


def _worst_of(peers: dict[str, Sequence[Result]], sound: set[str]) -> list[str]:
    lines = []
    for name, told in peers.items():
        for r in told:
            verdict = r["trials"].get(name, {"word": "dead", "why": r["why"]})
            if r["case"] in sound and verdict["word"] in ("wrong", "does not load", "checker rejects", "dead"):
                lines.append(f"- {name}, `{r['case']}`: {verdict['word']}: {_short(verdict['why'])}")
    return lines


def _listed(results: Sequence[Result]) -> list[str]:
    lines = ["## Cases that need a word", ""]
    for requirement in REQUIREMENTS:
        found = requirement.missed_by(results)
        if found:
            lines += [f"### {requirement.text.capitalize()}", ""]
            lines += [f"- `{case}`: {_short('; '.join(why))}" for case, why in found.items()]
            lines.append("")
    lines += _group("Gone through the passes, but computable by nobody here", _with(results, "unchecked"))
    lines += _group("Run by onnxruntime with other outputs than the case expects, before any pass", _differing(results))
    lines += _group("Refused with a reason, and not run by onnxruntime either", _with(results, "refused"))
    return lines


def _with(results: Sequence[Result], word: str) -> dict[str, str]:
    """Reasons by case, of those that -O1 ended with this word."""
    found = {r["case"]: (r, r["trials"].get(LEVEL, {})) for r in results}
    return {case: t["why"] or r["why"] for case, (r, t) in found.items() if t.get("word") == word}


def _differing(results: Sequence[Result]) -> dict[str, str]:
    return {r["case"]: r["why"] for r in results if r["runtime"] == "differs"}


def _group(title: str, reasons: dict[str, str]) -> list[str]:
    """A list with one line for each reason; cases that differ in numbers only stand together."""
    if not reasons:
        return []
    grouped: dict[str, list[str]] = defaultdict(list)
    for case, why in reasons.items():
        grouped[_NUMBERS.sub("#", _short(why))].append(f"`{case}`")
    return [f"### {title} ({len(reasons)})", "", *(f"- {why}: {', '.join(c)}" for why, c in grouped.items()), ""]


_NUMBERS = re.compile(r"-?\b\d[\d.e+-]*\b|-?\b(inf|nan)\b")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 220 else f"{line[:217]}..."
