import argparse

import pytest
import torch

from methods.services.api import Api, answers_flag

pytestmark = pytest.mark.usefixtures("float64")

FULL = [[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]]


@pytest.mark.parametrize(
    ("api", "heard"),
    [
        (Api(), FULL),
        (Api(answers="label"), [[1, 0, 0, 0], [0, 0, 0, 1]]),
        (Api(answers="top1"), [[0.5, 0.5 / 3, 0.5 / 3, 0.5 / 3], [0.2, 0.2, 0.2, 0.4]]),
        (Api(answers="top2"), [[0.5, 0.3, 0.1, 0.1], [0.15, 0.15, 0.3, 0.4]]),
        (Api(answers="top4"), FULL),
        (Api(answers="top5"), FULL),
        (Api(digits=2), FULL),
        (Api(digits=0), [[0.25] * 4, [0.25] * 4]),
    ],
)
def test_what_is_not_said_is_spread_evenly(api: Api, heard: list[list[float]]) -> None:
    found = api.heard(torch.tensor(FULL))
    assert torch.allclose(found, torch.tensor(heard, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.sum(1), torch.ones(2), rtol=1e-12)


def test_few_decimals_are_shares_again() -> None:
    found = Api(digits=1).heard(torch.tensor([[0.62, 0.27, 0.08, 0.03]]))
    assert torch.allclose(found, torch.tensor([[6.0, 3.0, 1.0, 0.0]]) / 10, atol=1e-12)


def test_the_best_few_rounded_up_are_shares_again() -> None:
    found = Api(answers="top3", digits=1).heard(torch.tensor([[0.36, 0.36, 0.26, 0.02]]))
    assert torch.allclose(found, torch.tensor([[4.0, 4.0, 3.0, 0.0]]) / 11, atol=1e-12)


@pytest.mark.parametrize("text", ["top0", "top", "labels", "", "5"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="top1"):
        answers_flag(text)
