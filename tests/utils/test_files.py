from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import atomic_path, path_below, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "kept.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="disk"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "a/../../b.png", ""])
def test_paths_may_not_leave_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"list\.csv"):
        path_below(tmp_path, name, "list.csv")
    assert path_below(tmp_path, "a/b.png", "list.csv") == tmp_path / "a" / "b.png"
