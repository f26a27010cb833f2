"""An outcome that is a text: what is reported in words is a label, a feature and a line of a report in words."""

import json
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import parcels
import pytest
from bank import booster, put_live
from command import Answer, Command
from project import Project

import mlpkg as ml
from mlpkg import lab
from mlpkg.decisions import Decider, replay, verify
from mlpkg.engine.columns import text_code
from mlpkg.features import from_json, to_json
from mlpkg.lab.archive import Archive
from mlpkg.lab.reports import report, report_text
from mlpkg.settings import Settings
from mlpkg.times import instant

SPAN = ("2026-03-01", "2026-03-21")
PARCELS = {"p0": "2026-03-01", "p1": "2026-03-02", "p2": "2026-03-03", "p3": "2026-03-06", "p4": "2026-03-20"}
SAID: list[tuple[Any, str, str, str, bool]] = [
    (parcels.why, "p0", "late", "2026-03-02T12:00Z", False),
    (parcels.why, "p1", "broken", "2026-03-04T00:00Z", False),
    (parcels.state, "p2", "lost", "2026-03-04T06:00Z", False),
    (parcels.why, "p2", "late", "2026-03-05T00:00Z", False),
    (parcels.state, "p1", "dented", "2026-03-05T00:00Z", False),
    (parcels.why, "p1", "late", "2026-03-07T00:00Z", True),
    (parcels.state, "p2", "fine", "2026-03-10T00:00Z", True),
]


def play(store: Any) -> dict[str, Any]:
    """All that happens, in the order in which it arrives; what was decided, by the parcel."""
    decider = Decider(parcels.case, store)
    happens = [(instant(f"{day}T10:00Z"), "", id) for id, day in PARCELS.items()]
    happens += [(instant(moment), k, id) for k, (_, id, _, moment, _) in enumerate(SAID)]  # type: ignore[misc]
    decisions = {}
    for moment, k, id in sorted(happens, key=lambda h: h[0]):
        if k == "":
            body = {"id": id, "time": f"{PARCELS[id]}T10:00:00Z", "customer": 1, "weight": float(id[1])}
            decisions[id] = decider.decide(body, arrived=moment)
        else:
            outcome, _, text, _, corrects = SAID[int(k)]
            outcome_body = {"id": id, outcome.name: text} | ({"corrects": True} if corrects else {})
            store.report(outcome, outcome_body, arrived=moment)
    return decisions


@pytest.fixture(scope="module")
def _store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = ml.open_store(Settings(state=tmp_path_factory.mktemp("parcels") / "state"))
    with closing(store):
        put_live(parcels.case, store)
        yield store, play(store)


@pytest.fixture
def store(_store: Any) -> Any:
    return _store[0]


@pytest.fixture
def decided(_store: Any) -> Any:
    return _store[1]


def words(value: Any) -> Any:
    known = {text_code(text): text for text in ("late", "broken", "fine", "dented", "lost")}
    return known.get(value, value)


def test_features_over_texts_see_what_was_known(store: Any, decided: Any):
    """Reported, corrected or presumed, with `where=`, in both paths and in a replay."""
    expected = {
        "p3": {"n": 3, "kinds": 2, "last": "late", "late": 2, "other": 0, "streak": 1}
        | {"a_n": 3, "usual": "lost", "a_last": "lost", "fine": 1 / 3, "bad": 2, "weight": 1.0},
        "p4": {"n": 3, "kinds": 1, "last": "late", "late": 3, "other": 0, "streak": 3}
        | {"a_n": 4, "usual": "fine", "a_last": "fine", "fine": 0.75, "bad": 1, "weight": 1.0},
    }
    for id, values in expected.items():
        served = {name: words(value) for name, value in decided[id].features.items()}
        back = {name.split("_")[1]: value for name, value in served.items() if name.startswith("back")}
        arrived = {name.split("_")[1]: value for name, value in served.items() if name.startswith("arrived")}
        arrived = {{"n": "a_n", "last": "a_last"}.get(name, name): value for name, value in arrived.items()}
        assert back | arrived == values, id
    assert verify(parcels.case, store).mismatches == 0
    trained: Any = lab.training_set(parcels.features, *SPAN, outcome="why", store=store).set_index("id")
    for id, decision in decided.items():
        for name, value in decision.features.items():
            assert (value is None and pd.isna(trained.loc[id, name])) or value == trained.loc[id, name], (id, name)
    for name in parcels.features.names:
        lab.explain(parcels.features, name, "p4", store=store)


