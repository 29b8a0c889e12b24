import pytest
import torch
import torch.nn.functional as F

from methods.inversion.contrastive import BANK_SIZE, Contrast, info_nce, resized_crop
from models import create_model
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float64")


class Teacher:
    class_ids, way, image_size = (0, 1), 2, 16

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = create_model("conv4", 2, 16).eval().requires_grad_(False)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)


def test_a_stretched_crop_shows_a_part_of_the_image() -> None:
    torch.manual_seed(0)
    assert torch.allclose(resized_crop(torch.full((4, 3, 8, 8), 0.3)), torch.full((4, 3, 8, 8), 0.3), rtol=1e-9)
    ramp = torch.linspace(0, 1, 32).expand(64, 3, 32, 32)
    crops = resized_crop(ramp)
    assert float(crops.min()) >= -1e-9
    assert float(crops.max()) <= 1 + 1e-9
    across = crops[:, 0, 0].amax(1) - crops[:, 0, 0].amin(1)  # how much of the side each crop shows
    assert 0.4 < float(across.min()) < 0.6
    assert float(across.max()) > 0.9
    rising = crops[:, 0, 0, -1] > crops[:, 0, 0, 0]
    assert 0.3 < float(rising.float().mean()) < 0.7  # about half are mirrored


def test_gradients_pass_through_a_crop() -> None:
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    resized_crop(images).sum().backward()
    assert float(images.grad.abs().sum()) > 0


def test_info_nce_by_loops() -> None:
    torch.manual_seed(0)
    queries, keys = F.normalize(torch.randn(5, 7)), F.normalize(torch.randn(5, 7))
    wanted = []
    for i in range(5):
        scores = [float(queries[i] @ keys[j]) / 0.2 for j in range(5)]
        wanted.append(-scores[i] + float(torch.tensor(scores).exp().sum().log()))
    assert torch.allclose(info_nce(queries, keys, 0.2), torch.tensor(wanted), rtol=1e-9)


def test_the_bank_and_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.inversion.contrastive.BANK_SIZE", 10)
    teacher = Teacher()
    contrast = Contrast(teacher, 16, 1e-3, 0.2, torch.device("cpu"))
    images = torch.rand(4, 3, 16, 16, requires_grad=True)
    assert contrast.describe(images).shape == (4, 4 * 32)
    shifted = contrast.describe(images.roll(1, 3))
    first = contrast.loss(images, shifted)
    first.backward()
    assert float(images.grad.abs().sum()) > 0
    before = contrast.head[0].weight.detach().clone()
    contrast.learn()
    assert not torch.equal(contrast.head[0].weight, before)
    for _ in range(3):
        contrast.remember(images)
    assert contrast.bank.shape == (2, 10, 128)  # the oldest have left
    assert float(contrast.loss(images, shifted).detach()) > float(
        first.detach()
    )  # more others to tell apart, and their own term
    other = Contrast(teacher, 16, 1e-3, 0.2, torch.device("cpu"))
    other.load_state_dict(contrast.state_dict())
    assert torch.equal(other.bank, contrast.bank)
    assert BANK_SIZE == 40_960


def test_a_teacher_without_normalisation_is_refused() -> None:
    bare = Teacher()
    bare.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2))
    with pytest.raises(UserError, match="no batch normalisation"):
        Contrast(bare, 16, 1e-3, 0.2, torch.device("cpu"))
