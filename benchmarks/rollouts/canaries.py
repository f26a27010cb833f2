"""How often a good canary is rolled back by mistake, and how soon a bad one is.

    python benchmarks/rollouts/canaries.py [--full] [--payments FILE] [-o FILE]

A model is trained on simulated card payments, or on a file that `mlpkg ingest fraud` reads. Then canaries of 1, 5, 10, 25 and 50 %
are drawn from its scores: identical ones, ones whose harm is just what is tolerated, and ones with a stated degradation. All
usual guardrails are judged after every hundred decisions of the candidate, with a stated error of 5 % for the whole canary.
Outcomes are known at once, which favours the log loss. `docs/guardrails.md` has the table.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "tests" / "support")]

import lightgbm as lgb  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from bench import BenchmarkRow, arguments, report, row  # noqa: E402
from simulated_canaries import CanaryRun, Decides, run_canary  # noqa: E402

from mlpkg.examples.fraud.simulator import simulate  # noqa: E402
from mlpkg.rollout.distributions import score_edges  # noqa: E402
from mlpkg.rollout.guardrails import Guardrail, default_guardrails  # noqa: E402

OTHERS = "features of another payment"
DECLINED = 0.02  # the share of payments that the control declines


def training_set(options: argparse.Namespace) -> pd.DataFrame:
    """Return the features and the label of payments, by the command line."""
    with tempfile.TemporaryDirectory() as folder:
        file, rows = options.payments or Path(folder) / "payments.parquet", Path(folder) / "rows.parquet"
        if options.payments is None:
            simulate(2000 if options.full else 500, 4000 if options.full else 1000, 120).to_parquet(file)
        for command in (
            ["ingest", "fraud", str(file.resolve())],
            ["training-set", "fraud", "--from", "2018-05-01", "--to", "2018-07-31", "-o", str(rows)],
        ):
            subprocess.run(
                [sys.executable, "-m", "mlpkg.cli", *command],
                env=os.environ | {"MLPKG_STATE": folder},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
        return pd.read_parquet(rows)


def variants(rows: pd.DataFrame, rng: np.random.Generator) -> tuple[Decides, dict[str, Decides]]:
    """Train on the first two thirds; return how the model decides the rest, and how others would that are worse."""
    truths = rows["label"].to_numpy(bool)
    features = rows.iloc[:, 4:-1].to_numpy(float)
    cut = len(rows) * 2 // 3
    parameters = {"objective": "binary", "num_leaves": 31, "learning_rate": 0.05, "verbose": -1, "num_threads": 2}
    model = lgb.train(parameters, lgb.Dataset(features[:cut], truths[:cut]), 100)

    def scores(columns: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(columns))

    features, truths = features[cut:], truths[cut:]
    good = scores(features)
    threshold = float(np.quantile(good, 1 - DECLINED))
    loss = [float(-np.log(np.where(truths, p, 1 - p)).mean()) for p in (good, rng.permutation(good))]
    print(f"{len(good):,} payments, {truths.mean():.2%} frauds, log loss {loss[0]:.4f}, in another order {loss[1]:.4f}")
    control = Decides(good, truths, threshold, edges=score_edges(good))
    odds = good / (1 - good) * 10
    order = np.roll(np.arange(features.shape[1]), 1)
    return control, {
        "0.5 % errors more": replace(control, errors=0.006),
        "2 % errors more": replace(control, errors=0.021),
        "2 % deadlines more": replace(control, deadlines=0.021),
        "5 % deadlines more": replace(control, deadlines=0.051),
        "20 % deadlines more": replace(control, deadlines=0.201),
        "latency × 1.3": replace(control, slower=1.3),
        "latency × 1.5": replace(control, slower=1.5),
        "latency × 2": replace(control, slower=2.0),
        "5 points more declined": replace(control, threshold=float(np.quantile(good, 1 - DECLINED - 0.05))),
        "10 points more declined": replace(control, threshold=float(np.quantile(good, 1 - DECLINED - 0.1))),
        "odds of a fraud × 10": replace(control, scores=odds / (1 + odds)),
        "features in a wrong order": replace(control, scores=scores(features[:, order])),
        OTHERS: replace(control, scores=rng.permutation(good)),
        "one score for all": replace(control, scores=np.full(len(good), good.mean())),
    }


def tolerated(control: Decides) -> Decides:
    """Return a candidate whose harm is just what the usual guardrails tolerate."""
    threshold = float(np.quantile(control.scores, 1 - (DECLINED + 0.03) / 0.988))
    return replace(control, errors=0.006, deadlines=0.006, slower=1.2, threshold=threshold)


def row_of(work: str, runs: list[CanaryRun]) -> BenchmarkRow:
    """Return the row of a degradation: the decisions of the candidate until it was rolled back."""
    back = [run for run in runs if run.state == "breach"]
    count = [run.decisions for run in back] or [0]
    metrics = Counter(metric for run in back for metric in run.metrics)
    others = Counter(run.state for run in runs if run.state != "breach")
    note = f"rolled back {len(back)} of {len(runs)}, in step 1 {sum(run.step == 1 for run in back)}; "
    note += f"p90 {np.quantile(count, 0.9):,.0f}; of both arms {np.median([r.everywhere for r in back] or [0]):,.0f}; "
    note += ", ".join(f"{metric} {times}" for metric, times in metrics.most_common()) + f"; else {dict(others)}"
    work = f"{work}: decisions of the candidate until rollback, median"
    return row(work, float(np.median(count)), "", None, "ours >= 0", "", note)


def measure(options: argparse.Namespace) -> Iterator[BenchmarkRow]:
    rng = np.random.default_rng(1)
    control, worse = variants(training_set(options), rng)
    guardrails = default_guardrails(["decline"], outcomes=True)
    many, few = (400, 50) if options.full else (20, 5)
    for work, candidate, by_hand in (
        ("identical canaries rolled back", control, False),
        ("canaries at the tolerated harm rolled back", tolerated(control), True),
    ):
        runs = [
            run_canary(rng, control, candidate, guardrails, by_hand=by_hand, most=3000 if by_hand else 10_000)
            for _ in range(many)
        ]
        states, count = Counter(run.state for run in runs), np.median([run.decisions for run in runs])
        note = f"of {many}: {dict(states)}; median {count:,.0f} decisions of the candidate, "
        note += f"{np.median([run.everywhere for run in runs]):,.0f} of both arms"
        yield row(work, states["breach"] / many, "", None, "ours <= 0.05", "", note)
    for work, candidate in worse.items():
        yield row_of(work, [run_canary(rng, control, candidate, guardrails, most=10_000) for _ in range(few)])
    strict = [*guardrails[:-1], Guardrail("log loss", 0.01)]
    runs = [run_canary(rng, control, worse[OTHERS], strict, most=10_000) for _ in range(few)]
    yield row_of(f"{OTHERS}, log loss at most 0.01 higher", runs)


if __name__ == "__main__":
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--payments", type=Path, help="a file that `mlpkg ingest fraud` reads, from April to September 2018"
    )
    options = parser.parse_args()
    report(list(measure(options)), options.output)
