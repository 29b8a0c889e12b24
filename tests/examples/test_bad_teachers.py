import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from datasets.registry import get_spec
from examples import bad_teachers
from methods.teachers.manifest import read_manifest, write_manifest
from utils.errors import UserError


def test_gratings_of_a_class_share_their_angle_and_frequency() -> None:
    split = bad_teachers.gratings(4, 3, 32, torch.Generator().manual_seed(0))
    assert split.images.dtype == torch.uint8
    assert split.images.shape == (12, 3, 32, 32)
    spectra = torch.fft.rfft2(split.images.double().mean(1)).abs()
    spectra[:, 0, 0] = 0  # the mean grey
    peaks = spectra.flatten(1).argmax(1).reshape(4, 3)
    assert bool((peaks == peaks[:, :1]).all())
    assert len(set(peaks[:, 0].tolist())) == 4


def test_shuffled_labels_stand_beside_other_images(data_root: Path) -> None:
    spec, draws = get_spec("cifar100"), torch.Generator().manual_seed(0)
    _, honest = bad_teachers.images_of("letters", spec, data_root, 16, draws)
    assert honest.class_names == bad_teachers.load_split(get_spec("glyphs"), "meta_train", data_root, 16).class_names
    split = bad_teachers.load_split(spec, "meta_train", data_root, 16)
    _, shuffled = bad_teachers.images_of("shuffled labels", spec, data_root, 16, draws)
    assert torch.equal(shuffled.labels, split.labels)
    assert not torch.equal(shuffled.images, split.images)
    assert sorted(image.sum().item() for image in shuffled.images) == sorted(image.sum().item() for image in split.images)


@pytest.mark.slow
def test_bad_teachers_of_each_kind_beside_the_good_ones(
    data_root: Path, flags_for: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv"
    out = tmp_path / "study"
    flags = flags_for("chorus")
    del flags[2:6]  # data and place are the study's
    study = ["--teachers", str(good), "--data_root", str(data_root), "--counts", "1", "2", "--pretrain_epochs", "1"]
    study += ["--out", str(out), "--threads", "1"]
    flags.append("--black_box")
    bad_teachers.main([*study, "--", *flags])
    found = pd.read_csv(out / "bad_teachers.csv", keep_default_na=False)
    kinds = [*bad_teachers.KINDS, bad_teachers.MIXED]
    assert list(zip(found.kind, found.bad, strict=True)) == [("", 0), *((kind, count) for kind in kinds for count in (1, 2))]
    assert found.accuracy.between(0, 1).all()
    assert found.frozen.between(0, 1).all()
    assert found.difference[0] == 0
    assert "2 gratings" in capsys.readouterr().out
    truth = read_manifest(good)
    for kind in kinds:
        rows = read_manifest(out / f"{kind.replace(' ', '_')}-2.csv")
        assert [row.path.read_bytes() for row in rows[:2]] == [row.path.read_bytes() for row in truth]
        known = {name for row in truth for name in row.class_names}
        assert all(set(row.class_names) <= known and len(row.class_ids) == 3 for row in rows)
        assert all(row.path.is_file() for row in rows)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt*")}
    bad_teachers.main([*study, "--", *flags])
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.pt*") if path in before}


def test_good_teachers_of_two_sets_cannot_be_judged_together(data_root: Path, tmp_path: Path) -> None:
    rows = []
    for name in ("cifar100", "miniimagenet"):
        row = read_manifest(data_root / "teachers" / name / "conv4/3way-16px/teachers.csv")[0]
        rows.append(replace(row, path=tmp_path / f"{name}.pth"))
        shutil.copy(row.path, rows[-1].path)
    write_manifest(rows, tmp_path / "both.csv")
    with pytest.raises(UserError, match="one image set"):
        bad_teachers.main(["--teachers", str(tmp_path / "both.csv"), "--out", str(tmp_path / "out")])
