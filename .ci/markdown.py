"""Are the pages well formed? `python .ci/markdown.py` names what is not, and `--wrap` breaks the long lines.

Text breaks at 120 characters; tables, code and headings may be longer. What a page names of the repository exists. The
picture in `docs/architecture.md` has the layers of the import contract in `pyproject.toml`, and the page has a
paragraph for each package in it.
"""

import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 120
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
ITEM = re.compile(r"(\s*)([-*]|\d+\.)\s+")
NAMED = re.compile(r"\b(?:nbs/\d\d_|mlpkg/|tests/)[\w/]+\b|\.ci/\w+\b")
PARAGRAPH, OTHER = "paragraph", "other"


def pages() -> list[Path]:
    return [page for page in [*PAGES, *sorted((ROOT / "docs").glob("*.md"))] if page.exists()]


def kinds(lines: list[str]) -> Iterator[str]:
    """Whether each line is text that can be wrapped, or else: code, a table, a heading, a blank line."""
    fenced = listed = False
    for line in lines:
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
            yield OTHER
        elif fenced or not line.strip() or line.lstrip().startswith(("|", "#", "<", "[![")):
            yield OTHER
        else:
            listed = bool(ITEM.match(line)) or (listed and line.startswith(" "))
            yield OTHER if line.startswith("    ") and not listed else PARAGRAPH


def wrap(page: Path) -> None:
    """Break each paragraph of a page anew in which a line is too long."""
    lines = page.read_text("utf-8").splitlines()
    wrapped: list[str] = []
    block: list[str] = []

    def flush() -> None:
        if any(len(line) > WIDTH for line in block):
            item = ITEM.match(block[0])
            indent = " " * len(item[0]) if item else " " * (len(block[0]) - len(block[0].lstrip()))
            text = " ".join(line.strip() for line in block)
            first = item[1] if item else indent
            wrapped.extend(
                textwrap.wrap(
                    text,
                    WIDTH,
                    initial_indent=first,
                    subsequent_indent=indent,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
        else:
            wrapped.extend(block)
        block.clear()

    for line, kind in zip(lines, kinds(lines), strict=True):
        if kind == OTHER or ITEM.match(line):
            flush()
        if kind == PARAGRAPH:
            block.append(line)
        else:
            wrapped.append(line)
    flush()
    page.write_text("\n".join(wrapped) + "\n", "utf-8")


def long_lines(page: Path) -> Iterator[str]:
    """Lines of text that are too long and can be broken."""
    lines = page.read_text("utf-8").splitlines()
    for number, (line, kind) in enumerate(zip(lines, kinds(lines), strict=True), start=1):
        if kind == PARAGRAPH and len(line) > WIDTH and " " in line.strip()[:WIDTH]:
            yield f"{page.relative_to(ROOT)}:{number} has {len(line)} characters: run python .ci/markdown.py --wrap"


def missing(page: Path) -> Iterator[str]:
    """Notebooks, tests and scripts that a page names and that do not exist."""
    for name in sorted(set(NAMED.findall(page.read_text("utf-8")))):
        if not any((ROOT / name).with_suffix(suffix).exists() for suffix in ("", ".ipynb", ".py")):
            yield f"{page.relative_to(ROOT)} names {name}, which does not exist"


def contract() -> list[set[str]]:
    """The layers of the import contract, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (layers,) = [c["layers"] for c in settings["tool"]["importlinter"]["contracts"] if c["id"] == "layers"]
    return [set(re.findall(r"\w+", layer)) for layer in layers]


def picture() -> list[set[str]]:
    """The rows of names in the first picture of the page; an arrow downwards stands between two of them."""
    found = re.search(r"```text\n(.*?)```", ARCHITECTURE.read_text("utf-8"), re.DOTALL)
    rows = [line.split() for line in (found[1] if found else "").splitlines() if line.strip()]
    if any((row == ["↓"]) != (number % 2 == 1) for number, row in enumerate(rows)):
        return []
    return [set(row) for row in rows[::2]]


def architecture() -> Iterator[str]:
    """Differences between the picture and the contract, and packages without a paragraph."""
    drawn, stated = picture(), contract()
    if drawn != stated:
        yield f"docs/architecture.md draws the layers {drawn}, but pyproject.toml states {stated}"
    bold = " ".join(re.findall(r"\*\*([\w, ]+)\*\*", ARCHITECTURE.read_text("utf-8")))
    for name in sorted(set().union(*stated) - set(re.findall(r"\w+", bold))):
        yield f"docs/architecture.md has no paragraph about {name}"


if __name__ == "__main__":
    if "--wrap" in sys.argv[1:]:
        for page in pages():
            wrap(page)
    problems = [problem for page in pages() for problem in (*long_lines(page), *missing(page))]
    problems += architecture()
    for problem in problems:
        print(f"markdown: {problem}")
    sys.exit(1 if problems else 0)
