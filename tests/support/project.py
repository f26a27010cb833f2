"""A folder with a settings.ini, in which commands are run."""

import os
import subprocess
import sysconfig
from pathlib import Path

from command import Answer

from mlpkg.settings import Settings

SETTINGS = "[DEFAULT]\nstate = state\ntrust_loopback = true\nuse_cases =\n    fraud = handbook:fraud\n    early = handbook:early\n"


class Project:
    """A folder with a settings.ini, in which commands are run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.state = folder / "state"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.ini").write_text(SETTINGS)

    @property
    def settings(self) -> Settings:
        return Settings.load(self.folder)

    def run(self, *arguments: object, state: Path | None = None, stdin: str | None = None) -> Answer:
        """Run `mlpkg` in a process of its own."""
        env = os.environ | ({"MLPKG_STATE": str(state)} if state else {})
        command = [Path(sysconfig.get_path("scripts"), "mlpkg"), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, env=env, input=stdin or "", capture_output=True, text=True)
        return Answer(done.returncode, done.stdout, done.stderr)
