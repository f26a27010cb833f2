"""Build the documentation site into build/site/html: `python .ci/build_docs.py`.

The pages of docs/, the notebooks with their outputs, and a page of reference for each module are gathered under
build/site/source, in the folders that they have here, so that their links hold. Then Sphinx builds the site. A warning
is an error, and so is a page that would load anything from another host. With `--check`, Sphinx reads the pages and
resolves their links, and writes nothing, which takes half the time.
"""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "site"
SOURCE, HTML = SITE / "source", SITE / "html"
PACKAGE, NOTEBOOKS = ROOT / "mlpkg", ROOT / "nbs"
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
DIRECTIVE = re.compile(r"#\|\s*(\S+)[^\n]*\n?")
LOADS = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"'](?:https?:)?//[^>]*>|url\([\"']?(?:https?:)?//[^)]*\)"
)


def write(name: str, text: str) -> None:
    """Write one file of the site's source."""
    path = SOURCE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def contents(pages: list[str], caption: str = "", depth: int = 1) -> str:
    """A list of pages, named from the root of the source."""
    lines = [f":caption: {caption}"] * bool(caption) + [f":maxdepth: {depth}", ":titlesonly:", ""]
    lines += [f"/{page}" for page in pages]
    return "\n".join(["", "```{toctree}", *lines, "```", ""])


def label(name: str) -> str:
    """A folder's name without its number: `01_engine` is engine."""
    return re.sub(r"^\d+_", "", name)


def shown(cell: dict) -> dict | None:
    """A cell of a notebook as a reader sees it: without directives of nbdev, or not at all."""
    if cell["cell_type"] != "code":
        return cell
    source, directives = "".join(cell["source"]), []
    while found := DIRECTIVE.match(source):
        directives.append(found[1].rstrip(":"))
        source = source[found.end() :]
    if "hide" in directives or not source.strip():
        return None
    return cell | {"source": source.strip("\n")}


def module_of(cells: list[dict]) -> str | None:
    """The module that a notebook exports."""
    for cell in cells:
        if found := re.match(r"#\|\s*default_exp\s+(\S+)", "".join(cell["source"])):
            return ".".join(part for part in ("mlpkg", *found[1].split(".")) if part != "__init__")
    return None


def notebooks(folder: Path = NOTEBOOKS) -> dict[str, str]:
    """Write the notebooks of a folder and a page that lists them; answer which page each module is the chapter of."""
    chapters, pages = {}, []
    for path in sorted(folder.iterdir()):
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        if path.is_dir() and any(path.rglob("*.ipynb")) and not path.name.startswith("."):
            chapters |= notebooks(path)
            pages.append(f"{name}/index")
        elif path.suffix == ".ipynb":
            notebook = json.loads(path.read_text("utf-8"))
            module = module_of(notebook["cells"])
            cells = [cell for cell in map(shown, notebook["cells"]) if cell]
            if module:
                chapters[module] = name
                link = f"Module: [{module}](/api/{module}.md)"
                cells.insert(1, {"cell_type": "markdown", "id": "module", "metadata": {}, "source": link})
            write(f"{name}.ipynb", json.dumps(notebook | {"cells": cells}))
            pages.append(name)
    name = folder.relative_to(ROOT).as_posix()
    write(f"{name}/index.md", f"# {label(folder.name) if folder != NOTEBOOKS else 'Chapters'}\n" + contents(pages))
    return chapters


def modules() -> list[str]:
    """Every module by its name, packages included."""
    files = [path.relative_to(ROOT).with_suffix("") for path in PACKAGE.rglob("*.py")]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in files)


def summary(text: str | None) -> str:
    """The first line of a docstring, for a cell of a table."""
    return (text or "").strip().partition("\n")[0].replace("|", "\\|")


def public_names(package: ModuleType) -> Iterator[str]:
    """A row of a table for each public name of a package."""
    for name in getattr(package, "__all__", []):
        value = getattr(package, name)
        home = getattr(value, "__module__", None) or ""
        text = f"{{py:obj}}`{name} <{home}.{name}>`" if home.startswith("mlpkg.") else f"`{name}`"
        yield f"| {text} | {summary(value.__doc__) if home else ''} |"


def package_page(name: str, inside: list[str]) -> str:
    """What a package offers, and which modules it has."""
    package = importlib.import_module(name)
    text = [f"# {name}", "", (package.__doc__ or "").strip(), ""]
    if rows := list(public_names(package)):
        text += ["## Public names", "", "| name | |", "|---|---|", *rows, ""]
    rows = [
        f"| [{module}](/api/{module}.md) | {summary(importlib.import_module(module).__doc__)} |" for module in inside
    ]
    return "\n".join([*text, "## Modules", "", "| module | |", "|---|---|", *rows, ""])


def module_page(name: str, chapter: str | None) -> str:
    """All of a module; it is found from the page of its package, so it stands in no list of pages."""
    link = f"Chapter: [{label(Path(chapter).name)}](/{chapter}.ipynb)" if chapter else ""
    return f"---\norphan: true\n---\n# {name}\n\n{link}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"


def reference(chapters: dict[str, str]) -> None:
    """Write a page for each package and each module."""
    names = modules()
    packages = [name for name in names if any(other.startswith(f"{name}.") for other in names)]
    for name in names:
        inside = [other for other in names if other.rpartition(".")[0] == name]
        write(f"api/{name}.md", package_page(name, inside) if inside else module_page(name, chapters.get(name)))
    write("api/index.md", "# Reference\n" + contents([f"api/{name}" for name in packages]))


def gather() -> None:
    """Write all that Sphinx reads."""
    shutil.rmtree(SITE, ignore_errors=True)
    pages = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
    for page in [*pages, *PROJECT]:
        write(page, (ROOT / page).read_text("utf-8"))
    shutil.copytree(ROOT / "docs" / "deploy", SOURCE / "docs" / "deploy")  # what a page links to, for download
    reference(notebooks())
    start = (ROOT / "README.md").read_text("utf-8")
    start += contents([page.removesuffix(".md") for page in pages], "Guides")
    start += contents(["nbs/index"], "Chapters", 2) + contents(["api/index"], "Reference", 2)
    start += contents([page.removesuffix(".md") for page in PROJECT], "Project")
    write("index.md", start)


def loaded() -> Iterator[str]:
    """What a page or a style sheet would load from another host."""
    for path in sorted(HTML.rglob("*")):
        if path.suffix in (".html", ".css"):
            for found in LOADS.findall(path.read_text("utf-8")):
                if 'rel="canonical"' not in found:
                    yield f"{path.relative_to(HTML)} loads from another host: {found}"


if __name__ == "__main__":
    check = "--check" in sys.argv[1:]
    gather()
    options = ["-W", "--keep-going", "-q", "-E", "-j", "auto", "-c", ROOT / "docs", "-d", SITE / "doctrees"]
    builder = "dummy" if check else "html"
    done = subprocess.run([sys.executable, "-m", "sphinx", "-b", builder, *options, SOURCE, HTML], cwd=ROOT)
    problems = list(loaded())
    for problem in problems:
        print(f"docs: {problem}")
    if done.returncode or problems:
        sys.exit(1)
    if not check:
        print(f"docs: {(HTML / 'index.html').relative_to(ROOT)}")
