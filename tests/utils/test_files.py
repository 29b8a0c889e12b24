import os
import time
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import ABANDONED, atomic_path, path_below, read_csv, write_text


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


def test_what_a_killed_process_left_behind_is_removed(tmp_path: Path) -> None:
    old, young, others = (tmp_path / name for name in (".kept.txt.part-a", ".kept.txt.part-b", ".kept.txtpart-c"))
    for file in (old, young, others):
        file.write_text("half")
    long_ago = time.time() - 2 * ABANDONED
    os.utime(old, (long_ago, long_ago))
    os.utime(others, (long_ago, long_ago))
    write_text(tmp_path / "kept.txt", "new")
    assert sorted(tmp_path.iterdir()) == sorted([young, others, tmp_path / "kept.txt"])


def test_no_link_pipe_or_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "pipe", "folder"):
        with pytest.raises(UserError, match=f"{name} is no ordinary file"):
            write_text(tmp_path / name, "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "mine"


def test_lists_as_other_programs_save_them(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    wanted = [["x.png", "NA"], ["y.png", "nan"]]
    for text, encoding in (
        ("filename,label\nx.png,NA\ny.png,nan\n", "utf-8"),
        ("filename,label\r\nx.png,NA\r\ny.png,nan", "utf-8-sig"),
        ("filename,label,\nx.png,NA,\ny.png,nan,\n,,\n", "utf-8"),
        (",filename,label\n0,x.png,NA\n1,y.png,nan\n", "utf-8"),
        ('filename, label\n\nx.png , NA\n,,,\n"y.png",nan\n', "utf-16"),
    ):
        path.write_bytes(text.encode(encoding))
        table = read_csv(path)
        assert list(table.columns) == ["filename", "label"]
        assert table.to_numpy().tolist() == wanted
    assert list(table.index) == [3, 5]  # the file's lines


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n,,\n", "is empty"),
        (b"a,b\n1,2\n3,4,5\n", "line 3 has 3 cells and the header 2, from '5' on"),
        (b"a;b\n1;2\n", "not separated by commas"),
        (b"a|b\n1|2\n", "not separated by commas"),
        ("a,b\n1,2\n".encode("utf-16-le"), "no text in UTF-8"),
        (b"a,a\n1,2\n", "a different name for each"),
        (b"a,b\n\xff\xff,2\n", "is no text in UTF-8"),
        (b'a,b\n"1,2\n', "is no CSV file"),
    ],
)
def test_lists_that_are_none_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_csv(tmp_path / "list.csv")
