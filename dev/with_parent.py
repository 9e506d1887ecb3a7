"""Run a script, and end with the process that started it, even where that one is killed and can tell nobody.

    python dev/with_parent.py SCRIPT [arguments]

The parent holds the other end of standard input, and writes nothing to it: it closes when the parent is gone.
"""

import os
import runpy
import sys
import threading
from pathlib import Path


def end_with_parent() -> None:
    while os.read(0, 1024):  # not through sys.stdin, whose lock this thread would hold while Python ends
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
