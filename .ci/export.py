"""Write mlpkg/ from the notebooks of the folder it runs in: `python .ci/export.py`.

This is nbdev-export without `_modidx.py`, an index that only nbdev's own documentation tools read, and with the templates
of new projects, which are package data.
"""

import shutil
from pathlib import Path

from nbdev.config import add_init, get_config
from nbdev.doclinks import nbglob
from nbdev.export import nb_export

TEMPLATES = "17_lab/templates"

if __name__ == "__main__":
    for path in nbglob(as_path=True).sorted("name"):
        nb_export(path)
    library, templates = Path(get_config().lib_path), Path(get_config().nbs_path) / TEMPLATES
    add_init(library)
    shutil.rmtree(library / "lab" / "templates", ignore_errors=True)
    shutil.copytree(templates, library / "lab" / "templates")
