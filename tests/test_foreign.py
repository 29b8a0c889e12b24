"""Nothing is left on the CPU when a run takes place on another device."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.utils.backend_registration as backends

from methods import METHODS, get_method

Flags = Callable[..., list[str]]
TESTS = Path(__file__).parent
IN_THE_TEST_SUITE = "free"  # the others are slow rows
pytestmark = pytest.mark.skipif(
    not hasattr(backends, "_setup_privateuseone_for_python_backend"), reason="this PyTorch cannot pretend a device"
)
THERE = f"""
import os, sys
sys.path.insert(0, {str(TESTS)!r})
import foreign
library = foreign.install()
import torch
import main
"""
DIES = f"""{THERE}
from methods.runs.training import Training
save = Training.save
Training.save = lambda self: (save(self), os._exit(9))
main.main(sys.argv[1:])
"""
PLANTED = f"""{THERE}
from models.generator import Generator
forward = Generator.forward
Generator.forward = lambda self, noise: forward(self, noise) + torch.zeros(3, 1, 1)
main.main(sys.argv[1:])
"""


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=TESTS.parent, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.parametrize(
    "method", [name if name == IN_THE_TEST_SUITE else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_every_method_on_another_device(method: str, flags_for: Flags, tmp_path: Path) -> None:
    job = run(str(TESTS / "foreign.py"), *flags_for(method, 2 if method == IN_THE_TEST_SUITE else 1), "--run_name", "mine")
    assert job.returncode == 0, job.stderr[-3000:]
    assert (tmp_path / "runs" / "mine" / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if get_method(name).STATE])
def test_a_killed_run_goes_on_there(method: str, flags_for: Flags, tmp_path: Path) -> None:
    killed = tmp_path / "runs" / "killed"
    assert run("-c", DIES, *flags_for(method, 2), "--run_name", "killed").returncode == 9
    assert not (killed / "result.json").exists()
    job = run(str(TESTS / "foreign.py"), "--resume", str(killed))
    assert job.returncode == 0, job.stderr[-3000:]
    assert (killed / "result.json").is_file()


def test_a_tensor_left_on_the_cpu_ends_the_run(flags_for: Flags) -> None:
    job = run("-c", PLANTED, *flags_for("free"))
    assert job.returncode != 0
    assert "Expected all tensors to be on the same device, but found foreign:0 and cpu" in job.stderr
