import sys
from pathlib import Path

import pytest
import torch

from utils.code import beside, files_of, import_function


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    """Also where the name is that of a module of the program; each once, and with what lies beside it."""
    one = write(tmp_path / "one", "utils.py", "made = []\ndef make():\n    made.append(1)\n    return 'one', made\n")
    two = write(tmp_path / "two", "utils.py", "import helper_of_two\ndef make():\n    return helper_of_two.NAME, []\n")
    write(tmp_path / "two", "helper_of_two.py", "NAME = 'two'\n")
    assert import_function(f"{one}:make")() == ("one", [1])
    assert import_function(f"{two}:make")() == ("two", [])
    assert import_function(f"{one}:make")() == ("one", [1, 1])
    with pytest.raises(ModuleNotFoundError):
        import_function(f"{tmp_path}/none_of_that_name.py:make")


def test_a_file_that_fails_is_not_kept(tmp_path: Path) -> None:
    file = write(tmp_path, "fails_at_first.py", "raise ValueError('broken')\n")
    with pytest.raises(ValueError, match="broken"):
        import_function(f"{file}:make")
    file.write_text("def make():\n    return 3\n")
    assert import_function(f"{file}:make")() == 3


def test_what_lies_beside_a_list_comes_first(tmp_path: Path) -> None:
    file = write(tmp_path / "zoo", "json.py", "def make():\n    return 'beside'\n")
    assert beside("json:make", tmp_path / "zoo") == f"{file}:make"
    assert beside("json.py:make", tmp_path / "zoo") == f"{file}:make"
    assert beside("json:loads", tmp_path) == "json:loads"
    assert import_function(beside("json:make", tmp_path / "zoo"))() == "beside"


def test_the_files_of_somebodys_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With those beside it that it takes from, and theirs; not those that it does not use."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "arch_a.py").write_text("import math\nfrom body_a import body\n\ndef make(classes):\n    return body()\n")
    (tmp_path / "body_a.py").write_text("import leaf_a\n\ndef body():\n    return leaf_a.VALUE\n")
    (tmp_path / "leaf_a.py").write_text("VALUE = 1\n")
    (tmp_path / "unused_a.py").write_text("VALUE = 1\n")
    found = files_of(f"{tmp_path}/arch_a.py:make")
    assert [file.name for file in found] == ["arch_a.py", "body_a.py", "leaf_a.py"]
    (tmp_path / "named_a.py").write_text("from functools import partial\nfrom body_a import body\n\nmake = partial(body)\n")
    assert [file.name for file in files_of(f"{tmp_path}/named_a.py:make")] == ["body_a.py", "leaf_a.py", "named_a.py"]


def test_what_a_module_sets_for_the_whole_process_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "--epochs", "3"])
    text = (
        "import os, sys, torch\nseen = sys.argv[1:]\ntorch.set_grad_enabled(False)\n"
        "torch.set_default_dtype(torch.float16)\nos.chdir(os.path.dirname(__file__))\n"
    )
    file, before = write(tmp_path, "sets_everything.py", text), (torch.get_default_dtype(), Path.cwd())
    assert import_function(f"{file}:seen") == []
    assert (torch.get_default_dtype(), Path.cwd()) == before
    assert torch.is_grad_enabled()
    assert sys.argv == ["main.py", "--epochs", "3"]


def test_a_module_that_ends_the_program_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path, "ends_it.py", "import sys\nsys.exit('CUDA is needed')\n")
    with pytest.raises(RuntimeError, match=r"ends the program .CUDA is needed"):
        import_function(f"{file}:make")
