"""Two processes on one job give what one process gives."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import main
import pretrain
from methods import METHODS, get_method, methods_of
from methods.inversion.pseudo_batch import PseudoBatch
from methods.metalearners import readout
from utils import checkpoint, distributed

ROOT = Path(__file__).resolve().parents[1]
Flags = Callable[..., list[str]]


def in_float64() -> str:
    """A program that does what this process does."""
    return f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
torch.set_default_dtype(torch.float64)
from methods.metalearners import readout
readout.PROBES = {readout.PROBES}  # as in this process
import main
main.main(sys.argv[1:])
"""


def torchrun(argv: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *argv]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def tensors_of(state: Any, where: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of floating-point numbers in nested lists and dictionaries, by the way that leads there."""
    if isinstance(state, torch.Tensor):
        return {where: state} if state.is_floating_point() else {}
    inside = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {name: tensor for key, part in inside for name, tensor in tensors_of(part, f"{where}/{key}").items()}


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", METHODS)
def test_the_same_numbers_as_one_process(method: str, flags_for: Flags, tmp_path: Path) -> None:
    flags = flags_for(method, 3)
    if method in methods_of("few_shot"):
        flags += ["--episode_batch", "3"]
    if "--ZO" in flags:
        flags.remove("--ZO")  # black boxes are asked by one process
    main.main([*flags, "--run_name", "one"])
    (tmp_path / "program.py").write_text(in_float64())
    job = torchrun([str(tmp_path / "program.py"), *flags, "--out", str(tmp_path / "shared"), "--run_name", "two"])
    printed, _ = job.communicate(timeout=600)
    assert job.returncode == 0, printed
    assert printed.count("everything is in") == 1  # one process speaks
    one, two = tmp_path / "runs" / "one", tmp_path / "shared" / "two"
    states = [tensors_of(checkpoint.load(run / "best.pt")) for run in (one, two)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():  # a bias before a normalisation has no gradient but rounding, which Adam scales up
        assert torch.allclose(value, states[1][name], rtol=0, atol=1e-6 if "bias" in name else 1e-9), name
    results = [json.loads((run / "result.json").read_text()) for run in (one, two)]
    assert results[0]["accuracy"].keys() == results[1]["accuracy"].keys()
    assert results[0].get("episodes", {}).keys() == results[1].get("episodes", {}).keys()
    if not get_method(method).TRAINS:
        return
    metrics = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    assert len(metrics[0]) == len(metrics[1]) > 0
    for left, right in zip(*metrics, strict=True):
        for name in left.keys() - {"seconds"}:
            assert left[name] == pytest.approx(right[name], rel=1e-9), name


def test_tensors_are_found_wherever_they_are() -> None:
    inside = PseudoBatch(torch.ones(2), torch.zeros(2), (3, 4))
    found = distributed.moved([(inside, [torch.ones(1)]), "text", 5], torch.device("meta"))
    assert found[0][0].images.is_meta
    assert found[0][0].class_ids == (3, 4)
    assert found[0][1][0].is_meta
    assert found[1:] == ["text", 5]


def test_a_pool_is_shared_out(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar100").symlink_to(data_root / "cifar100")
    flags = "--pretrain_epochs 1 --image_size 16 --way_pretrain 3 --pre_model_num 3 --threads 1 --data_root".split()
    pretrain.main([*flags, str(tmp_path)])
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "cifar100").symlink_to(data_root / "cifar100")
    job = torchrun(["pretrain.py", *flags, str(tmp_path / "two")])
    printed, _ = job.communicate(timeout=600)
    assert job.returncode == 0, printed
    where = "teachers/cifar100/conv4/3way-16px"
    one, two = tmp_path / where, tmp_path / "two" / where
    assert (one / "teachers.csv").read_text() == (two / "teachers.csv").read_text()
    for number in range(3):
        states = [checkpoint.load(pool / f"teacher_{number:03d}.pth")["state_dict"] for pool in (one, two)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job(flags_for: Flags, tmp_path: Path, wait_until: Callable[..., None]) -> None:
    run = tmp_path / "runs" / "mine"
    job = torchrun(["main.py", *flags_for("free"), "--epochs", "100000", "--run_name", "mine"])
    wait_until((run / "last.pt").is_file, lambda: job.poll() is None)
    found = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=False).stdout.split()
    second = max(int(number) for number in found)
    os.kill(second, signal.SIGKILL)
    printed, _ = job.communicate(timeout=600)
    assert job.returncode != 0
    assert "another process of this job is gone" in printed or "--resume" in printed, printed[-2000:]
    kept = checkpoint.load(run / "last.pt")["iteration"]
    main.main(["--resume", str(run), "--epochs", str(kept + 1)])
    assert (run / "result.json").is_file()