def test_a_replay_decides_the_same_by_texts(store: Any, tmp_path: Path):
    done = replay(parcels.case, store, instant("2026-03-01"), instant("2026-03-21"), tmp_path / "again")
    assert (done.decisions, done.refused) == (5, 0)


LABELS = {
    ("why", None): ["late", "late", "late", None, None],
    ("why", "2026-03-04T12:00Z"): ["late", "broken", None, None, None],
    ("why", "2026-02-01"): [None] * 5,
    ("state", None): ["fine", "dented", "fine", "fine", "fine"],
    ("state", "2026-03-04T12:00Z"): ["fine", "fine", "lost", None, None],
    ("state", "2026-03-05T12:00Z"): ["fine", "dented", "lost", None, None],
    ("state", "2026-02-01"): [None] * 5,
}


@pytest.mark.parametrize(("outcome", "as_of"), [*LABELS])
def test_a_label_is_the_text_from_the_log(store: Any, tmp_path: Path, outcome: str, as_of: str | None):
    """From the log and from the archive, in memory and streamed, the same frame to the bit."""
    archive = Archive(store.settings.state)
    archive.export(store, [parcels.parcels], [parcels.why, parcels.state], ["parcels"])
    options: dict[str, Any] = {"as_of": as_of, "outcome": outcome, "store": store}
    frame: Any = lab.training_set(parcels.features, *SPAN, **options)
    assert str(frame["label"].dtype) == "str"
    assert [None if pd.isna(v) else v for v in frame["label"]] == LABELS[outcome, as_of]
    pd.testing.assert_frame_equal(lab.training_set(parcels.features, *SPAN, source="archive", **options), frame)
    for k, source in enumerate(("log", "archive", archive)):
        lab.stream_training_set(parcels.features, *SPAN, into=tmp_path / str(k), source=source, buckets=2, **options)
        streamed = pd.read_parquet(tmp_path / str(k))
        pd.testing.assert_frame_equal(streamed, frame)
        assert lab.training.fingerprint(streamed) == lab.training.fingerprint(frame)


def test_frames_show_the_text(store: Any):
    events: Any = lab.events(parcels.parcels, store=store)
    assert events["why"].fillna("-").tolist() == ["late", "late", "late", "-", "-"]
    assert events["state"].fillna("-").tolist() == ["-", "dented", "fine", "-", "-"], "what is presumed is not put in"
    decisions: Any = lab.decisions(use_case=parcels.case, store=store)
    assert decisions["why"].fillna("-").tolist() == ["late", "late", "late", "-", "-"]
    assert decisions["state"].fillna("-").tolist() == ["fine", "dented", "fine", "fine", "-"], (
        "the last one is the newest"
    )
    later: Any = lab.decisions(use_case=parcels.case, as_of="2026-06-01", store=store)
    assert later["state"].tolist() == ["fine", "dented", "fine", "fine", "fine"]
    assert decisions["arrived_usual_30d"].fillna("-").tolist() == ["-", "-", "fine", "lost", "fine"]
    shown: Any = lab.preview(parcels.features, events, store=store)
    assert shown["arrived_last_last_3"].tolist()[3:] == ["lost", "fine"]
    none: Any = lab.decisions("2026-06-01", use_case=parcels.case, store=store)
    assert len(none) == 0 and {"why", "state"} <= {*none.columns}


