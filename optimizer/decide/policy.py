"""What a gate holds an artifact to: the rules of a policy file, each declared once with its meaning.

A policy is TOML. A rule that is not there is not asked for; a key that is not a rule is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optimizer.decide.budget import Budget
from optimizer.faults import Fault, usage
from passes.kit.options import closest


class Unreadable(ValueError):
    """A value that is not of the kind of its key; the text says what was wanted."""


@dataclass(frozen=True)
class Key:
    """One key of a policy. ``compares`` says that it needs a baseline; ``site`` keys say how to measure and rule
    nothing by themselves."""

    name: str
    read: Callable[[Any], Any]
    help: str
    compares: bool = False
    site: bool = False

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    @property
    def word(self) -> str:
        return self.name.partition(".")[2]


# -- kinds of values ---------------------------------------------------------------------------------------------------
def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Unreadable("true or false")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Unreadable("a number")
    return float(value)


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise Unreadable("a number above 0")
    return float(value)


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise Unreadable("a number from 0 to 1")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Unreadable("a whole number from 1")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise Unreadable("a text")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise Unreadable("a list of texts")
    return tuple(value)


def _operators(value: Any) -> tuple[str, ...]:
    """Operators as a gate calls them: those of ONNX's own domain by their bare names."""
    names = _names(value)
    bare = (n.removeprefix("ai.onnx.") for n in names)
    return tuple(b if "." not in b else n for n, b in zip(names, bare, strict=True))


def _denied(value: Any) -> tuple[str, ...]:
    """As :func:`_operators`; a name that ONNX does not know would forbid nothing, so it is refused."""
    import onnx

    found = _operators(value)
    known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    wrong = [n for n in found if "." not in n and n not in known]
    if wrong or not found:
        near = closest(wrong[0], known) if wrong else ""
        raise Unreadable(f"operators of ONNX, or of another domain as in com.microsoft.Gelu{near}")
    return found


