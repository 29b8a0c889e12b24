"""How a row of a paper's table is judged: our code on the formula's inputs beside what the released code gave."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from reference.formula import error, fill, value
from torch import Tensor, nn

from datasets.registry import CIFAR
from methods.metalearners.learner import Learner
from methods.teachers.teacher import Teacher
from models import create_model
from utils.images import ImageForm

Verdict = Literal["equal", "flag", "differs", "nothing"]
Run = Callable[..., Mapping[str, Any]]  # run(monkeypatch, tmp_path) -> our outputs, by the names of the file
SIDE, WAY = 32, 5
ACCURACY, ESTIMATE = 1e-6, 1e-7


@dataclass(frozen=True)
class Case:
    """A row: what is claimed of every output that `run` gives.

    equal: the same as the released code's; flag: so with the flag that `note` names; differs: another number on purpose, for
    which the phrase `note` stands in the docstring of the method's module, or in `told`; nothing: there is nothing to compare,
    and `note` says why.
    """

    verdict: Verdict
    run: Run | None = None
    note: str = ""
    told: str | None = None
    tolerance: float = 1e-9


def case_of(row: str) -> str:
    """The case of the file that a row belongs to: rows of one case are told apart behind a bar."""
    return row.split(" | ")[0]


def rows(cases: Iterable[str], slow: Collection[str] = ()) -> list[Any]:
    """The rows for `parametrize`; those that take seconds, and repeat what others show, are run by scripts/test_slow.sh."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in cases]


def judge(
    case: Case, outputs: Mapping[str, Any], module: ModuleType, run: Callable[[Run], Mapping[str, Any]], record: Any
) -> None:
    """Assert what the row claims, once the largest error is recorded. `module` is the method's."""
    if case.run is None:
        assert case.verdict == "nothing"
        assert case.note
        pytest.skip(case.note)
    errors = errors_of(run(case.run), outputs)
    hold(case, errors, {name: tolerance_of(name, case.tolerance) for name in errors}, module, record)


def hold(case: Case, errors: Mapping[str, float], tolerances: Mapping[str, float], module: ModuleType, record: Any) -> None:
    """Hold the errors of a row's outputs against its verdict."""
    assert errors
    record("error", max(errors.values()))
    beyond = {name: found for name, found in errors.items() if not found <= tolerances[name]}
    if case.verdict in ("equal", "flag"):
        assert not beyond, errors
    else:
        assert case.verdict == "differs"
        assert beyond.keys() == errors.keys(), "equal by now"
        assert case.note
        assert " ".join(case.note.split()) in " ".join((case.told or module.__doc__ or "").split())


def tolerance_of(name: str, given: float) -> float:
    if name == "estimate":
        return ESTIMATE
    return ACCURACY if "accurac" in name else given


def errors_of(found: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, float]:
    """Relative error of each output; `a.b` is the part b of the output a."""
    errors = {}
    for name, own in found.items():
        wanted: Any = outputs
        for part in name.split("."):
            wanted = wanted[part]
        errors[name] = (
            error_by_parameter(own, wanted) if isinstance(wanted, Mapping) and "all" in wanted else plain(own, wanted)
        )
    return errors


def plain(own: Any, wanted: Any) -> float:
    if isinstance(wanted, str):
        return 0.0 if own == wanted else math.inf
    return error(own.detach() if isinstance(own, Tensor) else own, wanted)


def error_by_parameter(own: list[Tensor], wanted: Mapping[str, Any]) -> float:
    """Of all parameters together, and of sum and norm of each in units of the whole norm."""
    whole = wanted["all"]["norm"]
    apart = [error(own, wanted["all"])]
    for place, tensor in enumerate(own):
        total, norm = wanted[f"p{place}"]
        apart.append(abs(float(tensor.detach().sum()) - total) / (whole * math.sqrt(tensor.numel())))
        apart.append(abs(float(tensor.detach().norm()) - norm) / whole)
    assert len(wanted) == 1 + len(own)
    return max(apart)


FORM = ImageForm(SIDE, *CIFAR)


def filled(network: nn.Module, offset: int) -> nn.Module:
    """`network` with parameters "k from `offset`" as these pages count them."""
    return fill(network, offset, statistics=50)


@torch.no_grad()
def fill_learner(learner: Learner, offset: int) -> Learner:
    """The learner with parameters "k from `offset`"."""
    for name, own in filled(learner.network, offset).named_parameters():
        learner.params[name].copy_(own)
    return learner


def conv4_teacher(offset: int, class_ids: tuple[int, ...] | range = range(WAY), form: ImageForm = FORM) -> Teacher:
    """A conv4 of five outputs that all count, of classes that are named by their numbers."""
    network = filled(create_model("conv4", WAY, SIDE), offset)
    names = [f"class {number:02d}" for number in class_ids]
    return Teacher(network, names, form, outputs=range(WAY), arch="conv4")


def running_total(teachers: Iterable[Teacher]) -> list[Teacher]:
    """The teachers as the loops of PURER count them: the first of n comes n times, the last once."""
    known = list(teachers)
    return [teacher for place, teacher in enumerate(known) for _ in known[place:]]


def normalised_images(k: int, count: int) -> Tensor:
    """Images (count, 3, 32, 32) of the formula, normalised by the CIFAR mean and std."""
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in CIFAR)
    return ((0.5 + 0.5 * value(k, count * 3 * SIDE**2, 1.0)).view(count, 3, SIDE, SIDE) - mean) / std
