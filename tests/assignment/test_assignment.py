"""A unit has the same variant for ever and everywhere, shares are right, and layers do not disturb each other."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cards import payment, payments
from scipy import stats

from mlpkg.assignment import MILLION, Assigner, Rollout, Setup, Variant, bucket, decode_setup, encode_setup
from mlpkg.schema import ValidatedEvent

SHARES = {"control": 500_000, "newer": 300_000, "strict": 195_000, "rare": 5_000}


def rollout(name: str = "trial", **parts) -> Rollout:
    variants = [Variant(name=v, share=share) for v, share in SHARES.items()]
    return Rollout(
        **{"name": name, "kind": "experiment", "salt": f"{name}-1", "unit": "card", "variants": variants} | parts
    )


def paid(card: int, id: str = "p1") -> ValidatedEvent:
    return payments.parse(payment(id, 0, card=card))


def test_a_million_units_have_the_shares_that_were_stated():
    edges = rollout().edges()
    buckets = np.array([bucket("trial-1", str(n)) for n in range(MILLION)])
    counts = np.diff([0, *(int((buckets < edge).sum()) for edge in edges)])
    assert stats.chisquare(counts, list(SHARES.values())).pvalue > 1e-4, counts
    assert stats.kstest(buckets / MILLION, "uniform").pvalue > 1e-4


def test_layers_are_independent_of_each_other():
    """Knowing the variant in one layer says nothing about the variant in another."""
    first, second = (np.array([bucket(salt, str(n)) * 4 // MILLION for n in range(200_000)]) for salt in ("a", "b"))
    table = np.zeros((4, 4), int)
    np.add.at(table, (first, second), 1)
    result: Any = stats.chi2_contingency(table)
    assert result.pvalue > 1e-4, table


def test_a_unit_has_the_same_variant_in_another_process(tmp_path: Path):
    """Another interpreter, with another hash seed, assigns the same: nothing but the rollout's text is shared."""
    setup = Setup(rollouts=[rollout()])
    here = [Assigner("cards", setup, payments).assign(paid(n))[0].variant.name for n in range(2_000)]
    program = (
        "import sys, json\nfrom cards import payment, payments\nfrom mlpkg.assignment import Assigner, decode_setup\n"
        "assigner = Assigner('cards', decode_setup(sys.stdin.read()), payments)\n"
        "events = [payments.parse(payment('other', 3, card=n)) for n in range(2_000)]\n"
        "print(json.dumps([assigner.assign(e)[0].variant.name for e in events]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], input=encode_setup(setup), capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout) == here and set(here) == set(SHARES)


def test_a_canary_that_grows_keeps_its_units():
    """Whoever was with the candidate at 5 % is still with it at 25 %."""

    def of_candidate(share: int) -> set[int]:
        variants = [Variant(name="candidate", share=share), Variant(name="control", share=MILLION - share)]
        assigner = Assigner("cards", Setup(rollouts=[rollout(variants=variants, kind="canary")]), payments)
        return {n for n in range(5_000) if assigner.assign(paid(n))[0].variant.name == "candidate"}

    few, more = of_candidate(50_000), of_candidate(250_000)
    assert few < more and 150 < len(few) < 350 and 1_100 < len(more) < 1_400


def test_rollouts_of_one_layer_share_no_unit():
    half = MILLION // 2
    setup = Setup(rollouts=[rollout("a", last=half), rollout("b", first=half)])
    assigner = Assigner("cards", setup, payments)
    counts = Counter(tuple(a.rollout.name for a in assigner.assign(paid(n))) for n in range(4_000))
    assert set(counts) == {("a",), ("b",)} and stats.binomtest(counts["a",], 4_000).pvalue > 1e-4


def test_a_unit_that_an_event_lacks_takes_no_part():
    assigner = Assigner("cards", Setup(rollouts=[rollout(unit="shop")]), payments)
    assert assigner.assign(payments.parse(payment("p", 0, shop=None))) == []


@pytest.mark.parametrize("id", ["p1", "ä", "x" * 200])
def test_by_default_each_event_is_a_unit(id: str):
    assigner = Assigner("cards", Setup(rollouts=[rollout(unit="id")]), payments)
    event = paid(1, id)
    assert assigner.assign(event) == assigner.assign(event)
    assert decode_setup(encode_setup(Setup(rollouts=[rollout()]))) == Setup(rollouts=[rollout()])
