import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from methods.services.api import Api
from methods.services.black_box import BlackBox, LocalService, services_of
from methods.services.meter import Meter
from methods.teachers.manifest import as_place, read_manifest
from methods.teachers.pool import TeacherPool
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float64")


class Given:
    """A service that answers what it is told to."""

    def __init__(self, answer: object) -> None:
        self.answer, self.seen = answer, torch.empty(0)

    def query(self, images: Tensor) -> Tensor:
        self.seen = images
        return self.answer  # type: ignore[return-value]


def box(answer: object, **settings: object) -> BlackBox:
    return BlackBox(Given(answer), "given", (4, 7), 8, (0.25,) * 3, **({"meter": Meter()} | settings))  # type: ignore[arg-type]


HALVES = torch.full((3, 2), 0.5)


def test_nothing_but_answers_gets_out() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    service = LocalService(network)
    images = torch.rand(2, 3, 2, 2, requires_grad=True)
    answer = service.query(images)
    assert not answer.requires_grad
    assert torch.allclose(answer.sum(1), torch.ones(2), rtol=1e-9)
    assert list(vars(service)) == ["query"]


def test_a_call_that_failed_is_not_counted() -> None:
    meter, service = Meter(), box(HALVES)
    service.meter = meter
    service.service.query = lambda images: 1 / 0  # type: ignore[method-assign,assignment]
    with pytest.raises(UserError, match="fails: ZeroDivisionError: division by zero"):
        service.query(torch.rand(3, 3, 8, 8))
    assert meter.queries == 0


def test_images_are_sent_at_the_service_size_and_in_its_type() -> None:
    service = box(HALVES, api=Api("uint8"))
    images = torch.rand(3, 3, 20, 20)
    service.query(images)
    assert service.service.seen.shape == (3, 3, 8, 8)  # type: ignore[attr-defined]
    levels = 255 * service.service.seen  # type: ignore[attr-defined]
    assert torch.allclose(levels, levels.round(), atol=1e-9)
    assert torch.equal(box(HALVES).as_sent(images), images)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.full((3, 4), 0.25), r"answered \(3, 4\); expected probabilities of shape \(3, 2\)"),
        ("no", "answered str"),
        (torch.tensor([[0.5, 0.5], [float("nan"), 0.5], [0.5, 0.5]]), "no probabilities"),
        (torch.tensor([[0.5, 0.5], [3.0, -2.0], [0.5, 0.5]]), "no probabilities"),
        (torch.full((3, 2), 0.9), "no probabilities"),
    ],
)
def test_answers_that_are_none_are_refused(answer: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        box(answer).query(torch.rand(3, 3, 8, 8))


def test_a_pool_serves_its_teachers_as_black_boxes(data_root: Path) -> None:
    pool = TeacherPool(read_manifest(data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv"), torch.device("cpu"))
    images, meter = torch.rand(2, 3, 16, 16), Meter()
    black = pool.black_box(1, meter)
    assert black.class_ids == pool[1].class_ids
    assert torch.allclose(black.query(images), pool[1](images).softmax(1), rtol=1e-9)


OWN = """
import torch

class Mine:
    class_names, image_size = ["cat", "dog", "emu"], 16

    def query(self, images):
        return torch.softmax(images.mean((2, 3)), 1)

def make():
    return [Mine(), Mine()]

def wrong():
    return [3]
"""


def test_a_users_own_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_services.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    place = f"{tmp_path}/my_services.py:make"
    assert as_place(place) == place
    listed = services_of(place)
    assert [entry.class_names for entry in listed] == [("cat", "dog", "emu")] * 2
    for bad in ("wrong", "missing"):
        with pytest.raises(UserError, match="expected a function that returns a list"):
            services_of(f"{tmp_path}/my_services.py:{bad}")
    faults = ("raise KeyError('x')", "Mine.image_size = 'x'", "Mine.image_size = -3", "Mine.class_names = ['a', 'a ']")
    for fault in faults:
        (tmp_path / "faulty.py").write_text(f"{OWN}\ndef make():\n    {fault}\n    return [Mine()]\n")
        sys.modules.pop("faulty", None)
        with pytest.raises(UserError, match="expected a function that returns a list"):
            services_of(f"{tmp_path}/faulty.py:make")
    with pytest.raises(UserError, match="no_such_module"):
        services_of("no_such_module:make")
