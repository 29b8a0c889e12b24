"""Teachers of one kind, inverted in one mapped computation instead of many small ones, which leave a GPU idle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn

from methods.inversion.pseudo_batch import Invertible

SHARED = {"network", "class_ids", "way", "image_size"}  # of teachers of one kind; a network is there to be recorded
State = tuple[dict[str, Tensor], dict[str, Tensor]]  # parameters and buffers


def mapped(module: nn.Module, state: State, inputs: Tensor) -> Tensor:
    """What several modules like `module` compute, each from inputs of its own: state and inputs carry a leading dimension."""
    return torch.func.vmap(lambda own, x: torch.func.functional_call(module, own, (x,)))(state, inputs)


class Stack:
    """K teachers of one kind, each looking at images of its own. Their random numbers come from one stream."""

    def __init__(self, teachers: Sequence[Invertible]) -> None:
        self.first = teachers[0]
        self.state = torch.func.stack_module_state(cast(list[nn.Module], list(teachers)))

    def losses(self, loss: Callable[[Invertible, Tensor], Tensor], images: Tensor) -> Tensor:
        """`loss(teacher, x)` for each teacher and its part x of `images` (K, B, C, h, w): (K,)."""
        one = torch.func.vmap(lambda state, x: loss(_Member(self.first, state), x), randomness="different")
        return one(self.state, images)


@dataclass(frozen=True)
class _Member:
    """One of the stacked teachers, inside the mapped function: the first one's module under its own numbers."""

    first: Invertible
    state: Any

    def __call__(self, images: Tensor) -> Tensor:
        return torch.func.functional_call(cast(nn.Module, self.first), self.state, (images,))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        own = tuple({f"teacher.{name}": value for name, value in part.items()} for part in self.state)
        return torch.func.functional_call(_Looking(self.first), own, (images,))

    def __getattr__(self, name: str) -> Any:
        if name not in SHARED:  # it would compute with the first one's numbers
            raise AttributeError(f"{name} of stacked teachers: write it here, under each one's own numbers")
        return getattr(self.first, name)


class _Looking(nn.Module):
    """A teacher's features beside its answer, as a module of its own."""

    def __init__(self, teacher: Invertible) -> None:
        super().__init__()
        self.teacher = cast(nn.Module, teacher)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return cast(Invertible, self.teacher).features_and_logits(images)


def alike(teachers: Sequence[Invertible], at_once: int) -> list[list[int]]:
    """Places of `teachers` that are computed together: those of one kind, at most `at_once` of them."""
    if at_once == 1:
        return [[place] for place in range(len(teachers))]
    order = sorted(range(len(teachers)), key=lambda place: (repr(teachers[place].kind), place))
    groups = [list(group) for _, group in groupby(order, key=lambda place: repr(teachers[place].kind))]
    return [group[first : first + at_once] for group in groups for first in range(0, len(group), at_once)]
