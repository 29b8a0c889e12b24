from collections.abc import Callable
from pathlib import Path

import pytest

import main
from methods.chorus import Chorus
from methods.teachers.sources import Sources

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
    main.main([*flags_for("chorus", 4), *black, "--price_per_1000", "2", "--dry_run"])
    said = capsys.readouterr().out
    assert "to be asked: 256 images in 2 calls, price 0.51" in said
    assert "4 iterations, validated every 1" in said
    assert "as near took" in said
    assert "(other values of epochs, no_floors, price_per_1000)" in said
    assert "the learner: conv4" in said
    assert sorted((tmp_path / "runs").rglob("*")) == before


def test_what_a_visit_of_a_service_costs_is_said(flags_for: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    main.main([*flags_for("bidf_mkd"), "--price_per_1000", "10", "--dry_run"])
    assert "to be asked: 336 images at each visit of a service, price 3.36; patience decides" in capsys.readouterr().out
