"""PURER beside the figures of its released code: pixel steps, the curriculum, episodes, `--average`, teachers."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.comparison import (
    SIDE,
    WAY,
    Case,
    case_of,
    conv4_teacher,
    fill_learner,
    filled,
    judge,
    normalised_images,
    running_total,
)
from reference.formula import cases, latents
from reference.recipes import rates, two_steps_of_a_teacher
from torch import Tensor

import main
from datasets.episodes import Episodes
from datasets.registry import CIFAR
from methods import purer
from methods.metalearners import get_metalearner
from methods.metalearners.learner import Learner, LearnerSpec
from methods.purer import PURER
from methods.teachers.manifest import TeacherRow
from methods.teachers.pool import TeacherPool
from models import create_model
from utils import checkpoint

pytestmark = pytest.mark.usefixtures("float64")
Patch = pytest.MonkeyPatch
Found = Mapping[str, Any]

CLASSES, PER_CLASS = 14, 3
GROUPS = (range(5), range(5, 10), range(10, 14))  # the teachers' classes
SETTINGS = "--method purer --shot_train 1 --query_train 2 --synthesis_per_class 3 --inner_steps 2 --inner_lr .01 --Glr .25"
TERMS = ("ce", "tv", "bn", "l2")


def places() -> Tensor:
    """Where the images of each class lie among the 42: a teacher's come class after class, again and again; (14, 3)."""
    first, found = 0, []
    for group in GROUPS:
        numbers = torch.arange(first, first + len(group) * PER_CLASS).view(PER_CLASS, len(group))
        found.append(numbers.T)
        first += numbers.numel()
    return torch.cat(found)


def in_their_order(by_class: Tensor) -> Tensor:
    """(14, 3, ...) as the 42 images of the file."""
    flat = torch.empty_like(by_class).flatten(0, 1)
    flat[places().flatten()] = by_class.flatten(0, 1)
    return flat


def teachers() -> TeacherPool:
    """Three teachers, the last with four classes and a spare output that counts."""
    return TeacherPool.of([conv4_teacher(100 * number, group) for number, group in enumerate(GROUPS, start=1)])


def published(folder: Path) -> TeacherPool:
    """The same from files as the released code names them: the last teachers of the 64 classes of CIFAR-FS."""
    rows = []
    for number in range(3):
        path = folder / f"model_{number + 10}.pth"
        checkpoint.save(filled(create_model("conv4", WAY, SIDE), 100 + 100 * number).state_dict(), path)
        rows.append(TeacherRow(path, "conv4", (), (), SIDE, *CIFAR, "cifar100"))
    return TeacherPool(rows, torch.device("cpu"))


def method_of(patch: Patch, *flags: str, pool: TeacherPool | None = None, running: bool = False) -> PURER:
    """PURER with the case's pixels, learner, rolls and episodes; `running`: and with the released code's running total."""
    args = main.parse_args([*SETTINGS.split(), *flags])
    method = PURER(args, teachers() if pool is None else pool, LearnerSpec("conv4", WAY, SIDE, *CIFAR))
    fill_learner(method.learner, 0)
    with torch.no_grad():
        method.pixels.values.copy_(latents(500, CLASSES * PER_CLASS, 3, SIDE, SIDE)[places()])
    drawn = running_total(method.teachers) if running else list(method.teachers)
    patch.setattr(method.teachers, "sample", lambda count: drawn)
    patch.setattr(torch, "randint", lambda *what: torch.tensor([1, -2]))
    patch.setattr(purer, "draw_slots", slots)
    return method


def slots(counts: Tensor, shape: object, episodes: int) -> tuple[Tensor, Tensor]:
    """Episode e has the classes (5j + 2 + e) mod 14, and of each the images (5j + 2 + e) mod 3."""
    drawn = 5 * torch.arange(WAY)[None] + 2 + torch.arange(episodes)[:, None]  # (E, 5)
    images = drawn[:, :PER_CLASS] % PER_CLASS
    return drawn % CLASSES, images[:, None].expand(episodes, WAY, PER_CLASS)


def objective(patch: Patch, tmp_path: Path, number: int, outputs: tuple[str, ...], files: bool = False) -> Found:
    """The terms of one teacher's objective, their gradients and the total."""
    method = method_of(patch, pool=published(tmp_path) if files else None)
    own = slice(5 * PER_CLASS * number, (5 * number + len(GROUPS[number])) * PER_CLASS)
    found: dict[str, Any] = {}
    for name, weights in [("total", method.weights), *[(term, {term: 1.0}) for term in TERMS]]:
        method.weights = weights
        gradient, value = method.pixels.gradient([method.teachers[number].unmasked], method.loss)
        found[name] = value
        found["gradient" if name == "total" else f"gradient_{name}"] = in_their_order(gradient)[own]
    return {name: found[name] for name in outputs}


