"""The plan of the house: which room may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from methods import REGISTRY
from methods.experiments.few_shot import FewShotMethod
from methods.experiments.method import Method

ROOT = Path(__file__).resolve().parents[1]
# From the top of the house down; an import may only point to a later line. Rooms of one line may not import each other.
# Two-line modules that keep a name which is typed on the command line.
FACES = ["methods.predict", "methods.teachers.__main__", "utils.report"]
FLOORS = [
    ["benchmarks"],
    ["pretrain", "main", "write_file", *FACES],
    ["methods.runs"],
    [
        *[
            "methods.free",
            "methods.tgr",
            "methods.purer",
            "methods.bidf_mkd",
            "methods.chorus",
            "methods.teapot",
            "methods.baselines",
        ],
        *["methods.fast", "methods.dfkd", "methods.supervised"],
    ],
    ["methods.experiments"],
    ["methods.evaluation"],
    ["methods.memory"],
    ["methods.teachers"],
    ["methods.distillation"],
    ["methods.metalearners"],
    ["methods.inversion"],
    ["methods.services"],
    ["datasets", "models"],
    ["utils"],
]
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
FILES = [
    path.relative_to(ROOT)
    for folder in ("utils", "models", "datasets", "methods", "write_file", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
] + [Path("main.py"), Path("pretrain.py")]


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return next((room for length in (3, 2, 1) if (room := ".".join(parts[:length])) in HEIGHT), None)


def imported_modules(path: Path) -> list[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path: Path) -> None:
    own = room_of(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    if own is None:
        assert path == Path("methods/__init__.py"), f"{path} is in no room: give it a line in FLOORS"
        return
    for module in imported_modules(path):
        other = room_of(module)
        if other is not None and other != own:
            assert HEIGHT[own] < HEIGHT[other], f"{path} imports {module}, which is not below it"


def test_every_file_is_reached() -> None:
    """A module that nothing imports and nobody runs is dead."""
    imported = {name for path in FILES for name in imported_modules(path)}
    registry = (ROOT / "methods" / "__init__.py").read_text(encoding="utf-8")
    for path in FILES:
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        is_entry = path.parent.name == "write_file" or 'if __name__ == "__main__"' in (ROOT / path).read_text(encoding="utf-8")
        known = any(name == module or name.startswith(module + ".") for name in imported)
        assert is_entry or known or f'"{module}:' in registry, f"{path} is imported by nothing"


def test_a_file_in_methods_is_a_paper_and_a_folder_is_a_room() -> None:
    registered = {target.split(":")[0] for target in REGISTRY.values()}
    files = {f"methods.{path.stem}" for path in (ROOT / "methods").glob("*.py")} - {"methods.__init__"}
    assert files - set(FACES) == registered


def test_the_contract_is_small() -> None:
    """What a method may override: eight members, and three more where it ends with a few-shot learner."""

    def members(owner: type) -> set[str]:
        return {name for name, value in vars(owner).items() if callable(getattr(owner, name)) and not name.startswith("_")}

    assert len(members(Method)) == 8
    assert members(FewShotMethod) == {"looks_inside", "score", "recover"}


def test_a_command_line_is_read_without_what_is_slow_to_import() -> None:
    code = """
import main, sys
main.parse_args(["--method", "free"])
print(sorted({"sklearn", "scipy", "matplotlib", "tensorboard", "torchvision", "jinja2"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
