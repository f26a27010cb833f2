"""The training set from the archive on Spark beside the local engine: the same bits, and the time against rows.

    python benchmarks/platform/spark.py [--full] [-o FILE]

Payments of few customers are simulated, and of more. Each figure is a whole command: for Spark with
the start of Java, on this machine alone (`local[*]`), and the rows as Parquet files in the end.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from archive import MLPKG, SPAN, count_rows, timed

# isort: split
from bench import ROOT, BenchmarkRow, arguments, report, row

from mlpkg.examples.fraud.simulator import simulate


def seconds(folder: Path, engine: str) -> float:
    """Time `mlpkg training-set` by an engine, from the archive."""
    command = [MLPKG, "training-set", "fraud", *SPAN, "--as-of", SPAN[-1], "--engine", engine]
    into = ["--into", folder / engine]
    return timed([*command, *into], MLPKG_STATE=folder / "state", MLPKG_ARCHIVE=folder / "archive")[0]


def rows_of(folder: Path) -> object:
    """Return the rows of a training set, in order."""
    import pyarrow.parquet as pq

    return pq.read_table(folder).sort_by([("time", "ascending"), ("id", "ascending")]).combine_chunks()


def measure(folder: Path, customers: int) -> Iterator[BenchmarkRow]:
    file = folder / "payments.parquet"
    simulate(customers, 2 * customers).to_parquet(file)
    timed([MLPKG, "ingest", "fraud", file], MLPKG_STATE=folder / "state")
    timed([MLPKG, "export", "--delta", folder / "archive"], MLPKG_STATE=folder / "state")
    local, spark = (seconds(folder, engine) for engine in ("local", "spark"))
    if rows_of(folder / "local") != rows_of(folder / "spark"):
        raise SystemExit("the training sets of the two engines differ")
    work = f"training set on Spark from an archive of {count_rows(folder / 'archive'):,} entries, whole command"
    yield row(work, spark, "local engine", local, "stated")


if __name__ == "__main__":
    options = arguments(__doc__ or "").parse_args()
    (ROOT / "build").mkdir(exist_ok=True)
    measured = []
    for customers in (1250, 2500, 5000) if options.full else (250, 1000):
        with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "build") as made:
            measured += measure(Path(made), customers)
    report(measured, options.output)
