"""The page `docs/contracts.md`: its blocks run, its examples print what it says, and its tables are true."""

import doctest
import json
import re
from typing import Any

import pytest
from paths import ROOT

import mlpkg as ml

PAGE = (ROOT / "docs" / "contracts.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TYPES = re.findall(r"^\| `(.*?)` \| `(.*?)` \| .* \|$", PAGE.partition("| a value in JSON |")[2], re.MULTILINE)
REFUSED = re.findall(r"^\| `(\".*)` \| (\w+: .*) \|$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page has defined at its end; its examples are checked on the way."""
    names: dict[str, Any] = {}
    for number, (kind, text) in enumerate(BLOCKS):
        if kind == "python":
            exec(compile(text, f"block {number}", "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(text, {}, f"block {number}", "docs/contracts.md", 0)
        test.globs = names
        output: list[str] = []
        doctest.DocTestRunner().run(test, out=output.append, clear_globs=False)
        assert not output, "".join(output)
    return names


def test_every_block_of_the_page_runs(page: dict[str, Any]):
    assert {kind for kind, _ in BLOCKS} == {"python", "pycon"} and len(BLOCKS) > 10
    assert page["orders"].parse(page["order"])


def test_every_type_of_field_is_on_the_page(page: dict[str, Any]):
    assert {(c.kind, c.nullable) for c in page["orders"].columns} >= {
        ("int", False),
        ("int", True),
        ("number", False),
        ("bool", False),
        ("text", False),
        ("text", True),
    }


@pytest.mark.parametrize(("declared", "value"), TYPES, ids=[declared for declared, _ in TYPES])
def test_each_type_of_the_table_holds_its_value(page: dict[str, Any], declared: str, value: str):
    names = dict(page)
    exec("class Sample(ml.Event):\n    sample: " + declared.replace("\\|", "|"), names)
    body = {"id": "s-1", "time": "2025-03-01T10:00:00Z", "sample": json.loads(value)}
    assert ml.Source("samples", names["Sample"]).parse(body).values["sample"] == json.loads(value)


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[change for change, _ in REFUSED])
def test_each_refusal_of_the_table_is_what_is_said(page: dict[str, Any], change: str, message: str):
    order = {name: value for name, value in page["order"].items() if f'"{name}": ' not in change}
    with pytest.raises(ml.Rejected) as refused:
        page["orders"].parse(f"{json.dumps(order)[:-1]}, {change}}}")
    assert str(refused.value).removeprefix("Order.").partition(" (event")[0].partition(" (source")[0] == message


def test_the_tables_are_read():
    assert len(TYPES) == 10 and len(REFUSED) > 20