def of_all_teachers(patch: Patch, tmp_path: Path, running: bool = False) -> Found:
    method = method_of(patch, running=running)
    drawn = method.teachers.sample(3)
    gradient, mean = method.pixels.gradient(drawn, method.loss)
    return {"objective": mean * len(drawn), "gradient": in_their_order(gradient)}


def pixel_steps(patch: Patch, tmp_path: Path, *flags: str, running: bool = False) -> Found:
    """The pixels after one and after three steps of all teachers."""
    method, found = method_of(patch, *flags, running=running), {}
    for step in (1, 2, 3):
        gradient, _ = method.pixels.gradient(method.teachers.sample(3), method.loss)
        method.pixels.step(gradient)
        found[f"after{step}"] = in_their_order(method.pixels.values.detach()).clone()
    return {name: found[name] for name in ("after1", "after3")}


def against_the_learner(patch: Patch, tmp_path: Path, *flags: str) -> Found:
    """What the learner says of one episode, and its gradient on the pixels."""
    method = method_of(patch, *flags)
    loss = method.outer.loss(method.draw(1))
    (gradient,) = torch.autograd.grad(-loss, method.pixels.values)
    return {"outer_loss": loss, "gradient_of_minus_outer_loss": in_their_order(gradient)}


def curriculum_step(patch: Patch, tmp_path: Path, *flags: str, running: bool = False) -> Found:
    """An update of the method with the switch on."""
    method = method_of(patch, "--adv", "--adv_scale", "1", "--no_clamp", "--episode_batch", "4", *flags, running=running)
    method.switch.on = True
    taken, step = [], method.pixels.step
    patch.setattr(method.pixels, "step", lambda gradient: (taken.append(gradient.clone()), step(gradient)))
    method.train_iteration(0)
    return {"gradient": in_their_order(taken[0]), "after1": in_their_order(method.pixels.values.detach())}


def switch(patch: Patch, tmp_path: Path, start: int) -> Found:
    method = method_of(patch, "--adv", "--adv_start", str(start))
    fired = []
    for update, accuracy in enumerate(FIGURES[f"4 gradient switch, adv_start {start}"]["inputs"]["accuracies"], start=1):
        method.switch.note(update, accuracy)
        fired += [update] if method.switch.on else []
    return {"fires_after_updates": fired}


def outer_step(patch: Patch, tmp_path: Path, outputs: tuple[str, ...], *flags: str) -> Found:
    """Four episodes: the mean's gradient and loss times four are the sum's."""
    method = method_of(patch, *flags)
    episodes = method.draw(4)
    losses, accuracies = method.metalearner.outer_loss(method.learner.params, episodes, 2, not method.args.first_order)
    loss, _ = method.outer.step(episodes)
    found = {
        "losses": losses.tolist(),
        "accuracies_percent": (100 * accuracies).tolist(),
        "sum": 4 * loss,
        "gradient": [4 * value.grad for value in method.learner.params.values() if value.grad is not None],
        "learner_after": list(method.learner.params.values()),
    }
    return {name: found[name] for name in outputs}


def average(patch: Patch, tmp_path: Path, outputs: tuple[str, ...]) -> Found:
    args = main.parse_args([*SETTINGS.split(), "--average"])
    params = list(PURER(args, teachers(), LearnerSpec("conv4", WAY, SIDE, *CIFAR)).learner.params.values())
    found = {"parameters": params} | {
        f"parameters.p{place}": [float(value.detach().sum()), float(value.detach().norm())]
        for place, value in enumerate(params)
    }
    return {name: found[name] for name in outputs}


def evaluation(patch: Patch, tmp_path: Path) -> Found:
    learner = fill_learner(Learner(LearnerSpec("conv4", WAY, SIDE, *CIFAR), torch.device("cpu")), 0)
    maml = get_metalearner("maml")(learner.network, 0.1)
    images, labels = normalised_images(530, 15)[None], torch.arange(WAY)[None]
    episode = Episodes(images[:, :5], labels, images[:, 5:], labels.repeat(1, 2), WAY)
    logits, classify = [], maml.classify
    patch.setattr(maml, "classify", lambda *what: (logits.append(found := classify(*what)), found)[1])
    loss, accuracy = maml.outer_loss(learner.params, episode, 10, create_graph=False)
    return {"logits": logits[0], "loss": loss, "accuracy_percent": 100 * accuracy}


