"""PURER-Plus beside the figures of its released code: metalearners, candidates of overlapping classes, the switch."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.comparison import SIDE, WAY, Case, case_of, conv4_teacher, fill_learner, judge, normalised_images, running_total
from reference.formula import cases, latents
from reference.recipes import rates
from torch import Tensor

import main
from datasets.episodes import Episodes
from datasets.registry import CIFAR
from methods import purer
from methods.metalearners import get_metalearner
from methods.metalearners.gradients import meta_gradient
from methods.metalearners.learner import Learner, LearnerSpec
from methods.purer import PURER
from methods.teachers.pool import TeacherPool

pytestmark = pytest.mark.usefixtures("float64")
Patch = pytest.MonkeyPatch
Found = Mapping[str, Any]

CLASSES, PER_CLASS = 14, 3
SETTINGS = "--method purer --candidate_size 3 --shot_train 1 --query_train 2 --synthesis_per_class 3 --Glr .001"
ASCENDING = ((0, 1, 2, 3, 4), (2, 4, 6, 8, 10), (3, 5, 9, 12, 13))
MIXED = ((3, 0, 4, 1, 2), *ASCENDING[1:])
LEFT = (7, 11)  # classes that none of the three knows: a fourth teacher, which is not drawn, brings them into the pool


def method_of(patch: Patch, classes: tuple[tuple[int, ...], ...] = ASCENDING, *flags: str) -> PURER:
    """PURER-Plus with the case's pixels, learner, rolls and episodes, whose first three teachers are drawn."""
    known = [conv4_teacher(100 * number, own) for number, own in enumerate((*classes, LEFT), start=1)]
    args = main.parse_args([*SETTINGS.split(), *flags])
    method = PURER(args, TeacherPool.of(known), LearnerSpec("conv4", WAY, SIDE, *CIFAR))
    fill_learner(method.learner, 0)
    with torch.no_grad():
        method.pixels.values.copy_(latents(500, CLASSES * PER_CLASS, 3, SIDE, SIDE).view_as(method.pixels.values))
    patch.setattr(torch, "randint", lambda *what: torch.tensor([1, -2]))
    patch.setattr(torch, "randperm", torch.arange)
    patch.setattr(purer, "draw_slots", first_slots)
    return method


def first_slots(counts: Tensor, shape: object, episodes: int) -> tuple[Tensor, Tensor]:
    """Classes (5j + 2) mod 14, and of each the images in their order."""
    classes = (5 * torch.arange(WAY) + 2) % CLASSES
    return classes.expand(episodes, WAY), torch.arange(PER_CLASS).expand(episodes, WAY, PER_CLASS)


def flat(by_class: Tensor) -> Tensor:
    return by_class.detach().flatten(0, 1)


def each_teacher(patch: Patch, tmp_path: Path, classes: tuple[tuple[int, ...], ...] = ASCENDING) -> Found:
    method = method_of(patch, classes)
    return {"teacher_losses": [method.pixels.gradient([teacher], method.loss)[1] for teacher in method.teachers.sample(3)]}


def update(patch: Patch, tmp_path: Path, *flags: str, on: bool = False, running: bool = False) -> Found:
    """One update of the method: the gradient that its pixels follow, and where they go.

    `running`: with the released code's running total.
    """
    method = method_of(patch, ASCENDING, *flags)
    if running:
        drawn = running_total(method.teachers.sample(3))
        patch.setattr(method.teachers, "sample", lambda count: drawn)
    method.switch.on = on
    taken, step = [], method.pixels.step
    patch.setattr(method.pixels, "step", lambda gradient: (taken.append(gradient.clone()), step(gradient)))
    method.train_iteration(0)
    return {"gradient": flat(taken[0]), "after1": flat(method.pixels.values)}


def every_teacher_once(patch: Patch, tmp_path: Path) -> Found:
    method = method_of(patch)
    gradient, mean = method.pixels.gradient(method.teachers.sample(3), method.loss)
    return {"objective": 3 * mean, **update(patch, tmp_path)} | {"gradient": flat(gradient)}


def against_the_learner(patch: Patch, tmp_path: Path) -> Found:
    method = method_of(patch, ASCENDING, "--metalearner", "protonet")
    loss = method.outer.loss(method.draw(1))
    (gradient,) = torch.autograd.grad(-loss, method.pixels.values)
    return {"outer_loss": loss, "gradient_of_minus_outer_loss": flat(gradient)}


def switch(patch: Patch, tmp_path: Path) -> Found:
    method, inputs = method_of(patch), FIGURES["4 gradient switch of Plus"]["inputs"]
    fired = []
    for number, accuracy in enumerate(inputs["accuracies"], start=inputs["first_update"]):
        method.switch.note(number, accuracy)
        fired += [number] if method.switch.on else []
    return {"fires_after_updates": fired}


