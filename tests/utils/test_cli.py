import argparse

import pytest
import torch

from utils import cli
from utils.errors import UserError


def args(**changes: object) -> argparse.Namespace:
    usual = {"device": "auto", "gpu": None, "multigpu": None, "threads": 1, "tf32": False, "deterministic": False}
    return argparse.Namespace(**(usual | changes))


def test_hyphens_are_underscores() -> None:
    assert cli.underscored(["--batch-size=4-5", "--log-tag", "a-b", "-h"]) == ["--batch_size=4-5", "--log_tag", "a-b", "-h"]


def test_the_papers_cards_are_positions_in_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert cli.select_device(args(multigpu="5", gpu=0)) == torch.device("cuda:5")
    assert cli.select_device(args(multigpu="2,6", gpu=1)) == torch.device("cuda:6")
    assert cli.select_device(args(gpu=3)) == torch.device("cuda:3")
    assert cli.select_device(args(device="cuda")) == torch.device("cuda:0")  # with a number, which PyTorch asks for
    for wrong in ({"multigpu": "9", "gpu": 0}, {"multigpu": "1", "gpu": 1}, {"multigpu": "x"}, {"device": "cuda:8"}):
        with pytest.raises(UserError):
            cli.select_device(args(**wrong))


def test_without_a_card(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert cli.select_device(args()) == torch.device("cpu")
    assert cli.select_device(args(multigpu="5", gpu=0)) == torch.device("cpu")
    assert "warning" in capsys.readouterr().err
    with pytest.raises(UserError, match="0 CUDA"):
        cli.select_device(args(device="cuda"))
    with pytest.raises(UserError, match="--device mps: nothing here was ever tried"):
        cli.select_device(args(device="mps"))
    with pytest.raises(UserError, match="no device"):
        cli.select_device(args(device="gpu"))


def test_errors_are_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise UserError("first\n  second")

    with pytest.raises(SystemExit) as stop:
        cli.exit_with_message(work)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: first second\n"


def test_a_stop_inside_of_an_import_is_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    """Python wraps what is raised while a class is made."""

    def stopped() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stop:
            raise RuntimeError("Error calling __set_name__") from stop

    with pytest.raises(SystemExit) as ended:
        cli.exit_with_message(stopped)
    assert (ended.value.code, capsys.readouterr().err) == (130, "stopped\n")

    def broken() -> None:
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        cli.exit_with_message(broken)