ONCE = "Each teacher's loss counts once. The code sums a running total"
MEAN = "The outer loss is the mean over episodes, not the sum"
FROM_CE = ("ce", "total", "gradient", "gradient_ce")
BESIDE_CE = ("tv", "bn", "l2", "gradient_tv", "gradient_bn", "gradient_l2")
BODY = tuple(f"parameters.p{place}" for place in range(16))
HEAD = ("parameters.p16", "parameters.p17")
EPISODES = ("losses", "accuracies_percent", "sum", "gradient")
DISJOINT = ("--num_class_per_task", "5")
CASES = {
    "1a pixel objective, teacher 0": Case("equal", partial(objective, number=0, outputs=FROM_CE + BESIDE_CE)),
    "1c pixel objective, teacher 2": Case("equal", partial(objective, number=2, outputs=FROM_CE, files=True)),
    "1c pixel objective, teacher 2 | a spare output that counts": Case(
        "equal", partial(objective, number=2, outputs=FROM_CE + BESIDE_CE)
    ),
    "1c pixel objective, teacher 2 | beside the cross entropy": Case(
        "equal", partial(objective, number=2, outputs=BESIDE_CE, files=True)
    ),
    "1d objective over all teachers as summed by the main loop": Case("differs", of_all_teachers, ONCE),
    "1d objective over all teachers as summed by the main loop | with their total": Case(
        "equal", partial(of_all_teachers, running=True)
    ),
    "2a pixels after 1 and 3 Adam steps, as released": Case(
        "differs", lambda patch, path: pixel_steps(patch, path, "--no_clamp"), ONCE
    ),
    "2a pixels after 1 and 3 Adam steps, as released | with their total": Case(
        "flag", lambda patch, path: pixel_steps(patch, path, "--no_clamp", running=True), "--no_clamp"
    ),
    "2b the same with every teacher counted once (variant) | the objective": Case("equal", of_all_teachers),
    "2b the same with every teacher counted once (variant)": Case(
        "flag", lambda patch, path: pixel_steps(patch, path, "--no_clamp"), "--no_clamp"
    ),
    "2b the same with every teacher counted once (variant) | clipped": Case(
        "differs", pixel_steps, "Pixels are clipped to the range of an image after each step"
    ),
    "3a curriculum step with the gradient switch on": Case("differs", curriculum_step, ONCE),
    "3a curriculum step with the gradient switch on | with their total": Case(
        "flag", partial(curriculum_step, running=True), "--no_clamp"
    ),
    "3a curriculum step with the gradient switch on | the learner's part": Case("equal", against_the_learner),
    "3b first order curriculum step with the gradient switch on": Case(
        "differs", lambda patch, path: curriculum_step(patch, path, "--approx"), ONCE
    ),
    "3b first order curriculum step with the gradient switch on | with their total": Case(
        "flag", lambda patch, path: curriculum_step(patch, path, "--approx", running=True), "--no_clamp"
    ),
    "3b first order curriculum step with the gradient switch on | the learner's part": Case(
        "equal", lambda patch, path: against_the_learner(patch, path, "--approx")
    ),
    "4 gradient switch, adv_start 1": Case("equal", partial(switch, start=1)),
    "4 gradient switch, adv_start 4": Case("equal", partial(switch, start=4)),
    "5a outer loss and meta-gradient of four episodes": Case("equal", partial(outer_step, outputs=EPISODES)),
    "5a outer loss and meta-gradient of four episodes | Adam": Case(
        "differs", partial(outer_step, outputs=("learner_after",)), MEAN
    ),
    "5b first order outer loss and meta-gradient of four episodes": Case(
        "equal", lambda patch, path: outer_step(patch, path, EPISODES, "--approx")
    ),
    "5b first order outer loss and meta-gradient of four episodes | Adam": Case(
        "differs", lambda patch, path: outer_step(patch, path, ("learner_after",), "--approx"), MEAN
    ),
    "6 --average": Case(
        "differs", partial(average, outputs=BODY), "which registers each block twice, gets (w0 + 2 sum of the others) / n"
    ),
    "6 --average | head": Case("equal", partial(average, outputs=HEAD)),
    "7a two steps of a conv4 teacher": Case("equal", two_steps_of_a_teacher),
    "7b learning rate over epochs, conv4": Case("equal", partial(rates, arch="conv4", flags=DISJOINT)),
    "7b learning rate over epochs, resnet10": Case("equal", partial(rates, arch="resnet10", flags=DISJOINT)),
    "8 evaluation of one episode, MAML": Case("equal", evaluation),
    "9b learner resnet10, batch statistics": Case(
        "nothing", note="its images are those of a case 9 that the file does not have"
    ),
}
FIGURES = cases("purer")


def test_every_case_has_a_row() -> None:
    assert {case_of(row) for row in CASES} == set(FIGURES)


@pytest.mark.parametrize("row", CASES)
def test_as_the_released_code(row: str, tmp_path: Path, monkeypatch: Patch, record_property: Any) -> None:
    outputs = FIGURES[case_of(row)]["outputs"]
    judge(CASES[row], outputs, purer, lambda run: run(monkeypatch, tmp_path), record_property)
