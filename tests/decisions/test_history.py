"""History may be loaded in any order: what counts is when it arrived, not where it stands in the log."""

import os
import random
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bank import START, put_live
from batches import Sent, batch_of

import mlpkg as ml
from mlpkg import lab
from mlpkg.decisions import Decider
from mlpkg.settings import Settings
from mlpkg.times import DAY, HOUR, MINUTE, iso

pytestmark = pytest.mark.slow


class Payment(ml.Event):
    card: int
    shop: str
    amount: ml.Money


class Visit(ml.Event):
    card: int
    page: str | None = None


class Profile(ml.Event):
    card: int
    segment: str | None = None


paid = ml.Source("paid", Payment, retention="90d", allowed_lateness="3d")
visits = ml.Source("visits", Visit, retention="60d", allowed_lateness="3d")
profiles = ml.Table("profiles", Profile, key="card")
fraud_of = paid.outcome("fraud", bool, default=False, matures_after="7d")
refund_of = paid.outcome("refund", float)
decided_of = paid.decisions("any")
any_order = ml.FeatureSet(
    "any",
    on=paid,
    card=paid.by("card").agg(
        n=ml.count(over=["1d", "30d"]), last=ml.last("shop", over="last 3"), mean=ml.mean("amount", over="all")
    ),
    pair=paid.by("card", "shop").agg(since=ml.time_since_last(over="30d")),
    visits=visits.by("card").agg(n=ml.count(over="7d", where="page == 'help'"), page=ml.last("page", over="7d")),
    profile=profiles.latest("segment"),
    risk=fraud_of.by("shop").agg(
        n=ml.count(over="30d"), mean=ml.mean("fraud", over="30d"), last=ml.last("fraud", over="30d")
    ),
    later=fraud_of.by("shop", delay="7d").agg(mean=ml.mean("fraud", over="30d")),
    refunds=refund_of.by("card").agg(
        n=ml.count(over="30d"), sum=ml.sum("refund", over="30d"), last=ml.last("refund", over="all")
    ),
    acted=decided_of.by("card").agg(n=ml.count(over="30d"), action=ml.last("action", over="30d")),
    more=ml.field("amount") - ml.feature("card_mean_all"),
)
case = ml.UseCase("any", any_order, policy=lambda score, event: "stop" if event.amount > 50 else "go")
SPAN = ("2018-04-01", "2018-07-01")


def story(seed: int, grid: int = 3 * HOUR, apart: bool = False) -> tuple[list[Sent], list[Sent]]:
    """What is decided, in its order, and what is loaded: late, tied, corrected, and reports that may not say when they arrived.

    With `apart`, everything arrives at another time.
    """
    draw = random.Random(seed)
    decided, loaded = [], []

    def report(outcome: Any, id: str, truth: Any, after: int, corrects: bool = False) -> None:
        body = {"id": id, outcome.name: truth} | ({"corrects": True} if corrects else {})
        loaded.append((outcome, body, None if not apart and draw.random() < 0.2 else after))

    for k in range(140):
        time = START + draw.randrange(30 * DAY) // grid * grid
        late = 0 if draw.random() < 0.6 else draw.randrange(3 * DAY) // grid * grid
        card = {"card": draw.randrange(4), "time": iso(time)}
        kind = draw.random()
        if kind < 0.15:
            loaded.append((visits, card | {"id": f"{k}", "page": draw.choice(["help", "home", None])}, time + late))
        elif kind < 0.3:
            gone = {"deleted": True} if draw.random() < 0.3 else {"segment": draw.choice(["old", "new", None])}
            loaded.append((profiles, card | {"id": f"{k}"} | gone, time + late))
        else:
            body = card | {"id": f"{k}", "shop": draw.choice("abc"), "amount": draw.randrange(9999) / 100}
            (decided if draw.random() < 0.1 else loaded).append((paid, body, time + late))
            for outcome, chance in ((fraud_of, 0.4), (refund_of, 0.3)):
                moment = time + draw.randrange(-DAY, 12 * DAY) // grid * grid
                for version in range(draw.choice([1, 1, 2, 3]) if draw.random() < chance else 0):
                    truth = draw.random() < 0.6 if outcome is fraud_of else draw.randrange(9999) / 100
                    report(outcome, f"{k}", truth, max(moment, START), corrects=version > 0)
                    moment += draw.randrange(3) * grid  # corrections may arrive at once
    decided.sort(key=lambda s: s[2] or 0)
    if apart:
        everything = sorted([*decided, *loaded], key=lambda s: s[2] or 0)
        return [], [(stream, body, (arrival or 0) + k) for k, (stream, body, arrival) in enumerate(everything)]
    return decided, loaded


