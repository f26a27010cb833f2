"""A worker of BentoML ends with its supervisor."""

import os
import signal
import subprocess
import sys

import pytest

PREPARE = "from mlpkg.serve.bento import worker; worker._prepare_process(); print('goes on')"


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is a call of Linux")
@pytest.mark.parametrize(
    ("supervisor", "output"),
    [(None, "goes on\n"), ("", "goes on\n"), (2**22 + 1, "")],
    ids=["its own", "none", "another"],
)
def test_a_worker_whose_supervisor_died_while_it_started_ends_too(supervisor: object, output: str):
    """Linux tells a process of the death of its parent from the moment when the process asks, and not before."""
    environment = os.environ | {"MLPKG_SUPERVISOR": str(os.getpid() if supervisor is None else supervisor)}
    worker = subprocess.run([sys.executable, "-c", PREPARE], env=environment, capture_output=True, text=True)
    assert (worker.stdout, worker.returncode) == (output, 0 if output else -signal.SIGKILL), worker.stderr
