"""Running code that the user names, and only then."""

import importlib
import sys
from pathlib import Path
from typing import Any


def import_function(place: str) -> Any:
    """The function that `module:function` or `file.py:function` names."""
    module_name, _, function_name = place.rpartition(":")
    file = Path(module_name)
    if file.suffix == ".py":
        folder = str(file.parent.resolve())
        if folder not in sys.path:
            sys.path.insert(0, folder)
        module_name = file.stem
    return getattr(importlib.import_module(module_name), function_name)
