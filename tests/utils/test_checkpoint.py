import os
import pickle
from argparse import Namespace
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from utils import checkpoint
from utils.errors import UserError


class Hostile:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_nothing_is_executed_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Hostile()}, "hostile.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Hostile()))
    for name in ("hostile.pth", "plain.pth"):
        with pytest.raises(UserError, match=name):
            checkpoint.load(name)
    assert not Path("owned").exists()


@pytest.mark.parametrize("beside", [Namespace(lr=0.1, out=Path("x")), np.float64(0.5), np.int64(3), np.arange(3)], ids=repr)
def test_what_training_scripts_leave_is_plain(beside: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "beside": beside}, tmp_path / "file.pth")
    found = checkpoint.load(tmp_path / "file.pth")["beside"]
    assert vars(found)["lr"] == 0.1 if isinstance(beside, Namespace) else bool(np.all(found == beside))


def test_what_is_more_is_called_by_its_name(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "beside": deque([1])}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"holds a collections\.deque beside tensors"):
        checkpoint.load(tmp_path / "file.pth")


def test_what_is_cached_is_computed_once_for_a_key(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, object]:
        calls.append(1)
        return {"layers": [torch.arange(3.0)], "scores": [0.25, 0.5]}

    for key in (["a", 1], ["a", 1], ["b", 1]):
        found = checkpoint.cached(tmp_path, key, compute)
        assert found["scores"] == [0.25, 0.5]
        assert torch.equal(found["layers"][0], torch.arange(3.0))
    assert len(calls) == 2


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 broken zip"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.pth"):
        checkpoint.load(path)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "missing.pth")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pth", b"\x1f\x8b\x08 zipped", "compressed by gzip"),
        ("a.pth", b"\x10\0\0\0\0\0\0\0{" + b" " * 40, r"call it \.safetensors"),
        ("a.pth", b"\x08\x07\x12\x07pytorch", "list it with the arch onnx"),
        ("a.pth", b"\x89HDF\r\n", "HDF5"),
        ("a.safetensors", None, r"call it \.pth"),
    ],
)
def test_what_a_file_is_instead_is_said(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    checkpoint.save({"a": torch.ones(2)}, path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        checkpoint.load(path)


def test_what_a_safetensors_file_says_comes_with_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata={"format": "pt", "classes": "['b', 'a']"})
    found = checkpoint.load(path)
    assert found["classes"] == ["b", "a"]
    assert found.keys() == {"weight", "classes", "format"}


def test_weights_that_do_not_fit_say_where() -> None:
    layer, wide = nn.Linear(3, 2), nn.Linear(3, 4)
    with pytest.raises(UserError, match=r"'(weight|bias)' is \(4"):
        checkpoint.load_weights(layer, wide.state_dict(), "teacher 7")
    with pytest.raises(UserError, match="lacks 'bias'"):
        checkpoint.load_weights(layer, {"weight": layer.weight}, "teacher 7")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"), (b"<!DOCTYPE html>", "page of the web"),
        (b"\x93NUMPY\x01", "array of numpy"), (b"\xfd7zXZ\0", "compressed by xz"),
    ],
    ids=["lfs", "html", "npy", "xz"],
)  # fmt: skip
def test_files_that_are_something_else(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "f.pth").write_bytes(content)
    with pytest.raises(UserError, match=words):
        checkpoint.load(tmp_path / "f.pth")
    with pytest.raises(UserError, match="is a folder"):
        checkpoint.load(tmp_path)