def test_one_decision_shows_its_texts(store: Any):
    decision: Any = lab.decision("p1", use_case=parcels.case, store=store)
    assert decision.outcomes[["outcome", "value", "note"]].to_numpy().tolist() == [
        ["why", "broken", "reported, corrected later,"],
        ["why", "late", "reported"],
        ["state", "dented", "reported"],
    ]
    young: Any = lab.decision("p4", use_case=parcels.case, store=store)
    assert young.outcomes["note"].tolist()[1] == "not known yet"
    silent: Any = lab.decision("p4", use_case=parcels.case, as_of="2026-06-01", store=store)
    assert silent.outcomes["value"].tolist()[1] == "fine" and "state = fine (presumed" in repr(silent)


def test_a_report_counts_the_texts_by_action(store: Any):
    assert report(parcels.case, store)["outcomes"]["state"]["unknown"] == 1, "the last parcel is the newest entry"
    summary = report(parcels.case, store, as_of="2026-06-01")
    assert summary["outcomes"]["why"]["known"] == 3 and {*summary["outcomes"]["why"]["texts"]} == {"late"}
    states = {text: sum(actions.values()) for text, actions in summary["outcomes"]["state"]["texts"].items()}
    assert states == {"fine": 4, "dented": 1} and [*states] == ["fine", "dented"]
    assert "fine              4: " in report_text(summary)
    json.dumps(summary, allow_nan=False)


def test_a_comparison_is_told_which_texts_are_a_yes(store: Any):
    version = store.active_version("parcels")
    span: Any = ("2026-03-01", "2026-03-21")
    options: Any = {"use_case": parcels.case, "outcome": "state", "store": store}
    plain = lab.compare("served", version, *span, **options)
    assert not plain.rows["judged"].any() and plain.rows["state"].tolist()[1] == "dented"
    assert plain.left_out["have a text as their outcome: say with positive= which counts"] == 5
    judged = lab.compare("served", version, *span, positive=["dented", "lost"], by="state", **options)
    assert judged.rows["judged"].sum() == 5
    assert not math.isnan(judged.metrics.loc["auc", "a"])
    assert {*judged.segments["segment"]} == {"fine", "dented"}
    with pytest.raises(ml.MlpkgError, match="no 'state' was ever 'dentde'; did you mean 'dented'"):
        lab.compare("served", version, *span, positive="dentde", **options)


def test_a_model_learns_one_question_about_a_text(store: Any):
    """The training code maps the texts to labels; the saved model gives one score."""
    rows: Any = lab.training_set(parcels.features, *SPAN, outcome="state", store=store)
    label = (rows["label"] == "dented").astype(int)
    assert label.tolist() == [0, 1, 0, 0, 0]


def test_a_stored_definition_keeps_the_presumed_text():
    again = from_json(to_json(parcels.features))
    assert to_json(again) == to_json(parcels.features)
    state = again.on.outcomes["state"]
    assert (state.default, state.default_code) == ("fine", text_code("fine"))


