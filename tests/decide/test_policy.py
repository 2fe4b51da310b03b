"""Policies: what is understood, what is refused and how, and that what is written reads back."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from optimizer.decide.policy import BY_NAME, EXAMPLES, KEYS, Policy, write
from optimizer.faults import Exit, Fault


def parse(text: str) -> Policy:
    return Policy.from_toml(tomllib.loads(text), "gate.toml")


def test_values_and_defaults() -> None:
    policy = parse('[latency]\nmax_ratio = 1.02\nmax = "8ms"\n[size]\nmax = "4MB"\n[artifact]\nverify = false\n')
    assert policy["latency.max_ratio"] == 1.02 and policy["latency.max"] == 8.0 and policy["size.max"] == 4e6
    assert policy["run.provider"] == "cpu" and policy["throughput.batch"] == 8
    assert policy["artifact.verify"] is None and policy["memory.max"] is None
    assert policy.comparing() == ("latency.max_ratio",) and policy.without(("latency.max_ratio",)).comparing() == ()
    assert policy.asks("latency") and policy.asks("size.max") and not policy.asks("quality", "run")


def test_zero_and_empty_are_rules_too() -> None:
    policy = parse("[quality]\nworst = 0\nmax_drop = 0.0\n[operators]\nallow = []\n")
    assert policy["quality.worst"] == 0 and policy["operators.allow"] == () and policy.asks("quality.worst")
    assert policy["quality.max_drop"] == "0.0"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[latency]\nmaxratio = 1.0", "no key 'maxratio' in [latency] (did you mean 'max_ratio'?)"),
        ("[latencies]\nmax_ratio = 1.0", "no section 'latencies' (did you mean 'latency'?)"),
        ("latency = 1.0", "'latency' is a section: write [latency]"),
        ("[latency]\nmax_ratio = '1.0x'", "latency.max_ratio takes a number above 0, not '1.0x'"),
        ("[latency]\nmax_ratio = 0", "latency.max_ratio takes a number above 0, not 0"),
        ("[latency]\nmax_ratio = nan", "latency.max_ratio takes a number above 0, not nan"),
        ("[latency]\nmax = 8", "latency.max takes a time"),
        ("[latency]\nmax = '0.5x'", "latency.max takes a time"),
        ("[size]\nmax = '4 parsecs'", "size.max takes a size"),
        ("[artifact]\nverify = 'yes'", "artifact.verify takes true or false, not 'yes'"),
        ("[run]\nthreads = true", "run.threads takes a whole number from 1, not True"),
        ("[quality]\nmax_drop = '-1%'", "quality.max_drop takes a drop"),
        ("[operators]\nallow = 'Conv'", "operators.allow takes a list of texts, not 'Conv'"),
        ("[operators]\nopsets = 17", "operators.opsets takes a table of highest versions"),
        ("[coverage]\nmin_nodes = 1.5", "coverage.min_nodes takes a number from 0 to 1, not 1.5"),
        ("[run]\nbatch = 1", "the policy asks for nothing"),
        ("", "the policy asks for nothing"),
    ],
)
def test_what_is_refused_says_where_and_what_was_meant(text: str, told: str) -> None:
    with pytest.raises(Fault) as caught:
        parse(text)
    assert told in caught.value.message and caught.value.where == "gate.toml" and caught.value.exit is Exit.USAGE


VALUES: dict[str, Any] = {
    "run.batch": 4,
    "artifact.verify": True,
    "quality.max_drop": "0.01x",
    "latency.max_ratio": 1.025,
    "size.max": "4200kB",
    "operators.allow": ["Conv", 'com."odd"\x7f.Gelu\n'],
    "operators.opsets": {"ai.onnx": 17, "com.microsoft": 1},
}


def test_operators_of_onnx_have_one_name() -> None:
    told = {"operators": {"deny": ["ai.onnx.Conv", "com.microsoft.Gelu", "ai.onnx.ml.ZipMap"]}}
    assert Policy.from_toml(told)["operators.deny"] == ("Conv", "com.microsoft.Gelu", "ai.onnx.ml.ZipMap")
    for wrong in (["conv"], ["Convv"], []):
        with pytest.raises(Fault, match=r"operators.deny takes operators of ONNX"):
            Policy.from_toml({"operators": {"deny": wrong}})


def test_what_is_written_reads_back_and_names_every_key() -> None:
    text = write(VALUES, "Written from 'a.lathe'.")
    policy = parse(text)
    assert {k: policy[k] for k in VALUES} == {k: BY_NAME[k].read(v) for k, v in VALUES.items()}
    assert set(policy.rules) == set(VALUES)
    for key in KEYS:
        assert key.help in text and f"{key.word} = " in text


def test_every_example_of_a_fresh_policy_is_understood() -> None:
    bare = "\n".join(line.removeprefix("# ") for line in write(VALUES, "").splitlines() if " = " in line or "[" in line)
    assert set(parse(bare).rules) == set(BY_NAME)
    assert set(EXAMPLES) == set(BY_NAME)
