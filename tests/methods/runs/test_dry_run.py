from collections.abc import Callable
from pathlib import Path

import pytest

import main
from methods.chorus import Chorus
from methods.memory.sources import Sources

Flags = Callable[..., list[str]]


def test_a_plan_does_nothing_and_knows_how_long_it_took(
    flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two earlier runs the one with more equal flags is named; damaged and other runs are passed over."""
    black = ["--black_box", "--num_images", "64"]
    main.main([*flags_for("chorus", 1), *black, "--batch_size", "32", "--no_floors", "--run_name", "far"])
    main.main([*flags_for("chorus", 1), *black, "--no_floors", "--run_name", "near"])
    main.main([*flags_for("random", 1), "--no_floors", "--run_name", "other"])
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "args.json").write_text("{")

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Chorus, "train_iteration", never)
    monkeypatch.setattr(Sources, "draw", never)
    before = sorted((tmp_path / "runs").rglob("*"))
    capsys.readouterr()
    main.main([*flags_for("chorus", 4), *black, "--dry_run"])
    said = capsys.readouterr().out
    assert "to be asked: 256 images in 2 calls" in said
    assert "4 iterations, validated every 1" in said
    assert "as near took" in said
    assert "(other values of epochs, no_floors)" in said
    assert "the learner: conv4" in said
    assert sorted((tmp_path / "runs").rglob("*")) == before
