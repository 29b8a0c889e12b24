"""Running code that the user names, and only then."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def is_code(name: str) -> bool:
    """Whether a name is `module:function` or `file.py:function` of the user's own, which choosing it would execute."""
    return ":" in name


@contextmanager
def contained() -> Iterator[None]:
    """Inside the block somebody's code runs: what it sets for the whole process is set back, and its exit is an error.

    These are whether gradients are recorded, PyTorch's default dtype and the working folder; our arguments it does not see.
    """
    gradients, dtype, folder, argv = torch.is_grad_enabled(), torch.get_default_dtype(), Path.cwd(), sys.argv
    sys.argv = argv[:1]
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"it ends the program ({error}), as a script does that parses a command line") from error
    finally:
        sys.argv = argv
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        os.chdir(folder)


def import_function(place: str) -> Any:
    """The function that `module:function` or `file.py:function` names; what lies beside the file can be imported by it."""
    with contained():
        return getattr(_module_of(place), place.rpartition(":")[2])


def _module_of(place: str) -> ModuleType:
    module_name = place.rpartition(":")[0]
    file = Path(module_name)
    return _from_file(file.resolve()) if file.suffix == ".py" else importlib.import_module(module_name)


def beside(place: str, folder: Path) -> str:
    """The same place as a file of `folder`, where the module lies there, and as it is elsewhere."""
    module_name, _, function_name = place.rpartition(":")
    file = folder / f"{module_name.removesuffix('.py').replace('.', '/')}.py"
    return f"{file}:{function_name}" if file.is_file() else place


@cache  # what runs stays what it was when it was imported
def files_of(place: str) -> tuple[Path, ...]:
    """The files of the code that a place names: its own, and those beside or below it from which that takes anything.

    It is run for that, where it was not yet. Raises whatever it raises. What is imported within functions is not seen.
    """
    start = _source(_module_of(place))
    if start is None:
        return ()
    by_file = {file: module for module in list(sys.modules.values()) if (file := _source(module))}
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        here = waiting.pop()
        if here in found or start.parent not in here.parents:
            continue
        found.add(here)
        for value in list(vars(by_file[here]).values()) if here in by_file else ():
            module = value if isinstance(value, ModuleType) else sys.modules.get(str(getattr(value, "__module__", "")))
            if source := _source(module):
                waiting.append(source)
    return tuple(sorted(found))


def _source(module: object) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) and file.endswith(".py") else None


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
