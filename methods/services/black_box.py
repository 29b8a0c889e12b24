"""Teachers of which nothing can be had but their answers: wrapped modules, HTTP services, whatever a user writes."""

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import cli
from utils.code import import_function
from utils.errors import BudgetSpent, UserError
from utils.images import resize, to_float, to_uint8
from utils.precision import full_precision

ApiDtype = Literal["float32", "uint8"]
WAITING = "waiting for services"  # as the report calls it
LEAST_PROBABILITY = 1e-6  # what a service calls impossible counts as this much


class Service(Protocol):
    """All that a black box must offer: probabilities (B, classes) of float images (B, C, h, w) in [0, 1]."""

    def query(self, images: Tensor) -> Tensor: ...


class LocalService:
    """A network on this machine behind the interface of a service: no gradient, parameter or feature gets out."""

    def __init__(self, network: nn.Module) -> None:
        def answer(images: Tensor) -> Tensor:
            with torch.no_grad(), full_precision(images.device):
                return F.softmax(network(images.detach()), 1)

        self.query: Callable[[Tensor], Tensor] = answer


def log_answers(probabilities: Tensor) -> Tensor:
    """Logarithms of a service's answers (..., N), none below that of `LEAST_PROBABILITY`: as good as logits."""
    return probabilities.clamp(min=LEAST_PROBABILITY).log()


def centred_answers(probabilities: Tensor) -> Tensor:
    """Their logarithms (B, N) without their mean: the logits, up to what softmax forgets."""
    logits = log_answers(probabilities)
    return logits - logits.mean(1, keepdim=True)


@dataclass
class Meter:
    """What was asked of services: images shown (`queries`) and calls. `budget` limits queries; `watch` takes the time."""

    budget: int | None = None
    watch: Callable[[str], AbstractContextManager[None]] = lambda purpose: nullcontext()
    queries: int = 0
    calls: int = 0

    @contextmanager
    def charge(self, images: int) -> Iterator[None]:
        """Count a call of the block, once it has succeeded. Raises `BudgetSpent` instead if it would exceed the budget."""
        if self.budget is not None and self.queries + images > self.budget:
            raise BudgetSpent(f"--query_budget {self.budget} is spent: {self.queries} queries were made")
        with self.watch(WAITING):
            yield
        self.queries += images
        self.calls += 1

    def state_dict(self) -> dict[str, int]:
        return {"queries": self.queries, "calls": self.calls}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.queries, self.calls = state["queries"], state["calls"]


class BlackBox:
    """A service as the methods see a teacher. `class_ids` are indices into the pool's classes; answer i is class i of them.

    `std` is the standard deviation of the image set's pixels, as far as it is known. With `dtype` "uint8" images are rounded
    to what 8 bits can say before they are sent (`as_sent`).
    """

    def __init__(
        self,
        service: Service,
        name: str,
        class_ids: Sequence[int],
        image_size: int,
        std: Sequence[float],
        meter: Meter,
        dtype: ApiDtype = "float32",
    ) -> None:
        self.service, self.name = service, name
        self.class_ids, self.image_size, self.std = tuple(class_ids), image_size, tuple(std)
        self.meter, self.dtype = meter, dtype
        self.answers = len(class_ids)  # that the service gives
        self.outputs = list(range(len(class_ids)))  # of them, those that are listened to

    @property
    def way(self) -> int:
        return len(self.class_ids)

    def narrowed(self, way: int) -> "BlackBox":
        """The same service asked about `way` of its classes alone, drawn at random; itself where it has no more."""
        if self.way <= way:
            return self
        twin = copy.copy(self)
        chosen = torch.randperm(self.way)[:way].tolist()
        twin.class_ids = tuple(self.class_ids[i] for i in chosen)
        twin.outputs = [self.outputs[i] for i in chosen]
        return twin

    def as_sent(self, images: Tensor) -> Tensor:
        """Images (..., C, h, w) as the service gets them."""
        return images if self.dtype == "float32" else to_float(to_uint8(images))

    @torch.no_grad()
    def query(self, images: Tensor) -> Tensor:
        """Probabilities (B, way) of images (B, C, H, W) in [0, 1], resized to the service's size.

        Raises `BudgetSpent`, and `UserError` naming the service for an answer that is none.
        """
        with self.meter.charge(len(images)):
            answer = self.service.query(self.as_sent(resize(images.detach(), self.image_size)))
        expected = (len(images), self.answers)
        if not isinstance(answer, Tensor) or tuple(answer.shape) != expected:
            found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise UserError(f"{self.name} answered {found}; expected probabilities of shape {expected}")
        answer = answer.to(images.device, torch.get_default_dtype())
        if not bool(torch.isfinite(answer).all()) or bool(((answer.sum(1) - 1).abs() > 0.01).any() | (answer < -1e-4).any()):
            raise UserError(
                f"{self.name} answered numbers that are no probabilities: they must be finite, from 0, and sum to 1"
            )
        if self.way == self.answers:
            return answer
        heard = answer[:, self.outputs]
        return heard / heard.sum(1, keepdim=True).clamp(min=1e-12)


@dataclass(frozen=True)
class Listed:
    """A service and what it says of itself, as `teachers.csv` says it of a file."""

    service: Service
    name: str
    class_names: tuple[str, ...]
    image_size: int
    dataset: str = "service"
    fingerprint: str = ""  # changes when the model does; empty where nobody knows


def services_of(place: str) -> list[Listed]:
    """The services that a user's `module:function` or `file.py:function` returns.

    The function takes nothing and returns a list of objects with `query(images)`, `class_names` and `image_size`, and if
    they like `name` and `dataset`. Raises `UserError` where that is not so.
    """
    try:
        made = import_function(place)()
        return [
            Listed(
                service,
                getattr(service, "name", f"{place}[{number}]"),
                tuple(map(str, service.class_names)),
                int(service.image_size),
                getattr(service, "dataset", "service"),
            )
            for number, service in enumerate(made)
        ]
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(
            f"--teachers {place}: {error}; expected a function that returns a list of objects with query(images), "
            "class_names and image_size"
        ) from error


def add_black_box_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--query_budget", type=cli.count, help="images that services may be asked about in all (default: any)")
