"""JupyterLab on this checkout's state, whichever folder a notebook lies in: `make lab`."""

import os
import sys
from pathlib import Path

from mlpkg.settings import Settings

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    state = Settings.load(ROOT).state.absolute()
    state.mkdir(parents=True, exist_ok=True)
    print(f"lab: state is {state}; Ctrl-C ends it", flush=True)
    os.environ |= {"MLPKG_STATE": str(state), "BENTOML_HOME": str(state / "bentoml")}
    options = ["--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={ROOT}", "--ServerApp.answer_yes=True"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")  # as in a container; it is reachable from this machine alone
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *options, *(sys.argv[1:] or ["nbs"])])
