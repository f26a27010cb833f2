"""The page `docs/lab.md`: its table lists every public name of `mlpkg.lab`, with the parameters that the name has."""

import inspect
import re

from paths import ROOT

from mlpkg import lab


def test_the_table_has_every_public_name_with_its_parameters():
    rows = re.findall(r"^\| `(\w+)(?:\((.*?)\))?` \| \S", (ROOT / "docs" / "lab.md").read_text("utf-8"), re.MULTILINE)
    listed = {name: re.findall(r"(?:^|, )(\**\w+)", parameters) for name, parameters in rows}
    expected = {}
    for name in lab.__all__:
        member = getattr(lab, name)
        parameters = {} if inspect.isclass(member) else inspect.signature(member).parameters
        expected[name] = [str(p).partition(":")[0].partition("=")[0].strip() for p in parameters.values()]
    assert listed == expected
    assert len(rows) == len(listed), "each name stands once"
