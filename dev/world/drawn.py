"""Import the pack's `world` folder as a package of its own, `world`.

The checkout's root must not be on sys.path: its folder `nodes` would hide the host's module of that name.
"""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "world"

_spec = importlib.util.spec_from_file_location("world", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)])
sys.modules["world"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["world"])
