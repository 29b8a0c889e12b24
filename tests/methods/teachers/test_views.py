from pathlib import Path

import pytest
import torch

from datasets.registry import CIFAR
from methods.services.black_box import ListedService
from methods.services.form import ModelForm
from methods.services.remote import RemoteModel
from methods.services.servers import Asking
from methods.teachers.manifest import TeacherRow
from methods.teachers.pool import TeacherPool
from methods.teachers.views import DIRECTIONS, SHOWN_AT_ONCE, calls_for, in_directions, shown_at_once, widths_of


def pool_of(size: int, listed: ListedService | None = None) -> TeacherPool:
    return TeacherPool(
        [TeacherRow(Path("one"), "conv4", (0, 1), ("a", "b"), size, *CIFAR, "own", listed=listed)], torch.device("cpu")
    )


@pytest.mark.parametrize(("size", "images"), [(32, SHOWN_AT_ONCE), (84, SHOWN_AT_ONCE), (224, 70), (4096, 1)])
def test_large_images_are_shown_a_few_at_a_time(size: int, images: int) -> None:
    pool = pool_of(size)
    assert shown_at_once(pool, 0) == images
    assert calls_for(pool, 0, 3 * images + 1) == 4


def test_a_teacher_of_few_classes_is_told_as_it_is() -> None:
    assert widths_of(pool_of(32), "answers") == [2]
    assert widths_of(pool_of(32), "features") == [DIRECTIONS]
    views = torch.rand(6, 2)
    assert torch.equal(in_directions(views, 2), views)
    assert torch.equal(in_directions(views, 4), torch.cat([views, torch.zeros(6, 2)], 1))


def test_a_wide_one_is_told_along_the_directions_in_which_it_differs_most() -> None:
    """Half whitened: the singular vectors U of what is centred, each as long as the root of its singular value."""
    torch.manual_seed(0)
    common = torch.rand(1, 40)  # what all images have in common is left out
    views = 5 * common + torch.randn(30, 3) @ torch.diag(torch.tensor([8.0, 4.0, 2.0])) @ torch.randn(3, 40)
    views += 1e-3 * torch.randn(30, 40)
    found = in_directions(views, 3).float()
    u, s, _ = torch.linalg.svd((views - views.mean(0)).double(), full_matrices=False)
    wanted = u[:, :3] * (s[:3] / (s[:3] + s[0] / 1000).sqrt())
    wanted = (wanted / wanted.norm(dim=1, keepdim=True)).float()
    assert torch.allclose(found @ found.T, wanted @ wanted.T, atol=0.01)  # half precision, and signs of no meaning


def test_a_server_is_asked_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteModel, "form", ModelForm("m", batch=20))
    service = RemoteModel(Asking(in_flight=3).client("http://nowhere"), ModelForm("m"), 2, 224, None)
    pool = pool_of(224, ListedService(service, "m", ("a", "b"), 224))
    assert shown_at_once(pool, 0) == 60
    assert calls_for(pool, 0, 61) == 4
