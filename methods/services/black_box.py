"""Teachers of which nothing can be had but their answers: wrapped modules, HTTP services, whatever a user writes."""

import argparse
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.services.api import NO_LIMITS, Api
from methods.services.meter import Meter
from utils import cli
from utils.code import contained, import_function
from utils.errors import BudgetSpent, UserError, in_words
from utils.images import resize
from utils.names import different_classes
from utils.precision import full_precision

LEAST_PROBABILITY = 1e-6  # what a service calls impossible counts as this much


class Service(Protocol):
    """All that a black box must offer: probabilities (B, classes) of float images (B, C, h, w) in [0, 1]."""

    def query(self, images: Tensor) -> Tensor: ...


class RemoteService(ABC):
    """A service behind HTTP, which says itself what it sends: its requests may have to be repeated."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Images of a request."""

    @property
    @abstractmethod
    def at_once(self) -> int:
        """Images that are best asked together."""

    @property
    @abstractmethod
    def takes_bytes(self) -> bool:
        """Whether pixels are rounded to 8 bits before they are sent."""

    @property
    @abstractmethod
    def asked_as(self) -> dict[str, Any]:
        """How images go there and answers come back, as far as its list says."""

    @abstractmethod
    def ask(self, images: Tensor, meter: Meter) -> Tensor:
        """What `query` of a `Service` gives; every request is charged to the meter before it is sent."""

    @abstractmethod
    def contact(self) -> str:
        """See that it is there, and say how it is asked. Raises `UserError` within seconds where it is not."""


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


def check_probabilities(answers: Tensor) -> None:
    """Raise `ValueError` where the rows of answers (B, N) cannot be probabilities."""
    sums = answers.sum(1)
    if not bool(torch.isfinite(answers).all()) or bool(((sums - 1).abs() > 0.01).any() | (answers < -1e-4).any()):
        raise ValueError("numbers that are no probabilities: they must be finite, from 0, and sum to 1")


def centred_answers(probabilities: Tensor) -> Tensor:
    """Their logarithms (B, N) without their mean: the logits, up to what softmax forgets."""
    logits = log_answers(probabilities)
    return logits - logits.mean(1, keepdim=True)


class BlackBox:
    """A service as the methods see a teacher. `class_ids` are indices into the pool's classes; answer i is class i of them.

    `std` is the standard deviation of the image set's pixels, as far as it is known; `api` what gets there and back.
    """

    def __init__(
        self,
        service: Service | RemoteService,
        name: str,
        class_ids: Sequence[int],
        image_size: int,
        std: Sequence[float],
        meter: Meter,
        api: Api = NO_LIMITS,
    ) -> None:
        self.service, self.name = service, name
        self.class_ids, self.image_size, self.std = tuple(class_ids), image_size, tuple(std)
        self.meter, self.api = meter, api
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
        return self.api.sent(images)

    @torch.no_grad()
    def query(self, images: Tensor) -> Tensor:
        """Probabilities (B, way) of images (B, C, H, W) in [0, 1], resized to the service's size.

        Raises `BudgetSpent`, and `UserError` naming the service for an answer that is none.
        """
        shown, service = self.as_sent(resize(images.detach(), self.image_size)), self.service
        if isinstance(service, RemoteService):
            with self.meter.charge(len(images), -(-len(images) // service.batch)):
                answer = service.ask(shown, self.meter)
        else:
            with self.meter.charge(len(images), waits=not isinstance(service, LocalService)):
                answer = self._asked(service, shown)
        expected = (len(images), self.answers)
        if not isinstance(answer, Tensor) or tuple(answer.shape) != expected:
            found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise UserError(f"{self.name} answered {found}; expected probabilities of shape {expected}")
        answer = answer.to(images.device, torch.get_default_dtype())
        try:
            check_probabilities(answer)
        except ValueError as error:
            raise UserError(f"{self.name} answered {error}") from error
        heard = self.api.heard(answer)
        if self.way == self.answers:
            return heard
        heard = heard[:, self.outputs]
        return heard / heard.sum(1, keepdim=True).clamp(min=1e-12)

    def _asked(self, service: Service, shown: Tensor) -> Any:
        try:
            return service.query(shown)
        except (UserError, BudgetSpent, OSError):
            raise
        except Exception as error:  # somebody's code may raise anything
            raise UserError(f"{self.name} fails: {in_words(error)}") from error


@dataclass(frozen=True)
class ListedService:
    """A service and what it says of itself, as `teachers.csv` says it of a file."""

    service: Service | RemoteService
    name: str
    class_names: tuple[str, ...]
    image_size: int
    dataset: str = "service"
    known_as: str = ""  # what the file or the list says of the model's version

    @property
    def fingerprint(self) -> str:
        """What changes when the model does; empty where nobody knows."""
        return self.known_as or getattr(self.service, "fingerprint", "")


def services_of(place: str) -> list[ListedService]:
    """The services that a user's `module:function` or `file.py:function` returns.

    The function takes nothing and returns a list of objects with `query(images)`, `class_names` and `image_size`, and if
    they like `name` and `dataset`. Raises `UserError` where that is not so.
    """
    try:
        make = import_function(place)
        with contained():
            made = make()
        return [
            ListedService(
                service,
                getattr(service, "name", f"{place}[{number}]"),
                different_classes(map(str, service.class_names), place),
                cli.pixels(str(service.image_size)),
                getattr(service, "dataset", "service"),
            )
            for number, service in enumerate(made)
        ]
    except Exception as error:  # somebody's code may raise anything
        raise UserError(
            f"--teachers {place}: {in_words(error)}; expected a function that returns a list of objects with query(images), "
            "class_names and image_size"
        ) from error


def add_black_box_flags(group: argparse._ArgumentGroup) -> None:
    """For methods that ask: what it may cost."""
    group.add_argument("--query_budget", type=cli.count, help="images that services may be asked about in all (default: any)")
    group.add_argument(
        "--price_per_1000", type=cli.number(0), help="price of 1,000 images, for the result to say what was spent"
    )
