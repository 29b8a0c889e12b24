"""What a support set says of itself: temperatures, expected errors, and when a query is of no class shown."""

import math

import pytest
import torch

from methods.metalearners import get_metalearner
from methods.metalearners.calibration import (
    calibration_error,
    folds,
    held_out,
    least_logit,
    temperature_for,
)
from models import create_model

pytestmark = pytest.mark.usefixtures("float64")


def test_a_fold_has_at_most_one_image_of_a_class_and_each_is_held_out_once() -> None:
    labels = torch.tensor([1, 0, 0, 1, 0, 2])  # the third class has a single image, which the others could not name
    masks = [mask.tolist() for mask in folds(labels)]
    assert masks == [
        [True, True, False, False, False, False],
        [False, False, True, True, False, False],
        [False, False, False, False, True, False],
    ]
    assert list(folds(torch.tensor([0, 1, 2]))) == []


@pytest.mark.parametrize("name", ["protonet", "ncm", "maml"])
def test_an_image_is_classified_by_the_others_alone(name: str) -> None:
    torch.manual_seed(0)
    network = create_model("conv4", 2, 16, norm="batch")
    params = {key: value.detach() for key, value in network.named_parameters()}
    metalearner = get_metalearner(name)(network, 0.1, inductive=True)
    support, labels = torch.rand(6, 3, 16, 16), torch.tensor([0, 0, 0, 1, 1, 1])
    logits, own = held_out(metalearner, params, support, labels, 2, 2)
    assert own.tolist() == [0, 1] * 3
    rest = torch.tensor([1, 2, 4, 5])
    fast = metalearner.adapt(params, support[rest], labels[rest], 2, create_graph=False)
    wanted = metalearner.classify(fast, support[rest], labels[rest], support[[0, 3]], 2)
    assert torch.allclose(logits[:2], wanted, rtol=0, atol=1e-9)
    assert [len(part) for part in held_out(metalearner, params, support[:1], labels[:1], 2, 2)] == [0, 0]


def test_the_temperature_that_made_the_labels_is_found() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(20_000, 5)
    for wanted in (0.5, 1.0, 4.0):
        labels = torch.distributions.Categorical(logits=logits / wanted).sample()
        assert abs(math.log(temperature_for(logits, labels) / wanted)) < 0.1  # two steps of the grid are .115


def test_few_images_move_a_temperature_a_little_and_none_not_at_all() -> None:
    sure = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    right, wrong = torch.tensor([0, 1]), torch.tensor([1, 0])
    assert temperature_for(sure[:0], right[:0]) == pytest.approx(1.0)
    assert 0.7 < temperature_for(sure, right) <= 1.0
    assert 1.5 < temperature_for(sure, wrong) < 20.0


def test_expected_errors_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 1, 1])
    assert calibration_error(probabilities, labels) == pytest.approx((abs(1 - 1.8) + abs(2 - 1.4)) / 4)
    assert calibration_error(torch.tensor([[1.0, 0.0]]), torch.tensor([0])) == 0.0


def test_the_least_logit_refuses_the_share_that_was_asked_for() -> None:
    logits = torch.stack([torch.arange(100.0), torch.full((100,), -1.0)], 1)
    labels = torch.zeros(100, dtype=torch.long)
    assert int((logits[:, 0] < least_logit(logits, labels, 0.1)).sum()) == 10
    assert least_logit(logits[:0], labels[:0], 0.1) == -math.inf
