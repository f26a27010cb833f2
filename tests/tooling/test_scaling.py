"""docs/scaling.md plans with the figures of the benchmarks, and what it computes agrees with what it simulates."""

import importlib.util
import re
import subprocess
import sys
from types import ModuleType

import pytest
from paths import ROOT

SCRIPT = ROOT / "benchmarks" / "platform" / "scaling.py"


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_page_are_those_that_the_script_prints():
    page = (ROOT / "docs" / "scaling.md").read_text()
    shown = re.findall(r"<!-- scaling.py: \d -->\n\n(.*?)\n\n<!-- end -->", page, re.DOTALL)
    printed = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True).stdout
    assert "\n\n".join(shown) == printed.strip()


def test_each_figure_is_in_a_row_of_the_benchmarks(scaling: ModuleType):
    _, *parts = re.split(r"^## (.*)\n", (ROOT / "benchmarks" / "README.md").read_text(), flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    for figure in scaling.FIGURES:
        rows = sections[figure.section].splitlines()
        assert any(f"| {figure.row} |" in row and figure.shown in row for row in rows), figure.row
        digits = float(re.sub(r"[^\d.].*", "", figure.shown.replace(",", "")))
        assert digits in (figure.value, round(figure.value * 50e6))


@pytest.mark.parametrize(("workers", "load"), [(1, 0.3), (2, 0.6), (3, 0.5)])
def test_the_simulation_agrees_with_the_arithmetic(scaling: ModuleType, workers: int, load: float):
    rate = workers * scaling.most(scaling.WORKER, load)
    made = scaling.simulate(rate, workers)
    redis = rate * scaling.REDIS.value * 1e-6
    assert made.load == pytest.approx(load, rel=0.03) and made.redis_load == pytest.approx(redis, rel=0.03)
    assert made.wait == pytest.approx(scaling.expected_wait(rate, scaling.WORKER, workers, scaling.VARIATION), rel=0.1)
    assert made.redis_wait <= 1.05 * scaling.expected_wait(rate, scaling.REDIS, 1, 0)


def test_the_simulation_knows_queues(scaling: ModuleType):
    """Three that come at once wait for each other; one that comes later does not."""
    arrivals, service = scaling.np.array([0.0, 0.0, 0.0, 9.0]), scaling.np.array([1.0, 2.0, 1.0, 1.0])
    assert scaling.leave(arrivals, service).tolist() == [1.0, 3.0, 4.0, 10.0]


@pytest.mark.parametrize(("partitions", "processes"), [(12, 3), (12, 5), (48, 12)])
def test_partitions_spread_as_computed(scaling: ModuleType, partitions: int, processes: int):
    assert scaling.simulated_busiest(partitions, processes) == pytest.approx(
        scaling.busiest(partitions, processes), rel=0.15
    )
