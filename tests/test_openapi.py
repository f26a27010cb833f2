"""The service does what its OpenAPI document says, whatever is made up from that: no server error, and no answer it does not describe."""

import subprocess
import sysconfig
from pathlib import Path

import pytest
from serving import environment, made_once, serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SCHEMATHESIS = Path(sysconfig.get_path("scripts"), "schemathesis")


def test_schemathesis_finds_no_error_of_the_server_and_no_answer_that_is_not_described(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
):
    """Every operation, with good, broken and missing parameters and bodies, in every phase."""
    made = made_once(tmp_path_factory)
    with serving(made.bento, made.state(tmp_path / "state"), tmp_path / "log") as server:
        how = ["--checks", CHECKS, "--max-examples", "25", "--seed", "1", "--no-color", "--request-timeout", "20"]
        command = [SCHEMATHESIS, "run", f"{server.address}/openapi.json", "--phases", "examples,coverage,fuzzing", *how]
        done = subprocess.run(command, cwd=tmp_path, env=environment(server.state), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
        assert "Traceback" not in server.said and "unexpected" not in server.said, server.said[-3_000:]
