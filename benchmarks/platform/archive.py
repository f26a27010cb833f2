"""The archive: written from the log, and a training set of all card payments from it, beside the log and DuckDB.

    python benchmarks/platform/archive.py [--full] [--file FILE] [-o FILE]

Each figure is a whole command in a process of its own: start, work, and the rows as Parquet in the end. DuckDB reads the Parquet
files of the archive, joins the reported frauds, computes the same windows, and writes them. At equal times of one customer or
terminal it counts all rows, and mlpkg those that precede in the log. The two training sets of mlpkg have to be equal to the bit.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench import ROOT, BenchmarkRow, Missing, arguments, environment, report, row  # noqa: E402

REAL = ROOT.parent / "shared" / "data" / "card_transactions.parquet"
SPAN = ["--from", "2018-04-01", "--to", "2018-10-01"]
MLPKG = Path(sysconfig.get_path("scripts"), "mlpkg")


# -- whole commands ---------------------------------------------------------------------------------------------------


def timed(command: Sequence[object], **variables: object) -> tuple[float, float]:
    """Run a command; return its seconds and its peak memory in megabytes."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [*map(str, command)],
        env=os.environ | {name: str(value) for name, value in variables.items()},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[1]} ended with {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def training_set(state: Path, out: Path, archive: Path | str = "") -> tuple[float, float]:
    """Time `mlpkg training-set` from the log, or from an archive."""
    return timed([MLPKG, "training-set", "fraud", *SPAN, "-o", out], MLPKG_STATE=state, MLPKG_ARCHIVE=archive)


# -- DuckDB -----------------------------------------------------------------------------------------------------------


def windows() -> str:
    """The features of the card payments in SQL: windows are open at their start, so each is a microsecond shorter."""
    selected, named = [], []

    def window(name: str, key: str, first: int, last: int) -> str:
        until = f"interval {last} days preceding" if last else "current row"
        since = f"interval {first * 86_400_000_000 - 1} microseconds preceding"
        named.append(f"{name} as (partition by {key} order by time range between {since} and {until})")
        return name

    for days in (1, 7, 30, 90):
        over = window(f"c{days}", "customer_id", days, 0)
        selected += [f"count(*) over {over} as customer_n_tx_{days}d"] if days < 90 else []
        selected += [f"avg(amount) over {over} as customer_avg_amount_{days}d"]
        selected += [f"max(amount) over {over} as customer_max_amount_7d"] if days == 7 else []
    for days in (1, 7, 21, 30):
        over = window(f"t{days}", "terminal_id", days + 7, 7)
        selected += [f"count(*) over {over} as terminal_n_tx_{days}d"] if days != 21 else []
        selected += [f"coalesce(avg(fraud) over {over}, 0) as terminal_risk_{days}d"]
        selected += [f"sum(small) over {over} as terminal_n_small_frauds_7d"] if days == 7 else []
        selected += [f"coalesce(last_value(fraud) over {over}, 0) as terminal_last_21d"] if days == 21 else []
    columns = "id, time, customer_id, terminal_id, amount, fraud, hour(time) <= 6, isodow(time) >= 6"
    return f"select {columns}, {', '.join(selected)} from payments window {', '.join(named)} order by time, id"


def duckdb(archive: Path, out: Path) -> tuple[float, float]:
    """Time DuckDB on the files of the archive."""
    files = {name: f"read_parquet('{archive}/{name}/*/*/*.parquet')" for name in ("transactions", "transactions.fraud")}
    sql = f"""
        create temp view payments as
            select t.*, coalesce(r.fraud, false)::int as fraud, (coalesce(r.fraud, false) and amount <= 220)::int as small
            from {files["transactions"]} t left join {files["transactions.fraud"]} r on r.about = t.position;
        copy ({windows()}) to '{out}' (format parquet);"""
    script = f"import duckdb; c = duckdb.connect(); c.execute('set timezone = \"UTC\"'); c.execute('''{sql}''')"
    return timed([environment("tables"), "-c", script])


# -- the rows ---------------------------------------------------------------------------------------------------------


def measure(file: Path, folder: Path) -> Iterator[BenchmarkRow]:
    state, archive = folder / "state", folder / "archive"
    timed([MLPKG, "ingest", "fraud", file], MLPKG_STATE=state)
    seconds, megabytes = timed([MLPKG, "export", "--delta", archive], MLPKG_STATE=state)
    events = count_rows(archive)
    size = sum(path.stat().st_size for path in archive.rglob("*.parquet")) / events
    work = f"archive of {events:,} entries, whole command"
    yield row(work, events / seconds, "", None, "ours >= 100000", "events/s", f"{size:.1f} bytes an entry")
    yield row(f"{work}: peak memory", megabytes, "", None, "ours <= 1000", "MB")
    own = [training_set(state, folder / "archived.parquet", archive) for _ in range(2)]
    log = [training_set(state, folder / "log.parquet")]
    if (folder / "archived.parquet").read_bytes() != (folder / "log.parquet").read_bytes():
        raise SystemExit("the training sets from the archive and from the log differ")
    work = "training set of all card payments from the archive, whole command"
    yield row(work, min(own)[0], "from the log", min(log)[0], "ours / theirs <= 0.5")
    try:
        theirs, note = min(duckdb(archive, folder / "duckdb.parquet") for _ in range(2))[0], ""
    except Missing as why:
        theirs, note = None, str(why)
    yield row(work, min(own)[0], "DuckDB, the same files and windows", theirs, "ours / theirs <= 2", note=note)
    yield row(f"{work}: peak memory", min(own)[1], "from the log", log[0][1], "ours / theirs <= 1", "MB")


def count_rows(archive: Path) -> int:
    """The rows of all tables of an archive."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in archive.rglob("*.parquet"))


def payments(options: object, folder: Path) -> Path:
    """The file of the options, the real payments if they lie beside the checkout, or simulated ones."""
    file = getattr(options, "file", None) or REAL
    if file.exists():
        return file
    from mlpkg.examples.fraud.simulator import simulate

    simulate(5000 if getattr(options, "full", False) else 1000, 10_000).to_parquet(folder / "payments.parquet")
    return folder / "payments.parquet"


if __name__ == "__main__":
    parser = arguments(__doc__ or "", "the full size where payments are simulated")
    parser.add_argument("--file", type=Path, help="card payments as Parquet (default: the real ones if they are there)")
    options = parser.parse_args()
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "build") as made:
        measured = list(measure(payments(options, Path(made)), Path(made)))
    report(measured, options.output)
