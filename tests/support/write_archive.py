"""Write the archive of a store until the log ends there, with a commit for every few entries: write_archive.py SETTINGS ARCHIVE.

Small commits and merges of few files make many moments at which a kill can hurt.
"""

import sys

from mlpkg.settings import Settings
from mlpkg.store import open_archive, open_store
from mlpkg.store.delta import stream_table, writer

writer._COMMIT_ROWS = 150
stream_table._MERGE = 3

if __name__ == "__main__":
    settings, location = sys.argv[1:]
    store = open_store(Settings.model_validate_json(settings), create=False)
    print("begin", flush=True)
    open_archive(location).write(store)
    print("end", flush=True)
