import json
from pathlib import Path

import pytest

import pretrain
from benchmarks import card
from main import parse_args
from write_file import write_glyphs_filelist


@pytest.mark.parametrize("quick", [False, True])
def test_every_command_of_it_parses(quick: bool) -> None:
    for job in card.jobs(quick):
        flags = job.command.format(work="there").split()
        (pretrain.parse_args if job.trains else parse_args)(flags)


def test_a_part_tells_the_whole_by_the_pace_of_its_second_half(tmp_path: Path) -> None:
    seconds = [100, 110, 112, 114]  # the first iteration prepares, the second compiles
    lines = [json.dumps({"iteration": number + 1, "seconds": second}) for number, second in enumerate(seconds)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "result.json").write_text(json.dumps({"seconds": {"total": 120}}))
    figures = card.figures_of(card.Job("a part", "", of=10), tmp_path, 0.0)
    assert figures == {"seconds": 120, "iterations": 4, "of": 10, "whole": 114 + 6 * 2}


@pytest.mark.slow
def test_calls_go_on_until_all_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_glyphs_filelist.main(["--data_root", str(tmp_path), "--images", "20"])
    call = f"--quick --device cpu --threads 1 --data_root {tmp_path} --work {tmp_path / 'work'} --minutes".split()
    card.main([*call, "0.15"])  # too little for all of it
    assert "call it again" in capsys.readouterr().out
    card.main([*call, "5"])
    shown = capsys.readouterr().out
    kept = json.loads((tmp_path / "work" / "card.json").read_text())["measured"]
    assert "all is there" in shown
    assert all("seconds" in kept[job.name] for job in card.jobs(True)), kept
    assert 0 <= kept["FREE"]["glyphs"] <= 1  # its number
    assert kept["PURER-Plus"]["whole"] > 0
    assert "reckoned from 10 of 20 iterations" in shown
