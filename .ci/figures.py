"""How readable is the code? `python .ci/figures.py` fails when a bound of `ENFORCED` is missed.

    python .ci/figures.py                    # the table and the bounds, as `make check` runs it
    python .ci/figures.py --report           # the same and every finding; never fails
    python .ci/figures.py --report lab       # one package: its cells, notebooks and banned locals

Notebooks give the lines of cells, prose and examples. Exported modules give the names. `pyproject.toml` gives the layers.
"""

import argparse
import ast
import json
import re
import statistics
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "mlpkg"

MEDIAN_LINES = 15  # of an exported cell, at most
MAX_LINES = 60  # of an exported cell, at most
WORDS = 1.8  # of prose for each exported line, at least
EXAMPLES = 0.3  # visible example lines for each exported line, at least
LAYERS = 12  # in the import contract, at most
AMBIGUOUS = 0  # public names that two modules define, at most
BANNED_LOCALS = 0  # uses of a name of BANNED, at most
BANNED = frozenset("told said found asked given mine there some one at it".split())
ENFORCED = frozenset(  # the bounds that fail the check, by the name in the report
    {
        "median cell lines",
        "longest cell lines",
        "words per line",
        "examples per line",
        "layers",
        "ambiguous names",
        "banned locals",
    }
)

DIRECTIVE = re.compile(r"#\s*\|\s*(\S+)(?:\s+(\S+))?")
EXPORTING = {"export", "exports", "exporti"}
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
WORD = re.compile(r"[^\W_]")


# -- what a notebook holds --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """An exported cell and the number of its lines that are neither blank nor directives."""

    notebook: str
    name: str
    lines: int


@dataclass
class Notebook:
    """The figures of one notebook."""

    path: str
    module: str
    cells: list[Cell] = field(default_factory=list)
    words: int = 0
    example_lines: int = 0

    @property
    def package(self) -> str:
        """The folder of the module; `.` for a module that lies in none."""
        return self.module.partition(".")[0] if "." in self.module else "."

    @property
    def exported_lines(self) -> int:
        return sum(cell.lines for cell in self.cells)


def directives(source: str) -> dict[str, str]:
    """The nbdev directives of a cell and what each one names."""
    matches = (DIRECTIVE.match(line.strip()) for line in source.splitlines())
    return {match[1].rstrip(":"): match[2] or "" for match in matches if match}


def count_lines(source: str) -> int:
    """Lines that are neither blank nor directives."""
    return sum(bool(line.strip()) and not DIRECTIVE.match(line.strip()) for line in source.splitlines())


def count_words(markdown: str) -> int:
    """Words of prose; fenced code is none."""
    return sum(bool(WORD.search(word)) for word in FENCED.sub("", markdown).split())


