"""What a classifier of somebody's answers: logits, or something that was made of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from utils.errors import UserError

UNIT = 1e-3  # by which shares may miss 0, 1 and their sum
LOGARITHMS: dict[str, Callable[[Tensor], Tensor]] = {  # of probabilities, and what makes these of them again
    "the logarithms of probabilities with the other sign": lambda answer: (-answer).exp(),
    "logarithms of probabilities to the base of 10": lambda answer: 10**answer,
    "logarithms of probabilities to the base of 2": lambda answer: 2**answer,
}
FAR = 1e3  # times an image: answers that stay between 0 and 1 there as well were squashed


def squash_of(ask: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """What made the answers (B, n) to images x (B, C, H, W), normalised: "softmax", "sigmoid", or "" for logits.

    Raises `UserError`, in a few words that a caller puts the name before, for shares and labels of which no logits come back,
    and for logarithms that are no natural ones.
    """
    answer = ask(x)
    answers = torch.cat([answer, *(ask(factor * x) for factor in (FAR, -FAR))])
    usual = answers[answers.isfinite().all(1)]
    refuse_other_logarithms(answer)
    if answer.shape[1] < 2 or len(usual) < 2 or bool((usual < -UNIT).any()) or bool((usual == usual[0]).all()):
        return ""
    sums = usual.sum(1)
    if bool(((sums - 1).abs() < UNIT).all()):
        if bool(((answer == 0) | (answer == 1)).all()):
            raise UserError("answers only 0 and 1, which is the class it names: take what rounds its answer off")
        return "softmax"
    if bool(((sums - sums[0]).abs() < UNIT * sums[0]).all()):
        raise UserError(f"answers shares that sum to {float(sums[0]):.4g}: take what makes them of the logits off")
    return "sigmoid" if bool((usual <= 1 + UNIT).all()) else ""


def refuse_other_logarithms(answer: Tensor) -> None:
    """Raise `UserError`, as `squash_of` does, where answers (B, n) are logarithms of probabilities that are no natural ones."""
    natural = _sum_to_one(answer.exp())
    for what, back in LOGARITHMS.items():
        if not natural and _sum_to_one(back(answer)) and len(answer.unique(dim=0)) > 1:
            raise UserError(f"answers {what}: let it answer logits, or natural logarithms")


def _sum_to_one(shares: Tensor) -> bool:
    return shares.shape[1] > 1 and bool(((shares.sum(1) - 1).abs() < UNIT).all())


def refuse_sigmoid(squash: str) -> None:
    """Raise `UserError` where answers were squashed each by itself."""
    if squash == "sigmoid":
        raise UserError("answers numbers between 0 and 1 that do not sum to 1: take the sigmoid at its end off")
