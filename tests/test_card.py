"""What no pretended device can show. `bash scripts/test_card.sh` runs it on a card; `TESTS_ON=cpu` shows that the tests work.

Elsewhere everything here is skipped.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_distributed import in_float64, tensors_of
from torch import Tensor
from tqdm import tqdm

from datasets.episodes import Episodes
from datasets.registry import SPECS
from methods.inversion.zeroth_order import ZerothOrder, estimate_gradient
from methods.metalearners import MAML
from methods.metalearners.gradients import meta_gradient
from methods.teachers.pretraining import Recipe, train_teacher, train_together
from models import create_model
from utils import checkpoint

ROOT = Path(__file__).resolve().parents[1]
ON = os.environ.get("TESTS_ON", "")
MISSING = not ON or ("cuda" in ON and not torch.cuda.is_available())
pytestmark = pytest.mark.skipif(MISSING, reason="for a card: bash scripts/test_card.sh")
Flags = Callable[..., list[str]]
DIES = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import main
from methods.runs.training import Training
save = Training.save
Training.save = lambda self: (save(self), os._exit(9))
main.main(sys.argv[1:])
"""


@pytest.fixture
def card() -> torch.device:
    return torch.device(ON)


def run(*command: str, processes: int = 1, status: int = 0) -> str:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    where = os.environ | ({"CUDA_VISIBLE_DEVICES": "0"} if "cuda" in ON else {})
    done = subprocess.run(
        [sys.executable, *start, *command], cwd=ROOT, env=where, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done.stdout


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("arch", ["conv4", "resnet10"])
def test_teachers_trained_together_are_those_trained_alone(arch: str, card: torch.device) -> None:
    spec, recipe = SPECS["cifar100"], Recipe(epochs=2, batch_size=8, clip=0.5, lr=1e-3)
    torch.manual_seed(0)
    images = [torch.randint(0, 255, (20, 3, 16, 16), dtype=torch.uint8) for _ in range(3)]
    data = [(some.to(card), (torch.arange(20) % 3).to(card)) for some in images]
    held_out = [(some[:6], labels[:6]) for some, labels in data]

    def parts() -> tuple[list, list[torch.Generator]]:
        networks = []
        for number in range(3):
            torch.manual_seed(number)
            networks.append(create_model(arch, 3, 16).to(card))
        return networks, [torch.Generator().manual_seed(number) for number in range(3)]

    with tqdm(disable=True) as bar:
        networks, streams = parts()
        together = train_together(networks, arch, data, held_out, spec, recipe, streams, bar)
        alone = [
            train_teacher(network, arch, some, others, spec, recipe, stream, bar)
            for network, stream, some, others in zip(*parts(), data, held_out, strict=True)
        ]
    for (one, _), (other, _) in zip(together, alone, strict=True):
        for name, value in other.items():
            assert torch.allclose(one[name], value, rtol=1e-7, atol=1e-7), name


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_the_meta_gradient_is_that_of_the_cpu(execution: str, card: torch.device) -> None:
    torch.manual_seed(0)
    network = create_model("conv4", 3, 16, norm="batch")
    support, query = torch.randn(4, 6, 3, 16, 16), torch.randn(4, 6, 3, 16, 16)
    labels = torch.arange(3).repeat_interleave(2).expand(4, 6)

    def gradient(device: torch.device, how: str) -> dict[str, Tensor]:
        there = network.to(device)
        params = {name: value.detach().requires_grad_() for name, value in there.named_parameters()}
        episodes = Episodes(*(part.to(device) for part in (support, labels, query, labels)), way=3)
        return meta_gradient(MAML(there, 0.05, how), params, episodes, 2, False)[0]

    wanted = {name: value.cpu() for name, value in gradient(torch.device("cpu"), "loop").items()}
    for name, value in gradient(card, execution).items():
        assert torch.allclose(value.cpu(), wanted[name], rtol=1e-7, atol=1e-9), name


def test_an_estimated_gradient_points_where_it_should(card: torch.device) -> None:
    """In single precision, as runs have it: rounded products (TF32, bf16) would leave nothing of differences this small."""
    torch.manual_seed(0)
    teacher = create_model("conv4", 3, 16).eval().to(card)
    x, labels = torch.rand(8, 3, 16, 16, device=card, requires_grad=True), torch.arange(8, device=card) % 3

    def losses(images: Tensor) -> Tensor:
        return F.cross_entropy(teacher(images), labels.repeat(len(images) // len(labels)), reduction="none")

    value = losses(x)
    (true,) = torch.autograd.grad(value.sum(), x)
    with torch.no_grad():
        estimate = estimate_gradient(losses, x.detach(), value.detach(), ZerothOrder(1e-3, 200))
    cosine = float(F.cosine_similarity(estimate.flatten(1), true.flatten(1)).mean())
    assert cosine == pytest.approx((200 / 768) ** 0.5, abs=0.15)  # sqrt(q / d) of random directions


@pytest.mark.parametrize("method", ["free", "fast_meta", "chorus", "purer"])
def test_a_killed_run_goes_on_bit_for_bit(method: str, flags_for: Flags, tmp_path: Path) -> None:
    flags = [*flags_for(method, 3), "--no_floors", "--deterministic", "--device", ON]
    run("main.py", *flags, "--run_name", "whole")
    run("-c", DIES, *flags, "--run_name", "killed", status=9)
    killed = tmp_path / "runs" / "killed"
    assert checkpoint.load(killed / "last.pt")["iteration"] == 1
    run("main.py", "--resume", str(killed))
    states = [tensors_of(checkpoint.load(tmp_path / "runs" / name / "last.pt")["method"]) for name in ("whole", "killed")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("method", ["free", "real", "chorus"])
def test_two_processes_on_one_card(method: str, flags_for: Flags, tmp_path: Path) -> None:
    flags = [*flags_for(method, 2), "--no_floors", "--deterministic", "--device", ON]
    (tmp_path / "program.py").write_text(in_float64())
    program = str(tmp_path / "program.py")
    run(program, *flags, "--run_name", "one")
    run(program, *flags, "--out", str(tmp_path / "shared"), "--run_name", "two", processes=2)
    one, two = (tensors_of(checkpoint.load(tmp_path / place / "best.pt")) for place in ("runs/one", "shared/two"))
    for name, value in one.items():
        if "bias" not in name:  # one before a normalisation has no gradient but rounding, which Adam scales up
            assert torch.allclose(value, two[name], rtol=0, atol=1e-7), name
