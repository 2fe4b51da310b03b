"""A lossless pass asks before each rewrite, so that a wrong one can be left out while the others stay."""

from __future__ import annotations

import pytest

from passes import catalogue
from passes.kit.context import Without
from passes.kit.contract import Exactness, Pass
from tests.support.corpus import CASES, Case
from tests.support.runtime import LocalContext

LOSSLESS = [
    subject
    for subject in dict.fromkeys(catalogue.build(catalogue.LOSSLESS))
    if not subject.native and subject.name != "requantize-form"
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("subject", LOSSLESS, ids=lambda s: s.name)
def test_forbidden_rewrites_are_not_made_and_the_others_are(subject: Pass, case: Case) -> None:
    assert subject.exactness is not Exactness.LOSSY
    source, context = case.build(), LocalContext(feeds=case.feeds)
    sites = list(dict.fromkeys((c.rule, c.where) for c in subject(source, context).changes))
    for left_out in ({*sites}, {*sites[1::2]}, {*sites[len(sites) // 2 :]}, {*sites[:1]}):
        result = subject(source, Without(context, frozenset(left_out)))
        made = {(c.rule, c.where) for c in result.changes}
        assert not made & left_out
        noted = {(s.rule, s.where) for s in result.skips if "is left out" in s.reason}
        assert noted <= left_out
        if sites and len(left_out) < len(sites):
            assert made, "the others go on"
