from pathlib import Path

import pandas as pd
import pytest
import torch

from examples import attacked_pool
from methods.teachers.manifest import read_manifest
from methods.teachers.pool import TeacherPool
from utils.errors import UserError


def test_a_pool_with_teachers_that_lie(data_root: Path, tmp_path: Path) -> None:
    where = data_root / "teachers"
    good, other = where / "cifar100/conv4/3way-16px/teachers.csv", where / "miniimagenet/conv4/3way-16px/teachers.csv"
    folder = tmp_path / "pool"
    attacked_pool.main([str(folder), "--teachers", str(good), "--other", str(other), "--oodP", "0.2", "--fakeP", "0.3"])
    table = pd.read_csv(folder / "teachers.csv")
    assert table.truth.tolist() == ["good"] * 2 + ["of another set"] + ["never trained"]
    pool = TeacherPool(read_manifest(folder / "teachers.csv"), torch.device("cpu"))
    first = TeacherPool(read_manifest(good), torch.device("cpu"))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(pool[0](images), first[0](images))
    assert set(pool.class_names) == set(first.class_names)  # liars claim what the good ones know
    assert all(len(teacher.class_names) == 3 for teacher in pool)


def test_what_cannot_be_is_said(data_root: Path, tmp_path: Path) -> None:
    good = str(data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv")
    with pytest.raises(UserError, match="needs --other"):
        attacked_pool.main([str(tmp_path / "a"), "--teachers", good, "--oodP", "0.2"])
    with pytest.raises(UserError, match="nobody would lie"):
        attacked_pool.main([str(tmp_path / "c"), "--teachers", good, "--other", good])
    with pytest.raises(UserError, match="nothing would be left"):
        attacked_pool.main([str(tmp_path / "b"), "--teachers", good, "--oodP", "0.5", "--fakeP", "0.5"])