def draws(patch: Patch, tmp_path: Path, output: str) -> Found:
    """How often an update draws teachers."""
    method, counted = method_of(patch, ASCENDING, "--episode_batch", "4"), []
    sample = method.teachers.sample
    patch.setattr(method.teachers, "sample", lambda count: (counted.append(count), sample(count))[1])
    method.train_iteration(0)
    assert set(counted) == {3}
    return {output: len(counted)}


def episode() -> Episodes:
    images, labels = normalised_images(530, 15)[None], torch.arange(WAY)[None]
    return Episodes(images[:, :5], labels, images[:, 5:], labels.repeat(1, 2), WAY)


def one_episode(
    patch: Patch, tmp_path: Path, name: str, steps: int = 2, gradient: bool = True, first_order: bool = False
) -> Found:
    """Logits and accuracy of an episode after the inner loop, and the learner's gradient."""
    learner = fill_learner(Learner(LearnerSpec("conv4", WAY, SIDE, *CIFAR), torch.device("cpu")), 0)
    metalearner = get_metalearner(name)(learner.network, 0.1)
    logits, classify = [], metalearner.classify
    patch.setattr(metalearner, "classify", lambda *what: (logits.append(found := classify(*what)), found)[1])
    if not gradient:
        _, accuracy = metalearner.outer_loss(learner.params, episode(), steps, create_graph=False)
        return {"logits": logits[0], "accuracy_percent": 100 * accuracy}
    slope, loss, accuracy = meta_gradient(metalearner, learner.params, episode(), steps, first_order)
    return {"logits": logits[0], "loss": loss, "accuracy_percent": 100 * accuracy, "gradient": list(slope.values())}


def head_at_the_start(patch: Patch, tmp_path: Path) -> Found:
    method = PURER(main.parse_args(SETTINGS.split()), method_of(patch).teachers, LearnerSpec("conv4", WAY, SIDE, *CIFAR))
    return {"head_bias_filled_with": method.learner.params["head.bias"].abs().max()}


ONCE = "Each teacher's loss counts once. The code sums a running total"
ORDER = "PURER-Plus there pairs a teacher's outputs with its images in the order of the pool's classes, not of the teacher's"
PROTONET = ("--metalearner", "protonet")
CASES = {
    "8 protonet: loss and gradient of one episode": Case("equal", partial(one_episode, name="protonet")),
    "8 anil: loss and gradient of one episode": Case("equal", partial(one_episode, name="anil")),
    "8 maml: loss and gradient of one episode": Case("equal", partial(one_episode, name="maml")),
    "8 maml first order: loss and gradient of one episode": Case("equal", partial(one_episode, name="maml", first_order=True)),
    "9a classes of each teacher in ascending order": Case("equal", each_teacher),
    "9a classes of each teacher in ascending order | the update": Case("differs", update, ONCE),
    "9a classes of each teacher in ascending order | with their total": Case("equal", partial(update, running=True)),
    "9b first teacher's classes in order 3,0,4,1,2": Case("differs", partial(each_teacher, classes=MIXED), ORDER),
    "9c ascending order, every teacher once (variant)": Case("equal", every_teacher_once),
    "9d with the gradient switch on, ProtoNet": Case("equal", against_the_learner),
    "9d with the gradient switch on, ProtoNet | the update": Case(
        "differs", lambda patch, path: update(patch, path, *PROTONET, on=True), ONCE
    ),
    "9d with the gradient switch on, ProtoNet | with their total": Case(
        "equal", lambda patch, path: update(patch, path, *PROTONET, on=True, running=True)
    ),
    "4 gradient switch of Plus": Case("equal", switch),
    "10 candidate sampling (description)": Case("equal", partial(draws, output="draws_used")),
    "10 candidate sampling (description) | drawn": Case(
        "differs",
        partial(draws, output="draws_per_update"),
        "draws four sets of candidate teachers an update and uses the first",
    ),
    "11 evaluation of one episode, protonet": Case("equal", partial(one_episode, name="protonet", steps=10, gradient=False)),
    "11 evaluation of one episode, maml": Case("equal", partial(one_episode, name="maml", steps=10, gradient=False)),
    "12 head bias at the start": Case("differs", head_at_the_start, "its head's bias starts at 0"),
    "7b learning rate of pretraining over epochs, conv4": Case("equal", partial(rates, arch="conv4")),
    "7b learning rate of pretraining over epochs, resnet10": Case("equal", partial(rates, arch="resnet10")),
}
FIGURES = cases("purer_plus")


def test_every_case_has_a_row() -> None:
    assert {case_of(row) for row in CASES} == set(FIGURES)


@pytest.mark.parametrize("row", CASES)
def test_as_the_released_code(row: str, tmp_path: Path, monkeypatch: Patch, record_property: Any) -> None:
    outputs = FIGURES[case_of(row)]["outputs"]
    judge(CASES[row], outputs, purer, lambda run: run(monkeypatch, tmp_path), record_property)