def _versions(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or not value:
        raise Unreadable('a table of highest versions by domain, as in { "ai.onnx" = 21 }')
    return {str(domain): _count(version) for domain, version in value.items()}


def _drop(value: Any) -> str:
    """A drop in the words of ``--budget``: 0.005, "0.5%" (points), "0.01x" (of the baseline's value)."""
    told = f"{value!r}" if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    if not isinstance(told, str) or not re.fullmatch(r"\s*(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*[%x]?\s*", told):
        raise Unreadable('a drop: 0.005, "0.5%" or "0.01x"')
    return told.strip()


def _amount(subject: str, wanted: str) -> Callable[[Any], float]:
    """An absolute limit in the words of ``--budget``, as milliseconds or bytes."""

    def read(value: Any) -> float:
        try:
            (limit,) = Budget.parse([f"{subject}<={value}"], None).limits()
        except Fault:
            raise Unreadable(wanted) from None
        if limit.relative:
            raise Unreadable(wanted)
        return limit.value

    return read


_time = _amount("latency", 'a time such as "8ms" (us, ms, s)')
_bytes = _amount("size", 'a size such as "4MB" (kB, MB, GB; KiB, MiB, GiB)')

KEYS: tuple[Key, ...] = (
    Key("run.provider", _text, "where to run: cpu, cuda, ... or the runtime's full name", site=True),
    Key("run.threads", _count, "threads of one run", site=True),
    Key("run.batch", _count, "samples of one run, for latency", site=True),
    Key("artifact.verify", _flag, "every check of `lathe verify` holds"),
    Key("artifact.signature", _flag, "inputs and outputs are the baseline's", compares=True),
    Key("quality.metric", _text, "top1, ..., or module:function; by default the one that fits the data", site=True),
    Key("quality.data", _text, "samples, relative to this file; --data wins", site=True),
    Key("quality.max_drop", _drop, 'largest loss, shown at 95 %: 0.005, "0.5%" or "0.01x", as --budget', compares=True),
    Key("quality.max_slice_drop", _drop, "as max_drop, in every class or slice: the worst one counts", compares=True),
    Key("quality.slice_by", _text, "array of the data: the slice of each sample; by default its class", site=True),
    Key("quality.worst", _number, "the value itself is at least this (at most, where lower is better), at 95 %"),
    Key("latency.max_ratio", _positive, "time of one run over the baseline's, measured now", compares=True),
    Key("latency.max", _time, 'time of one run on this machine, as in "8ms"'),
    Key("throughput.batch", _count, "samples of one run, for throughput", site=True),
    Key("throughput.min_ratio", _positive, "samples per second over the baseline's, measured now", compares=True),
    Key("throughput.min", _positive, "samples per second on this machine"),
    Key("size.max", _bytes, 'bytes of model and weights, as in "4MB"'),
    Key("size.max_ratio", _positive, "bytes over the baseline's", compares=True),
    Key("memory.max", _bytes, 'peak memory that loading and running adds, as in "200MB"'),
    Key("memory.max_ratio", _positive, "that memory over the baseline's", compares=True),
    Key("operators.allow", _operators, "nothing but these; other domains are written com.microsoft.Gelu"),
    Key("operators.deny", _denied, "none of these"),
    Key("operators.opsets", _versions, "highest opset of each domain; other domains are refused"),
    Key("operators.max_ir", _count, "highest IR version"),
    Key("coverage.min_nodes", _share, "share of the nodes that run on run.provider, by the runtime's profile"),
    Key("instructions.deployed_on", _names, "CPU features where it will run, as Linux names them"),
    Key("instructions.here", _names, "CPU features that this machine must have for its measurements to count"),
)  # fmt: skip
"""Every key of a policy, in the order in which a policy is written and judged."""

BY_NAME = {key.name: key for key in KEYS}
SECTIONS = tuple(dict.fromkeys(key.section for key in KEYS))
DEFAULTS: Mapping[str, Any] = {"run.provider": "cpu", "run.threads": 1, "run.batch": 1, "throughput.batch": 8}


@dataclass(frozen=True)
class Policy:
    """The rules that hold, by their full names (``latency.max_ratio``). ``where`` is the file they come from."""

    rules: Mapping[str, Any]
    where: str = "policy"

    def __getitem__(self, name: str) -> Any:
        """The value of a key, its default, or ``None`` when it is not asked for. A flag that is false is not."""
        value = self.rules.get(name, DEFAULTS.get(name))
        return None if value is False else value

    def asks(self, *names: str) -> bool:
        """Whether any of these keys, or of the keys of these sections, is asked for."""
        return any(self[k.name] is not None and not k.site for k in KEYS if k.name in names or k.section in names)

    def comparing(self) -> tuple[str, ...]:
        """The rules that need a baseline."""
        return tuple(k.name for k in KEYS if k.compares and self[k.name] is not None)

    def without(self, names: tuple[str, ...]) -> Policy:
        """The policy with some rules taken out."""
        return Policy({k: v for k, v in self.rules.items() if k not in names}, self.where)

    @classmethod
    def from_toml(cls, tree: Mapping[str, Any], where: str = "policy") -> Policy:
        """Read a policy. Raises a usage :class:`Fault` for unknown keys, with the closest match, for values of
        another kind, and for a policy that asks for nothing."""
        found: dict[str, Any] = {}
        for section, keys in tree.items():
            if section not in SECTIONS:
                raise _fault(where, f"no section '{section}'{closest(section, SECTIONS)}")
            if not isinstance(keys, dict):
                raise _fault(where, f"'{section}' is a section: write [{section}]")
            for word, value in keys.items():
                key = BY_NAME.get(f"{section}.{word}")
                if key is None:
                    known = [k.word for k in KEYS if k.section == section]
                    raise _fault(where, f"no key '{word}' in [{section}]{closest(word, known)}", ", ".join(known))
                try:
                    found[key.name] = key.read(value)
                except Unreadable as wanted:
                    raise _fault(where, f"{key.name} takes {wanted}, not {value!r}") from None
        policy = cls(found, where)
        if not policy.asks(*SECTIONS):
            raise _fault(where, "the policy asks for nothing", "'lathe gate --init ARTIFACT' writes one to start from")
        return policy


def _fault(where: str, message: str, hint: str = "") -> Fault:
    told = f"Known: {hint}." if hint and "lathe" not in hint else hint
    return usage(message, where=where, hint=told, code="bad-policy")


# -- writing -----------------------------------------------------------------------------------------------------------
HEAD = """\
# What 'lathe gate' holds an artifact to. A rule that is not here is not asked for; an unknown key is an error.
# Verdicts: pass (exit 0), fail (exit 1), undecided (exit 4: it says how many samples or minutes are missing).
"""

EXAMPLES: Mapping[str, Any] = {
    **DEFAULTS,
    "artifact.verify": True,
    "artifact.signature": True,
    "quality.metric": "top1",
    "quality.data": "gate.npz",
    "quality.max_drop": "0.5%",
    "quality.max_slice_drop": "5%",
    "quality.slice_by": "region",
    "quality.worst": 0.95,
    "latency.max_ratio": 1.025,
    "latency.max": "8ms",
    "throughput.min": 1000.0,
    "throughput.min_ratio": 0.975,
    "size.max": "4MB",
    "size.max_ratio": 1.0,
    "memory.max": "200MB",
    "memory.max_ratio": 1.1,
    "operators.allow": ("Conv", "Relu"),
    "operators.deny": ("Loop", "Scan"),
    "operators.opsets": {"ai.onnx": 17},
    "operators.max_ir": 10,
    "coverage.min_nodes": 1.0,
    "instructions.deployed_on": ("avx2", "avx512_vnni"),
    "instructions.here": ("avx2",),
}
"""What stands, commented out, for keys that a fresh policy does not ask for."""


def write(values: Mapping[str, Any], about: str) -> str:
    """A commented policy that asks for ``values`` (by full names, as a file would give them); every other key stands
    in it as a comment. ``about`` is a line on where the values come from. Reading it again gives the values."""
    lines = [HEAD + f"# {about}"]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for key in (k for k in KEYS if k.section == section):
            value = values.get(key.name, EXAMPLES[key.name])
            mark = "" if key.name in values else "# "
            lines.append(f"{mark}{key.word} = {_toml(value)}  # {key.help}" + (" (baseline)" if key.compares else ""))
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
