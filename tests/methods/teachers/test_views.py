from pathlib import Path

import pytest
import torch

from datasets.registry import CIFAR
from methods.services.black_box import Listed
from methods.services.form import ModelForm
from methods.services.remote import RemoteModel
from methods.services.servers import Asking
from methods.teachers.manifest import TeacherRow
from methods.teachers.pool import TeacherPool
from methods.teachers.views import SHOWN_AT_ONCE, calls_for, shown_at_once


def pool_of(size: int, listed: Listed | None = None) -> TeacherPool:
    return TeacherPool(
        [TeacherRow(Path("one"), "conv4", (0, 1), ("a", "b"), size, *CIFAR, "own", listed=listed)], torch.device("cpu")
    )


@pytest.mark.parametrize(("size", "images"), [(32, SHOWN_AT_ONCE), (84, SHOWN_AT_ONCE), (224, 70), (4096, 1)])
def test_large_images_are_shown_a_few_at_a_time(size: int, images: int) -> None:
    pool = pool_of(size)
    assert shown_at_once(pool, 0) == images
    assert calls_for(pool, 0, 3 * images + 1) == 4


def test_a_server_is_asked_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteModel, "form", ModelForm("m", batch=20))
    service = RemoteModel(Asking(in_flight=3).client("http://nowhere"), ModelForm("m"), 2, 224, None)
    pool = pool_of(224, Listed(service, "m", ("a", "b"), 224))
    assert shown_at_once(pool, 0) == 60
    assert calls_for(pool, 0, 61) == 4
