from pathlib import Path

import pytest
import torch

from utils import room
from utils.errors import UserError

CPU = torch.device("cpu")


def test_what_fits_lies_in_memory(tmp_path: Path) -> None:
    made = room.room_for((3, 2), torch.float16, CPU, tmp_path / "out")
    assert (made.shape, made.dtype) == ((3, 2), torch.float16)
    assert not (tmp_path / "out").exists()


def test_what_does_not_is_mapped_from_a_file_that_nobody_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_of", lambda device: 100)
    made = room.room_for((4, 5, 2), torch.uint8, CPU, tmp_path / "out")
    made.copy_(torch.arange(40, dtype=torch.uint8).view(4, 5, 2))
    assert made[torch.tensor([3, 0])].flatten().tolist() == [*range(30, 40), *range(10)]
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "memory_of", lambda device: 0)
    monkeypatch.setattr(room.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room for 2\.0 GB \(No space left on device\)"):
        room.room_for((1000, 1000, 1000), torch.float16, CPU, tmp_path)
