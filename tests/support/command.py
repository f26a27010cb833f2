"""What a command prints, and how it ends."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    """The status and the output of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    def said_one_line(self, *words: str) -> bool:
        """Whether it failed with a single line that has these words."""
        # a kernel that is stopped while it fails may say so itself, or not; a slow command shows its progress
        passing = re.compile(r".*caught in kernel|[a-z -]+: [\d,]+ of [\d,]+ |[a-z -]+: \d+ s$")
        lines = [text for text in self.err.strip().splitlines() if text.strip() and not passing.match(text)]
        line = "\n".join(lines)
        assert self.status == 1, (self.status, self.out, self.err)
        assert len(line.splitlines()) == 1 and "Traceback" not in line, self.err
        assert all(word in line for word in words), line
        return True


Command = Callable[..., Answer]