def read_notebook(path: Path) -> Notebook | None:
    """The figures of a notebook, or None if it exports no module."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    sources = [(cell, "".join(cell["source"])) for cell in cells]
    modules = [directives(source).get("default_exp") for cell, source in sources if cell["cell_type"] == "code"]
    module = next(filter(None, modules), None)
    if module is None:
        return None
    notebook = Notebook(path.relative_to(ROOT).as_posix(), module)
    for cell, source in sources:
        if cell["cell_type"] == "markdown":
            notebook.words += count_words(source)
        if cell["cell_type"] != "code":
            continue
        keys, lines = directives(source).keys(), count_lines(source)
        if keys & EXPORTING and lines:
            notebook.cells.append(Cell(notebook.path, cell.get("id", ""), lines))
        elif not keys & EXPORTING and "hide" not in keys:
            notebook.example_lines += lines
    return notebook


def read_notebooks() -> list[Notebook]:
    """Every notebook that exports a module."""
    paths = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    return [notebook for notebook in map(read_notebook, paths) if notebook]


# -- what a module names ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Module:
    """An exported module: its dotted name, its file, its syntax tree."""

    name: str
    path: str
    tree: ast.Module
    is_package: bool

    @property
    def package(self) -> str:
        """As `Notebook.package`."""
        parts = self.name.split(".")[1:]
        return parts[0] if len(parts) > 1 or (self.is_package and parts) else "."


def read_modules() -> dict[str, Module]:
    """Every module of the package, by its dotted name."""
    modules = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        if path.name == "_modidx.py":
            continue
        is_package = path.name == "__init__.py"
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if is_package else parts)
        tree = ast.parse(path.read_text("utf-8"))
        modules[name] = Module(name, path.relative_to(ROOT).as_posix(), tree, is_package)
    return modules


def public_names(module: Module) -> list[str]:
    """The names of `__all__` that have no underscore in front."""
    for statement in module.tree.body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "__all__":
            return [name for name in ast.literal_eval(statement.value) if not name.startswith("_")]
    return []


def imported_names(module: Module) -> dict[str, tuple[str, str]]:
    """What the module imports from others at its top level: name to (module, name there)."""
    imported = {}
    for statement in module.tree.body:
        if isinstance(statement, ast.ImportFrom):
            base = module.name.split(".")
            base = base[: len(base) - statement.level + module.is_package] if statement.level else []
            origin = ".".join([*base, *filter(None, [statement.module])])
            imported |= {alias.asname or alias.name: (origin, alias.name) for alias in statement.names}
    return imported


def class_names(module: Module) -> set[str]:
    """The classes that a module defines."""
    return {statement.name for statement in module.tree.body if isinstance(statement, ast.ClassDef)}


def definitions(modules: dict[str, Module]) -> dict[str, set[str]]:
    """The modules that define each public name, imports followed to their origin; private modules are left out."""
    imports = {name: imported_names(module) for name, module in modules.items()}
    defined: dict[str, set[str]] = defaultdict(set)
    for module in modules.values():
        if any(part.startswith("_") for part in module.name.split(".")):
            continue
        for public in public_names(module):
            origin, source = (module.name, public), imports[module.name].get(public)
            while source and source != origin:
                origin, source = source, imports.get(source[0], {}).get(source[1])
            if origin[0] in modules:
                defined[public].add(origin[0])
    return defined


def is_program(module: str) -> bool:
    """Whether a module belongs to an example: each example is a program of its own, with a `policy` and `features`."""
    return module.startswith(f"{PACKAGE}.examples.")


def find_ambiguous(modules: dict[str, Module]) -> dict[str, list[str]]:
    """Public names that more than one module defines; `main` is the entry of every program, so it is left out."""
    defined = sorted((name, sorted(places)) for name, places in definitions(modules).items() if name != "main")
    return {name: places for name, places in defined if len(places) > 1 and not all(map(is_program, places))}


def find_case_pairs(modules: dict[str, Module]) -> list[str]:
    """A class and another public name that differ only in case; information, as a constructor may be named like that."""
    defined = definitions(modules)
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in defined:
        spellings[name.casefold()].append(name)
    classes = {name for module in modules.values() for name in class_names(module)}
    pairs = [sorted(names) for names in spellings.values() if len(names) > 1 and classes & set(names)]
    return [" and ".join(f"{name} ({', '.join(sorted(defined[name]))})" for name in names) for names in sorted(pairs)]


def bound_names(node: ast.AST) -> Iterator[tuple[str, int]]:
    """The names that a node binds itself, with their lines."""
    match node:
        case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
            yield name, node.lineno
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name, node.lineno
        case ast.MatchMapping(rest=str(name)):
            yield name, node.lineno
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name, node.lineno
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            yield from ((alias.asname or alias.name, node.lineno) for alias in aliases)


SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def local_names(node: ast.AST, is_local: bool = False) -> Iterator[tuple[str, int]]:
    """The names bound inside functions, lambdas and comprehensions; names of a module or a class are none."""
    for child in ast.iter_child_nodes(node):
        if is_local:
            yield from bound_names(child)
        inner = isinstance(child, SCOPES) or (is_local and not isinstance(child, ast.ClassDef))
        yield from local_names(child, inner)


def find_banned(module: Module) -> Iterator[str]:
    """Where a module binds a banned local name."""
    for name, line in local_names(module.tree):
        if name in BANNED:
            yield f"{module.path}:{line} {name}"


def count_layers() -> int:
    """The layers of the import contract."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    return next(len(contract["layers"]) for contract in contracts if contract["type"] == "layers")


# -- the bounds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """A figure, its bound, and every place that misses it."""

    name: str
    value: float
    limit: float
    at_least: bool = False
    places: Sequence[str] = ()

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        verdict = "ok" if self.holds else "MISSED" if self.name in ENFORCED else "missed, not enforced yet"
        return f"{self.name:<22}{self.value:>8.4g}  {'≥' if self.at_least else '≤'} {self.limit:<5g} {verdict}"


