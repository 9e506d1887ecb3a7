"""Import the pack's folders as parts of a package `baret`, without its nodes and without the host's loader.

`import drawn`, then `from baret.world import scenes`. What builds on the host, as `baret.host.world` does, needs it
loaded before (`in_process.load_host`).

The checkout's root must not be on sys.path: its folder `nodes` would hide the host's module of that name.
"""

import sys
from pathlib import Path
from types import ModuleType

pack = ModuleType("baret")
pack.__path__ = [str(Path(__file__).resolve().parents[2])]
sys.modules["baret"] = pack
