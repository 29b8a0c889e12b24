from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from methods.services.meter import Meter
from methods.teachers.inspection import inspect
from methods.teachers.manifest import OWN, TeacherRow
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from models import create_model
from models.foreign import TORCHSCRIPT, Foreign
from utils import checkpoint
from utils.errors import UserError
from utils.images import ImageForm

pytestmark = pytest.mark.usefixtures("float64")
FORM = ImageForm(12, (0.5,) * 3, (0.25,) * 3)


def teacher_of(change: Callable[[Tensor], Tensor] = lambda x: x, end: Callable[[Tensor], Tensor] = lambda x: x) -> Teacher:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return end(self.net(change(x)))

    torch.manual_seed(0)
    return Teacher(Foreign(Net(), 3), ("a", "b", "c"), FORM)


def test_an_honest_teacher_is_trusted_and_nothing_is_drawn() -> None:
    teacher = teacher_of()
    state = torch.get_rng_state()
    assert inspect(teacher, "file").notes == ()
    assert inspect(teacher, "file").invertible
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    "change", [lambda x: x.detach(), lambda x: (255 * x).round() / 255, lambda x: torch.from_numpy(x.numpy().copy())]
)
def test_a_gradient_must_reach_the_pixels(change: Callable[[Tensor], Tensor]) -> None:
    assert not inspect(teacher_of(change), "file").invertible


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"end": lambda x: 0 * x + 5}, "file answers every image alike"),
        ({"end": lambda x: x / 0}, "file: its answers are not finite"),
        ({"end": lambda x: x[:, :2]}, r"file: answered \(8, 2\)"),
        ({"change": lambda x: x.flatten()}, "file fails on images of 12 pixels"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict[str, Callable[[Tensor], Tensor]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        inspect(teacher_of(**change), "file")


def test_a_network_that_takes_no_single_image_is_shown_it_twice() -> None:
    """What `squeeze()` before the head does to a batch of one."""

    def made(change: Callable[[Tensor], Tensor]) -> Teacher:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(change(self.net(x)))

        torch.manual_seed(0)
        return Teacher(Foreign(Net(), 3), ("a", "b", "c"), FORM)

    teacher = made(lambda x: x.squeeze())
    assert inspect(teacher, "file").notes == ("cannot take one image alone: it is shown twice",)
    images = torch.rand(3, 3, 12, 12)
    features, logits = teacher.features_and_logits(images)
    assert torch.allclose(teacher.features_and_logits(images[:1])[0], features[:1])
    assert torch.allclose(teacher(images[:1]), logits[:1])
    with pytest.raises(UserError, match="takes batches of 8 images, and not of 3"):
        inspect(made(lambda x: x.view(8, 4)), "file")
    mixing = made(lambda x: x.flatten(1) - x.flatten(1).mean(0))
    assert "what it answers to an image hangs on the others of its batch" in inspect(mixing, "file").notes
    noisy = teacher_of(end=lambda answer: answer + torch.rand_like(answer))
    assert "what it answers to an image is another thing each time (dropout that is left on?)" in inspect(noisy, "file").notes


def test_what_a_torchscript_file_says_is_held_against_its_list(tmp_path: Path) -> None:
    network, words = create_model("conv4", 3, 16).eval(), {"config.txt": '{"names": {"0": "b", "1": "a", "2": "c"}}'}
    torch.jit.trace(network, torch.rand(1, 3, 16, 16)).save(str(tmp_path / "t.pt"), _extra_files=words)
    row = TeacherRow(tmp_path / "t.pt", TORCHSCRIPT, (0, 1, 2), ("a", "b", "c"), 16, (0.5,) * 3, (0.25,) * 3, OWN)
    with pytest.raises(UserError, match="in the order b, a, c"):
        TeacherPool([row], torch.device("cpu")).check()


def test_a_papers_file_has_its_classes_in_the_order_of_the_list(tmp_path: Path) -> None:
    state = create_model("conv4", 3, 16).state_dict()
    checkpoint.save({"teacher": state, "specific": [3, 1, 2]}, tmp_path / "t.pth")
    row = TeacherRow(tmp_path / "t.pth", "conv4", (1, 2, 3), (), 16, (0.5,) * 3, (0.25,) * 3, "cifar100")
    with pytest.raises(UserError, match="in the order 3, 1, 2; it is listed with 1, 2, 3"):
        TeacherPool([row], torch.device("cpu")).check()
    TeacherPool([replace(row, class_ids=(3, 1, 2))], torch.device("cpu")).check()


def test_torchscript_runs_only_where_it_is_allowed(tmp_path: Path) -> None:
    network = create_model("conv4", 3, 16).eval()
    torch.jit.trace(network, torch.rand(1, 3, 16, 16)).save(str(tmp_path / "t.pt"))
    rows = [
        TeacherRow(tmp_path / "t.pt", arch, (0, 1, 2), ("a", "b", "c"), 16, (0.5,) * 3, (0.25,) * 3, OWN)
        for arch in ("conv4", TORCHSCRIPT)
    ]
    assert (rows[0].code, rows[1].code) == ("", str(tmp_path / "t.pt"))
    with pytest.raises(UserError, match="is a program of TorchScript: save its state_dict"):
        TeacherPool(rows[:1], torch.device("cpu")).check()
    pool = TeacherPool(rows[1:], torch.device("cpu"))
    pool.check()
    images = torch.rand(2, 3, 16, 16)
    assert torch.allclose(pool[0](images), network((images - 0.5) / 0.25), rtol=1e-6)
    assert pool.black_box(0, Meter()).query(images).shape == (2, 3)