@pytest.fixture
def shop(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    (project.folder / "settings.ini").write_text("[DEFAULT]\nstate = state\nuse_cases =\n    parcels = parcels:case\n")
    with closing(ml.open_store(project.settings)) as store:
        put_live(parcels.case, store, booster(parcels.features))
        for k in range(12):
            time = f"2026-03-{k + 1:02}T10:00:00Z"
            body = {"id": f"p{k}", "time": time, "customer": 1, "weight": 2.0}
            Decider(parcels.case, store).decide(body, arrived=instant(time))
    yield project


@pytest.mark.parametrize(
    "text", ["late", "it was late", "5", "1.5", "true", "null", "{}", "[1]", "Ü-Wagen 東京", "-1", "None"]
)
def test_the_command_takes_any_text_as_a_truth(shop: Project, cli: Command, text: str):
    done: Answer = (
        cli("outcome", "parcels", "p1", text, "--name", "why", "--json")
        if text != "-1"
        else cli("outcome", "parcels", "--name", "why", "--json", "--", "p1", text)
    )
    assert done.status == 0 and done.json["new"], done.err
    with closing(ml.open_store(shop.settings)) as store:
        events: Any = lab.events(parcels.parcels, store=store)
        assert events["why"].tolist()[1] == text


def test_the_command_says_what_a_truth_may_be(shop: Project, cli: Command):
    cli("outcome", "parcels", "p1", "brokn", "--name", "state").said_one_line(
        "State.state", "brokn", "fine", "dented", "lost"
    )
    assert cli("outcome", "parcels", "p1", "dented", "--name", "state").out == "p1: noted\n"
    assert cli("outcome", "parcels", "p1", '"dented"', "--name", "state").out == "p1: known already\n"
    cli("outcome", "parcels", "p1", "fine", "--name", "state").said_one_line(
        "was used before for other content", "corrects"
    )
    assert cli("outcome", "parcels", "p1", "lost", "--name", "state", "--corrects").out == "p1: noted\n"
    assert cli("outcome", "parcels", "p1", "dented", "--name", "state", "--corrects").out == "p1: noted\n"
    assert cli("outcome", "parcels", "p1", "fine").status == 2
    cli("outcome", "parcels", "p1", "fine", "--name", "stat").said_one_line("no outcome 'stat'", "state")
    answer = cli("report", "parcels")
    assert answer.status == 0 and "dented            1: " in answer.out
    assert (
        cli(
            "training-set",
            "parcels",
            "--from",
            "2026-03-01",
            "--to",
            "2026-04-01",
            "--outcome",
            "state",
            "-o",
            "rows.csv",
        ).status
        == 0
    )
    rows = pd.read_csv(shop.folder / "rows.csv")
    assert rows["label"].tolist()[:3] == ["fine", "dented", "fine"]


def test_a_text_outcome_comes_in_by_a_file(shop: Project, cli: Command):
    """As a column beside the events, where silence decides, and as a file of its own."""
    times = pd.date_range("2026-04-01", periods=3, freq="D", tz="UTC")
    frame = pd.DataFrame(
        {"id": list("abc"), "time": times, "customer": 2, "weight": 1.5, "state": ["dented", None, "fine"]}
    )
    frame.to_parquet(shop.folder / "more.parquet")
    done = cli("ingest", "parcels", "more.parquet", "--json")
    assert done.status == 0 and done.json["refused"] == [], done.err
    reports = pd.DataFrame({"id": list("abc"), "arrived": times + pd.Timedelta(days=5), "why": ["late", "5", "a; b"]})
    reports.to_csv(shop.folder / "why.csv", index=False)
    done = cli("ingest", "parcels", "why.csv", "--source", "why", "--json")
    assert done.status == 0 and done.json["refused"] == [], done.err
    with closing(ml.open_store(shop.settings)) as store:
        events: Any = lab.events(parcels.parcels, "2026-04-01", store=store)
        assert events["why"].tolist() == ["late", "5", "a; b"]
        assert events["state"].fillna("-").tolist() == ["dented", "-", "-"]
        rows: Any = lab.training_set(parcels.features, "2026-04-01", "2026-05-01", outcome="state", store=store)
        assert rows["label"].tolist() == ["dented", "fine", "fine"]


def test_whole_numbers_and_numbers_are_labels_as_they_are(tmp_path: Path):
    source = ml.Source("orders", parcels.Parcel)
    days = source.outcome("days", int)
    paid = source.outcome("paid", ml.Money)
    features = ml.FeatureSet("orders", on=source, weight=ml.field("weight"))
    with closing(ml.open_store(Settings(state=tmp_path / "state"))) as store:
        for k in range(3):
            body = {"id": f"o{k}", "time": f"2026-03-0{k + 1}T10:00:00Z", "customer": 1, "weight": 2.0}
            store.accept(source, body, arrived=instant(body["time"]))  # type: ignore[arg-type]
        store.report(days, {"id": "o1", "days": 5})
        store.report(paid, {"id": "o1", "paid": 2.5})
        events: Any = lab.events(source, store=store)
        rows = [lab.training_set(features, *SPAN, outcome=name, store=store)["label"] for name in ("days", "paid")]
        for name, label in zip(("days", "paid"), rows, strict=True):
            pd.testing.assert_series_equal(pd.Series(events[name].array), pd.Series(label.array))
        assert rows[0].dtype == pd.Int64Dtype() and rows[0].tolist()[1] == 5
        assert np.isnan(rows[1].to_numpy()).tolist() == [True, False, True]
