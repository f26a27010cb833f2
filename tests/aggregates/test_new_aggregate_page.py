"""The page `docs/new-aggregate.md`: its aggregate is short and passes the conformance suite, as the page stands."""

import importlib
import re
from pathlib import Path

import pytest
import test_conformance as suite
from aggregate_cases import EXAMPLES, _of
from oracle import VERBS
from paths import ROOT

from mlpkg.aggregates import REGISTRY

CLASS, ORACLE, EXAMPLE = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "docs" / "new-aggregate.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.fixture
def midrange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the aggregate of the page, its oracle and its examples, for one test."""
    for registry in (REGISTRY, VERBS, EXAMPLES):
        monkeypatch.setitem(registry, "midrange", None)  # what the page puts there is taken away again
    module = tmp_path / "midrange_of_the_page.py"
    module.write_text(CLASS)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(module.stem)
    exec(ORACLE, {"VERBS": VERBS})
    exec(EXAMPLE, {"EXAMPLES": EXAMPLES, "_of": _of})


def test_the_aggregate_of_the_page_is_under_twenty_lines():
    assert len(CLASS.partition("@register")[2].strip().splitlines()) < 20


@pytest.mark.usefixtures("midrange")
def test_the_aggregate_of_the_page_passes_the_conformance_suite():
    suite.test_it_is_a_value("midrange")
    suite.test_it_is_right_where_it_is_hard("midrange")
    suite.test_it_is_right_on_random_streams("midrange")