def in_some_order(sent: list[Sent], how: int, draw: random.Random) -> list[list[Sent]]:
    """The same, in batches: shuffled, newest first, oldest first, one source after the other, reports first."""
    sent = list(sent)
    draw.shuffle(sent)
    if how % 5 == 1:
        sent.sort(key=lambda s: s[2] or 0, reverse=True)
    elif how % 5 == 2:
        sent.sort(key=lambda s: s[2] or 0)
    elif how % 5 == 3:
        order = draw.sample(["paid", "visits", "profiles", "paid.fraud", "paid.refund"], 5)
        sent.sort(key=lambda s: order.index(s[0].stream))
    elif how % 5 == 4:
        sent.sort(key=lambda s: s[0] in (paid, visits, profiles))
    batches = []
    while sent:
        n = draw.choice([1, 3, 20, 200])
        batches.append(sent[:n])
        del sent[:n]
    return batches


def put(store: Any, batch: list[Sent]) -> None:
    """Load a batch; a single row comes as a call may bring it."""
    if len(batch) > 1 or batch[0][2] is None:
        done = store.load(batch_of(batch))
        assert not done.refused
        return
    ((stream, body, arrived),) = batch
    (store.accept if isinstance(stream, ml.Source) else store.report)(stream, body, arrived=arrived)


def store_of(path: Path, decided: list[Sent], batches: list[list[Sent]]) -> Any:
    """A store in which some events are decided, and then the history before and after them is loaded."""
    store = ml.open_store(Settings(state=path))
    store.register("any", any_order)
    if decided:
        put_live(case, store)
        decider = Decider(case, store)
        for _, body, arrived in decided:
            decider.decide(body, arrived=arrived)
    for batch in batches:
        put(store, batch)
    return store


def same_bits(frame: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(frame, expected, check_exact=True)
    for name in any_order.names:
        if name not in any_order.categories:
            assert (frame[name].to_numpy().view(np.int64) == expected[name].to_numpy().view(np.int64)).all(), name


LONG = bool(os.environ.get("MLPKG_LONG"))
SEEDS, ORDERS = (10, 50) if LONG else (1, 5)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_history_loaded_in_any_order_gives_the_same_training_set(tmp_path: Path, seed: int):
    """To the bit, from the log and from the archive, in memory and streamed."""
    decided, loaded = story(seed)
    expected = None
    for how in range(ORDERS):
        draw = random.Random(1000 * seed + how)
        with closing(store_of(tmp_path / f"{how}", decided, in_some_order(loaded, how, draw))) as store:
            frame = lab.training_set(any_order, *SPAN, outcome="fraud", as_of="2018-04-20", store=store)
            if expected is None:
                expected = frame
                assert (
                    len(frame) > 70
                    and sum(frame["risk_n_30d"].tolist()) > 50
                    and sum(frame["refunds_n_30d"].tolist()) > 20
                )
                assert sum(frame["acted_n_30d"].tolist()) > 10 and {*frame["label"].tolist()} == {True, False, pd.NA}
            same_bits(frame, expected)
            if how % 5 == 0 or LONG:
                rows: Any = lab.events(paid, store=store)
                shown = lab.preview(any_order, rows, store=store).set_index("id").loc[frame["id"]]
                assert shown["card_mean_all"].tolist() == frame["card_mean_all"].tolist()
                archive = lab.Archive(store.settings.state)
                archive.export(store, any_order.sources, [fraud_of, refund_of], ["any"])
                for source in ("archive", "log"):
                    into = tmp_path / f"{how}.{source}"
                    options: Any = {"outcome": "fraud", "as_of": "2018-04-20", "source": source, "store": store}
                    lab.stream_training_set(any_order, *SPAN, into=into, buckets=3, progress=False, **options)
                    same_bits(pd.read_parquet(into), expected)
                    same_bits(lab.training_set(any_order, *SPAN, **options), expected)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_arrives_live_is_the_same_as_logged_and_as_arrived(tmp_path: Path, seed: int):
    """Also when the same was loaded in another order."""
    _, sent = story(seed, grid=MINUTE, apart=True)
    frames = []
    for how, batches in enumerate(([[s] for s in sent], in_some_order(sent, 0, random.Random(seed)))):
        with closing(store_of(tmp_path / f"{how}", [], batches)) as store:
            options: Any = {"outcome": "fraud", "as_of": "2018-04-20", "store": store}
            frames.append(lab.training_set(any_order, *SPAN, **options))
            if how == 0:
                logged = lab.training_set(any_order, *SPAN, history="as_logged", **options)
                frames.append(logged.set_index("id").loc[frames[0]["id"]].reset_index())
    same_bits(frames[1], frames[0])
    same_bits(frames[2], frames[0])
