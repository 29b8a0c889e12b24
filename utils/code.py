"""Running code that the user names, and only then."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def is_code(name: str) -> bool:
    """Whether a name is `module:function` or `file.py:function` of the user's own, which choosing it would execute."""
    return ":" in name


def import_function(place: str) -> Any:
    """The function that `module:function` or `file.py:function` names; what lies beside the file can be imported by it."""
    module_name, _, function_name = place.rpartition(":")
    file = Path(module_name)
    return getattr(_from_file(file.resolve()) if file.suffix == ".py" else importlib.import_module(module_name), function_name)


def beside(place: str, folder: Path) -> str:
    """The same place as a file of `folder`, where the module lies there, and as it is elsewhere."""
    module_name, _, function_name = place.rpartition(":")
    file = folder / f"{module_name.removesuffix('.py').replace('.', '/')}.py"
    return f"{file}:{function_name}" if file.is_file() else place


def file_of(place: str) -> Path | None:
    """The file that a `file.py:function` names; None for a module, which may lie anywhere."""
    file = Path(place.rpartition(":")[0])
    return file if file.suffix == ".py" and file.is_file() else None


def _from_file(file: Path) -> ModuleType:
    """The module of a file, under its own name where no other module has it."""
    known = sys.modules.get(file.stem)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == file:
        return known
    found = importlib.util.find_spec(file.stem) if known is None else None
    taken = known is not None or (found is not None and Path(found.origin or "").resolve() != file)
    name = str(file.with_suffix("")) if taken else file.stem
    if name in sys.modules:
        return sys.modules[name]
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ModuleNotFoundError(f"No module named {file.stem!r}", name=file.stem)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
