"""Write mlpkg/ from the notebooks of the folder it runs in: `python .ci/export.py`.

This is nbdev-export without `_modidx.py`, an index that only nbdev's own documentation tools read.
"""

from nbdev.config import add_init, get_config
from nbdev.doclinks import nbglob
from nbdev.export import nb_export

if __name__ == "__main__":
    for path in nbglob(as_path=True).sorted("name"):
        nb_export(path)
    add_init(get_config().lib_path)