@dataclass
class Figures:
    """The figures of all packages, or of one."""

    notebooks: list[Notebook]
    banned: list[str]

    @property
    def cells(self) -> list[Cell]:
        return [cell for notebook in self.notebooks for cell in notebook.cells]

    @property
    def median(self) -> float:
        return statistics.median(cell.lines for cell in self.cells) if self.cells else 0

    @property
    def longest(self) -> int:
        return max((cell.lines for cell in self.cells), default=0)

    @property
    def exported_lines(self) -> int:
        return sum(cell.lines for cell in self.cells)

    @property
    def words(self) -> float:
        """Words of prose for each exported line."""
        return sum(notebook.words for notebook in self.notebooks) / max(self.exported_lines, 1)

    @property
    def examples(self) -> float:
        """Visible example lines for each exported line."""
        return sum(notebook.example_lines for notebook in self.notebooks) / max(self.exported_lines, 1)

    @property
    def long_cells(self) -> list[Cell]:
        """The cells over the bound, the longest first."""
        return sorted((cell for cell in self.cells if cell.lines > MAX_LINES), key=lambda cell: -cell.lines)

    def row(self, title: str) -> str:
        """A line of the table."""
        counts = f"{len(self.notebooks):>4}{self.exported_lines:>7}{self.median:>8g}{self.longest:>6}"
        return (
            f"{title:<14}{counts}{len(self.long_cells):>6}{self.words:>8.2f}{self.examples:>10.2f}{len(self.banned):>8}"
        )


HEADER = (
    f"{'package':<14}{'nbs':>4}{'lines':>7}{'median':>8}{'max':>6}{'long':>6}{'words':>8}{'examples':>10}{'banned':>8}"
)


def by_package(notebooks: Sequence[Notebook], modules: dict[str, Module]) -> dict[str, Figures]:
    """The figures of each package."""
    figures: dict[str, Figures] = defaultdict(lambda: Figures([], []))
    for notebook in notebooks:
        figures[notebook.package].notebooks.append(notebook)
    for module in modules.values():
        figures[module.package].banned.extend(find_banned(module))
    return dict(sorted(figures.items()))


def bounds(all_figures: Figures, modules: dict[str, Module]) -> list[Bound]:
    """Every figure beside its bound."""
    long_cells = [f"{cell.notebook} {cell.name}: {cell.lines} lines" for cell in all_figures.long_cells]
    ambiguous = [f"{name}: {', '.join(places)}" for name, places in find_ambiguous(modules).items()]
    return [
        Bound("median cell lines", all_figures.median, MEDIAN_LINES),
        Bound("longest cell lines", all_figures.longest, MAX_LINES, places=long_cells),
        Bound("words per line", all_figures.words, WORDS, at_least=True),
        Bound("examples per line", all_figures.examples, EXAMPLES, at_least=True),
        Bound("layers", count_layers(), LAYERS),
        Bound("ambiguous names", len(ambiguous), AMBIGUOUS, places=ambiguous),
        Bound("banned locals", len(all_figures.banned), BANNED_LOCALS, places=all_figures.banned),
    ]


def print_package(figures: Figures) -> None:
    """Where a package stands: its notebooks, its longest cells, its banned locals."""
    print("\nnotebook: lines, median, max, words per line, examples per line")
    for notebook in figures.notebooks:
        alone = Figures([notebook], [])
        counts = f"{alone.exported_lines:>5}{alone.median:>7g}{alone.longest:>5}"
        print(f"  {notebook.path:<44}{counts}{alone.words:>7.2f}{alone.examples:>7.2f}")
    print("\ncells of the most lines")
    for cell in sorted(figures.cells, key=lambda cell: -cell.lines)[: max(15, len(figures.long_cells))]:
        print(f"  {cell.lines:>4}  {cell.notebook} {cell.name}")
    print("\nbanned locals")
    for place in figures.banned:
        print(f"  {place}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", nargs="?", const="", metavar="PACKAGE", help="print every finding, never fail")
    options = parser.parse_args()
    notebooks, modules = read_notebooks(), read_modules()
    packages = by_package(notebooks, modules)
    if options.report and options.report not in packages:
        parser.error(f"no package is called {options.report}; choose from {', '.join(packages)}")
    overall = Figures(notebooks, [place for figures in packages.values() for place in figures.banned])
    print(HEADER)
    for name, figures in packages.items():
        if options.report in (None, "", name):
            print(figures.row(name))
    if options.report:
        print_package(packages[options.report])
        return 0
    print(overall.row("all") + "\n")
    missed, checked = [], bounds(overall, modules)
    if unknown := ENFORCED - {bound.name for bound in checked}:
        sys.exit(f"figures: ENFORCED names no bound: {', '.join(sorted(unknown))}")
    for bound in checked:
        print(bound)
        missed += [bound] if not bound.holds and bound.name in ENFORCED else []
        if options.report is not None or bound in missed:
            print("".join(f"    {place}\n" for place in bound.places), end="")
    if options.report is not None:
        print("\nfor information: a class and a public name that differ only in case")
        print("".join(f"    {pair}\n" for pair in find_case_pairs(modules)), end="")
    return bool(missed) and options.report is None


if __name__ == "__main__":
    sys.exit(main())
