"""What durability costs over HTTP: decisions a second at one and at 32 connections, `process` against `disk`, and fsyncs a decision.

    python benchmarks/service/durability.py [--seconds 4] [--rounds 3] [--state FOLDER] [-o build/bench/durability.json]

One worker under uvicorn, the handbook's fourteen features and 200 trees. The third form is `disk` with an fsync that takes ten milliseconds
longer. The forms take turns. The state has to lie on a real disk: on a tmpfs an fsync costs nothing.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from over_http import handbook, load_history, make_model, payment, until  # noqa: E402

from mlpkg import decisions  # noqa: E402
from mlpkg.platform import open as open_platform  # noqa: E402
from mlpkg.serve.app import Application  # noqa: E402
from mlpkg.settings import Settings  # noqa: E402

FORMS = {"process": ("process", 0.0), "disk": ("disk", 0.0), "disk, fsync 10 ms slower": ("disk", 0.01)}
CONNECTIONS = (1, 32)


def serve(state: Path, durability: Any, slower: float, port: int) -> None:
    """The worker: the application of the service, and a path that tells how often it has synced."""
    import uvicorn

    app = Application("fraud", Settings(state=state, durability=durability))
    app.start()
    disk: Any = getattr(app.platform, "_disk", None)
    if disk is not None:
        flush = disk.flush
        disk.flush = lambda descriptor: (time.sleep(slower), flush(descriptor))

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != "/syncs":
            return await app(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % (disk.syncs if disk else 0)})

    uvicorn.run(outer, port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False)


async def load(port: int, connections: int, seconds: float, tag: str) -> list[float]:
    """Ask from several connections, each as fast as it is answered; the seconds that each answer took."""
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        rng, k = random.Random(number), 0
        while (began := time.perf_counter()) < end:
            body = payment(k, rng).replace(b'"b-', b'"%b-%d-' % (tag.encode(), number))
            writer.write(
                b"POST /v1/decide HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            answer = await reader.readexactly(length)
            if b" 200 " not in head[:13]:
                raise SystemExit(f"answer: {head!r} {answer!r}")
            took.append(time.perf_counter() - began)
            k += 1
        writer.close()

    await asyncio.gather(*(client(number) for number in range(connections)))
    return took


def syncs(port: int) -> int:
    """How often the worker has synced."""
    with urlopen(f"http://127.0.0.1:{port}/syncs") as answer:
        return int(answer.read())


def run(state: Path, rounds: int, seconds: float, port: int) -> list[dict[str, Any]]:
    """The whole benchmark; a row for each form and number of connections."""
    settings = Settings(state=state / "made")
    case = decisions.use_case("fraud", settings)
    platform = open_platform(settings)
    load_history(case, platform)
    model = make_model(case, handbook(case), settings)
    decisions.promote(platform, model, by="benchmark", why="a model of the usual size")
    platform.close()
    workers, ports, folders = [], {}, {}
    try:
        for number, (form, (durability, slower)) in enumerate(FORMS.items()):
            folders[form], ports[form] = state / f"form-{number}", port + number
            subprocess.run(["cp", "-r", settings.state, folders[form]], check=True)
            command = [sys.executable, __file__, "--serve", folders[form], durability, slower, ports[form]]
            workers.append(subprocess.Popen([str(part) for part in command], env=os.environ))
        for form in FORMS:
            until(lambda form=form: urlopen(f"http://127.0.0.1:{ports[form]}/v1/ready", timeout=5).close())
        measured: dict[tuple[str, int], list[tuple[float, float, float, float]]] = {}
        for number in range(rounds + 1):  # the first one warms up
            for connections in CONNECTIONS:
                for form in FORMS:
                    before = syncs(ports[form])
                    took = sorted(asyncio.run(load(ports[form], connections, seconds, f"{number}-{connections}")))
                    each = (syncs(ports[form]) - before) / len(took)
                    p99 = took[int(len(took) * 0.99)]
                    if number:
                        row = (len(took) / seconds, each, statistics.median(took), p99)
                        measured.setdefault((form, connections), []).append(row)
    finally:
        for worker in workers:
            worker.kill()
            with suppress(subprocess.TimeoutExpired):
                worker.wait(5)
    names = ("decisions_per_s", "fsyncs_per_decision", "p50_s", "p99_s")
    return [
        {"form": form, "connections": c}
        | {name: statistics.median(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        for (form, c), rows in measured.items()
    ]


def main() -> None:
    """Parse, run, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description="What durability costs over HTTP.")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=3340, help="this one and the next two")
    parser.add_argument("--state", type=Path, default=HERE.parent.parent / "build", help="a folder on a real disk")
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent.parent / "build" / "bench" / "durability.json")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        state, durability, slower, port = given.serve
        return serve(Path(state), durability, float(slower), int(port))
    given.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.state) as folder:
        rows = run(Path(folder), given.rounds, given.seconds, given.port)
    print(f"{'':26}{'at once':>8}{'a second':>10}{'fsyncs each':>13}{'p50':>10}{'p99':>10}")
    for r in rows:
        times = f"{r['p50_s'] * 1e3:>7.2f} ms{r['p99_s'] * 1e3:>7.1f} ms"
        print(
            f"{r['form']:26}{r['connections']:>8}{r['decisions_per_s']:>10.0f}{r['fsyncs_per_decision']:>13.3f}{times}"
        )
    found = {(r["form"], r["connections"]): r for r in rows}
    speed = {key: r["decisions_per_s"] for key, r in found.items()}
    slow = "disk, fsync 10 ms slower"
    told = {
        "disk_of_process_at_32": speed["disk", 32] / speed["process", 32],
        "fsyncs_per_decision_at_32": found["disk", 32]["fsyncs_per_decision"],
        "slow_32_of_1": speed[slow, 32] / speed[slow, 1],
    }
    print(", ".join(f"{name} {value:.2f}" for name, value in told.items()))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps({"rows": rows} | told, indent=1) + "\n")


if __name__ == "__main__":
    main()
