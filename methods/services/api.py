"""What an API lets through: images of floats or of bytes there, whole answers, the best few or a name alone back."""

import argparse
import re
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.services.client import IN_FLIGHT
from utils import cli
from utils.images import to_float, to_uint8

ApiDtype = Literal["float32", "uint8"]
TOP = re.compile(r"top([1-9]\d*)")


@dataclass(frozen=True)
class Api:
    """images: "float32", or "uint8", to which they are rounded. answers: "probabilities", "top<K>" or "label".

    digits: decimals of a probability, where they are limited.
    """

    images: ApiDtype = "float32"
    answers: str = "probabilities"
    digits: int | None = None

    def sent(self, images: Tensor) -> Tensor:
        """Images (..., C, h, w) in [0, 1] as they arrive."""
        return images if self.images == "float32" else to_float(to_uint8(images))

    def heard(self, probabilities: Tensor) -> Tensor:
        """What of the probabilities (B, N) gets out, as probabilities: what is not said is spread evenly over the rest."""
        if self.answers == "label":
            return F.one_hot(probabilities.argmax(1), probabilities.shape[1]).to(probabilities)
        if (top := TOP.fullmatch(self.answers)) and int(top[1]) < probabilities.shape[1]:
            best, places = probabilities.topk(int(top[1]), 1)  # (B, K)
            best = self._rounded(best)
            rest = (1 - best.sum(1, keepdim=True)).clamp(min=0) / (probabilities.shape[1] - best.shape[1])
            return _shares(rest.expand_as(probabilities).scatter(1, places, best))  # rounded up they are more than 1
        return _shares(self._rounded(probabilities)) if self.digits is not None else probabilities

    def _rounded(self, probabilities: Tensor) -> Tensor:
        return probabilities if self.digits is None else probabilities.round(decimals=self.digits)


NO_LIMITS = Api()


def _shares(weights: Tensor) -> Tensor:
    """Weights (B, N) from 0 as shares of 1; even ones where all are 0."""
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp(min=1e-12), 1 / weights.shape[1])


def answers_flag(text: str) -> str:
    """The type of --answers: probabilities, label, or topK."""
    if text not in ("probabilities", "label") and not TOP.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected probabilities, label, or top1, top2, top5, ...")
    return text


def add_api_flags(group: argparse._ArgumentGroup) -> None:
    """What services let through, and how they are asked."""
    group.add_argument(
        "--api_dtype", choices=("float32", "uint8"), default="float32", help="what services take as the values of a pixel"
    )
    group.add_argument(
        "--answers",
        type=answers_flag,
        default="probabilities",
        help="what services are taken to answer: probabilities, top<K> or label",
    )
    group.add_argument("--digits", type=cli.whole(0, 16), help="decimals of their probabilities (default: all)")
    group.add_argument("--in_flight", type=cli.count, default=IN_FLIGHT, help="requests to a server at once")


def api_of(args: argparse.Namespace) -> Api:
    """What an API shows of its answers, by the flags."""
    return Api(args.api_dtype, args.answers, args.digits)
