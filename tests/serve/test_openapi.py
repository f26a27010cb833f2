"""The service does what its OpenAPI document says, whatever is made up from that: no server error, and no answer it does not describe."""

import json
import os
import subprocess
import sysconfig
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest
from serving import Packaged, environment, payment, serving

from mlpkg.times import DAY, iso, now

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# a made-up time differs from the clock: asked again, it might not
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503]
"""
EXAMPLES = "25" if os.environ.get("MLPKG_LONG") else "8"
SCHEMATHESIS = Path(sysconfig.get_path("scripts"), "schemathesis")


def test_schemathesis_finds_no_error_of_the_server_and_no_answer_that_is_not_described(made: Packaged, tmp_path: Path):
    """Every operation, with good, broken and missing parameters and bodies, in every phase."""
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with serving(made.bento, made.state(tmp_path / "state"), tmp_path / "log") as server:
        late = json.dumps(payment("tx-late", time=iso(now() + 400 * DAY))).encode()
        with pytest.raises(HTTPError, match="503"):  # so that there is one of these, whatever is made up
            urllib.request.urlopen(
                urllib.request.Request(f"{server.address}/v1/decide", late, {"content-type": "application/json"})
            )
        how = ["--checks", CHECKS, "--max-examples", EXAMPLES, "--seed", "1", "--no-color", "--request-timeout", "20"]
        command = [SCHEMATHESIS, "run", f"{server.address}/openapi.json", "--phases", "examples,coverage,fuzzing", *how]
        done = subprocess.run(command, cwd=tmp_path, env=environment(server.state), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
        counted = urllib.request.urlopen(f"{server.address}/metrics").read().decode().splitlines()
        numbers = [(name, float(n)) for name, _, n in (line.rpartition(" ") for line in counted if line[0] != "#")]
        by_clock = sum(n for name, n in numbers if name.startswith("mlpkg_clock_refusals_total"))
        assert 0 < sum(n for name, n in numbers if 'status="503"' in name) <= by_clock, "no other is expected"
        assert "Traceback" not in server.output and "unexpected" not in server.output, server.output[-3_000:]
