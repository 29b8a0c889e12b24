"""Experiments in files: what is taken from one, and what is refused with a sentence."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import main
from methods import METHODS
from methods.runs.arguments import build_parser, parse_typed
from methods.runs.config import config_of
from utils.errors import UserError


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_gives_the_same_flags(method: str, tmp_path: Path) -> None:
    typed = parse_typed(["--method", method, "--seed", "3", "--settings", "quick"])
    (tmp_path / "config.yaml").write_text(config_of(build_parser(method), typed))
    again = parse_typed(["--config", str(tmp_path / "config.yaml")])
    assert vars(again) == vars(typed) | {"config": tmp_path / "config.yaml"}


def test_json_any_spelling_and_part_of_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        '{"method": "free", "num-sup-train": 5, "inner_update_num": 2, "teachers": ["a.csv", "b.csv"], "epochs": null}'
    )
    args = main.parse_args(["--config", str(path), "--Glr", "0.5"])
    assert (args.shot_train, args.shot_test, args.inner_steps, args.Glr) == (5, 5, 2, 0.5)
    assert args.teachers == [Path("a.csv"), Path("b.csv")]
    assert args.epochs == 1000
    assert main.parse_args(["--config", str(path), "--teachers", "c.csv"]).teachers == [Path("c.csv")]


def test_one_value_of_a_flag_that_takes_several(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: chorus\nteachers: a.csv\nreadout: plain\ndataset:\n")
    args = main.parse_args(["--config", str(path)])
    assert (args.teachers, args.readout, args.dataset) == ([Path("a.csv")], ["plain"], None)


def test_what_a_run_is_told_anew_is_kept(flags_for: Callable[..., list[str]], tmp_path: Path) -> None:
    main.main([*flags_for("real"), "--run_name", "mine", "--no_floors"])
    run = tmp_path / "runs" / "mine"
    main.main(["--resume", str(run), "--epochs", "3", "--threads", "1"])
    record = json.loads((run / "args.json").read_text())
    assert record["flags"]["epochs"] == yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 3
    assert main.parse_args(record["argv"]).epochs == 3
    before = (run / "args.json").read_bytes()
    main.main(["--resume", str(run)])  # finished, and as it was
    assert (run / "args.json").read_bytes() == before


def test_a_paper_s_settings_follow_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for shot in (1, 5):
        path.write_text(f"method: tgr\nnum_sup_train: {shot}\n")
        from_file = vars(main.parse_args(["--config", str(path)])) | {"config": None}
        assert from_file == vars(main.parse_args(["--method", "tgr", "--num_sup_train", str(shot)]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("method: free\nepoch: 3", "--epoch is no flag of --method free (did you mean --epochs?)"),
        ("method: free\nepochs: many", "--epochs is 'many', which the flag does not take"),
        ("method: free\nepochs: 0", "--epochs is 0, which the flag does not take"),
        ("method: free\nrun_name: x", "--run_name is typed, and not kept in a file"),
        ("method: free\ninner_steps: 1\ninner_update_num: 2", "names --inner_update_num twice"),
        ("epochs: 3", "--method is missing"),
        ("method: random\nGlr: 3", "--Glr is no flag of --method random"),
        ("method: free\nepochs: 3\nepochs: 4", "epochs stands there twice"),
        ("method: free\nreadout: []", "--readout has no value"),
        ("method: fre", "unknown method 'fre'"),
        ("- epochs", "expected lines like `epochs: 50`"),
        ("a: [", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
    ],
)
def test_what_a_file_cannot_say(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=re.escape(said)):
        main.parse_args(["--config", str(tmp_path / "mine.yaml")])


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        main.parse_args(["--config", str(tmp_path / "none.yaml")])


def test_people_can_read_it(flags_for: Callable[..., list[str]], tmp_path: Path) -> None:
    main.main([*flags_for("random"), "--run_name", "mine"])
    text = (tmp_path / "runs" / "mine" / "config.yaml").read_text()
    assert text.startswith("# The flags of this run: python main.py --config config.yaml")
    assert next(iter(yaml.safe_load(text))) == "method"
    assert "null" not in text


def test_code_that_a_file_names_runs_only_where_it_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("raise SystemExit('it ran')\n")
    place = f"{tmp_path}/theirs.py:make"
    (tmp_path / "c.yaml").write_text(f"method: chorus\nblack_box: true\nteachers: [{place!r}]\n")
    with pytest.raises(UserError, match=r"c\.yaml runs code, teachers .*; if it is yours, add --allow_code"):
        main.parse_args(["--config", str(tmp_path / "c.yaml")])
    assert main.parse_args(["--config", str(tmp_path / "c.yaml"), "--allow_code", place]).teachers == [place]
