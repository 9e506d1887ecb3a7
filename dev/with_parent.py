"""Run a script, and end with the process that started it, even where that one is killed and can tell nobody.

    python dev/with_parent.py FOLDER SCRIPT [arguments]

The parent holds the other end of standard input, and writes nothing to it: it closes when the parent is gone. FOLDER is
then removed, which the parent would have done.
"""

import os
import runpy
import shutil
import sys
import threading
from pathlib import Path


def end_with_parent(folder: str) -> None:
    while os.read(0, 1024):  # not through sys.stdin, whose lock this thread would hold while Python ends
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, args=(sys.argv[1],), daemon=True).start()
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
