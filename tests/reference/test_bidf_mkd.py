"""BiDf-MKD beside the figures of its released code: inversion of services, bi-level distillation, memory, counters."""

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.comparison import (
    ESTIMATE,
    SIDE,
    WAY,
    Case,
    case_of,
    conv4_teacher,
    fill_learner,
    filled,
    judge,
    normalised_images,
)
from reference.formula import cases, images, latents, value
from reference.recipes import rates
from torch import Tensor

import main
from datasets.episodes import Episodes
from datasets.registry import CIFAR
from methods import bidf_mkd
from methods.bidf_mkd import BiDfMKD
from methods.distillation.divergences import kl_divergence
from methods.inversion import by_generator, terms, zeroth_order
from methods.inversion.pseudo_batch import PseudoBatch
from methods.inversion.terms import adversarial_loss, adversarial_terms, inversion_loss
from methods.memory.bank import MemoryBank
from methods.metalearners.learner import LearnerSpec
from methods.teachers.pool import TeacherPool
from models.generator import Generator
from utils.images import ImageForm

pytestmark = pytest.mark.usefixtures("float64")
Patch = pytest.MonkeyPatch
Found = Mapping[str, Any]
Names = tuple[str, ...]

COUNT = 10  # images, of five classes in turn
PLAIN = ((0.5,) * 3, (0.25,) * 3)
ZEROTH = ("--ZO", "--mu", "0.005", "--q", "6", "--numsplit", "3")
LABELS = torch.arange(WAY).repeat(COUNT // WAY)


def method_of(*flags: str, learner: int = 0, form: tuple[Any, Any] = CIFAR) -> BiDfMKD:
    """BiDf-MKD with one teacher, k from 100; its images are neither cropped nor mirrored."""
    pool = TeacherPool.of([conv4_teacher(100, form=ImageForm(SIDE, *form))])
    pool.augmentation = lambda some: some  # type: ignore[assignment]
    args = main.parse_args(["--method", "bidf_mkd", "--query_train", "2", "--inner_steps", "2", *flags])
    method = BiDfMKD(args, pool, LearnerSpec("conv4", WAY, SIDE, *form))
    fill_learner(method.learner, learner)
    return method


def own_params(method: BiDfMKD) -> dict[str, Tensor]:
    return {name: own.detach() for name, own in method.learner.params.items()}


def generator() -> Generator:
    made = Generator(SIDE)
    filled(made, 400)
    return made


def fix_directions(patch: Patch) -> None:
    """Directions j = 0, 1 of part k are the rows of value(700 + k, ...), in the order in which they are asked for."""

    def directions() -> Iterator[Tensor]:
        part = 0
        while True:
            yield from value(700 + part, 2 * COUNT * 3 * SIDE**2, 1.0).view(2, COUNT, 3, SIDE, SIDE)
            part += 1

    given = directions()
    patch.setattr(torch.Tensor, "normal_", lambda own: own.copy_(next(given)))


def watched(patch: Patch, owner: Any, name: str) -> list[tuple[tuple[Any, ...], Any]]:
    """What a function of `owner` is asked and answers from now on."""
    seen: list[tuple[tuple[Any, ...], Any]] = []
    function = getattr(owner, name)

    def asked(*what: Any, **more: Any) -> Any:
        found = function(*what, **more)
        seen.append((what, found))
        return found

    patch.setattr(owner, name, asked)
    return seen


def estimated(patch: Patch, tmp_path: Path, outputs: Names, adv: int, form: tuple[Any, Any]) -> Found:
    found = estimate(adv, form)
    return {name: found[name] for name in outputs}


@cache
def estimate(adv: int, form: tuple[Any, Any]) -> Found:
    """What the loss of a service is at the generator's images, and the gradient that is estimated of it."""
    with Patch.context() as patch:
        return _estimate(patch, adv, form)


def _estimate(patch: Patch, adv: int, form: tuple[Any, Any]) -> Found:
    method = method_of(*ZEROTH, "--adv", str(adv), learner=84, form=form)
    x = generator()(latents(600, COUNT, 256)).detach()
    fix_directions(patch)
    estimates, pushed = watched(patch, zeroth_order, "estimate_gradient"), watched(patch, zeroth_order, "adversarial_terms")
    student = partial(method.learner.logits, params=own_params(method)) if adv else None
    loss = method.loss(method.open(0, method.meter), x.clone().requires_grad_(), LABELS, student)
    (((_, _, base, *_), estimate),) = estimates
    _, std = form
    found = {
        "images_normalised": method.teachers[0].form.prepare(x),
        "teacher_logits": method.teachers[0](x),
        "estimate": estimate * torch.tensor(std).view(3, 1, 1),  # of normalised pixels
        "loss_value": loss,
    }
    if adv:
        (_, _, agree), adversarial = pushed[0]
        found |= {"agree": agree.sum(), "student_logits": method.learner.logits(x), "adv_per_image": adversarial}
        base = base - adversarial
    return found | {"ce_per_image": base}


def released_adversary(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL as the released code has it for white boxes: fed with probabilities, the student a constant and the target."""
    agree = (teacher_logits.argmax(1) == student_logits.argmax(1)).to(teacher_logits.dtype)
    t, s = teacher_logits.softmax(1), student_logits.detach().softmax(1)
    return -(F.kl_div(t, s, reduction="none").sum(1) * agree).mean()


def inverted(patch: Patch, tmp_path: Path, outputs: Names, *flags: str, adv: int = 0, form: tuple[Any, Any] = CIFAR) -> Found:
    found = inversion(flags, adv, form)
    return {name: found[name] for name in outputs}


@cache
def inversion(flags: Names, adv: int, form: tuple[Any, Any]) -> Found:
    """An inversion of three steps, and one of a single step."""
    with Patch.context() as patch:
        return _inversion(patch, flags, adv, form)


def _inversion(patch: Patch, flags: Names, adv: int = 0, form: tuple[Any, Any] = CIFAR) -> Found:
    found: dict[str, Any] = {}
    for steps in (3, 1):
        method = method_of(*flags, "--adv", str(adv), "--inversion_steps", str(steps), learner=84, form=form)
        own = generator()
        with patch.context() as inside:
            inside.setattr(bidf_mkd, "fresh", lambda device, own=own: lambda teacher: own)
            inside.setattr(by_generator, "labels_of", lambda *what: LABELS)
            inside.setattr(torch, "randn", lambda *shape, device: latents(600, *shape))
            fix_directions(inside)
            seen, moved = watched(inside, method, "loss"), watched(inside, torch.optim, "Adam")
            batch, _ = method.invert(method.open(0, method.meter), 2, own_params(method) if adv else None)
        if steps == 3:
            found["losses"] = [float(loss.detach()) for _, loss in seen]
            found |= {"images_first": seen[0][0][1], "images_kept_of_3": batch.images}
        else:
            ((_, optimizer),) = moved
            (z,) = optimizer.param_groups[1]["params"]
            found |= {"latents_after1": z, "generator_after1": list(own.parameters())}
    return found


def inverted_by_their_adversary(patch: Patch, tmp_path: Path) -> Found:
    patch.setattr(bidf_mkd, "inversion_loss", partial(inversion_loss, adversary=released_adversary))
    return _inversion(patch, (), adv=1)


def released_distance(teacher_logits: Tensor, student_logits: Tensor, agree: Tensor) -> Tensor:
    """What the released code takes for services: the L1 distance of logits, with the mask as it is at these images."""
    agree = (teacher_logits.argmax(1) == student_logits.argmax(1)).to(teacher_logits.dtype)
    return -(teacher_logits - student_logits.detach()).abs().sum(1) * agree


def estimated_by_their_adversary(patch: Patch, tmp_path: Path) -> Found:
    """The estimate of a service that answers with logits."""
    method = method_of(*ZEROTH, learner=84, form=PLAIN)
    x = generator()(latents(600, COUNT, 256)).detach()
    fix_directions(patch)
    patch.setattr(zeroth_order, "log_answers", lambda answers: answers)
    patch.setattr(zeroth_order, "adversarial_terms", released_distance)
    estimates, pushed = (watched(patch, zeroth_order, name) for name in ("estimate_gradient", "adversarial_terms"))
    service = SimpleNamespace(query=method.teachers[0], as_sent=lambda some: some, std=PLAIN[1])
    student = partial(method.learner.logits, params=own_params(method))
    method.loss(service, x, LABELS, student)  # type: ignore[arg-type]
    return {"adv_per_image": pushed[0][1], "estimate": estimates[0][1] * PLAIN[1][0]}


def released_divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL as the released code has it: fed with probabilities, averaged over all entries."""
    return F.kl_div(student_logits.softmax(1), teacher_logits.softmax(1), reduction="none").mean()


def give_sets(patch: Patch, method: BiDfMKD) -> list[Any]:
    """Inversion gives the case's support and query sets and keeps them; returns whom the borders are with."""
    borders: list[Any] = []

    def invert(teacher: Any, per_class: int, against: Any = None) -> tuple[PseudoBatch, float]:
        batch = PseudoBatch(images(550 + 10 * (len(borders) % 2), COUNT, 3, SIDE, SIDE), LABELS, tuple(range(WAY)))
        method.memory.add(batch)
        borders.append(against)
        return batch, 0.0

    patch.setattr(method, "invert", invert)
    return borders


def distilled(patch: Patch, tmp_path: Path, *flags: str, theirs: bool = False) -> Found:
    """Bi-level distillation from one teacher."""
    if theirs:
        patch.setattr(bidf_mkd, "kl_divergence", released_divergence)
    method = method_of("--inner_update_num_kd", "10", *flags)
    give_sets(patch, method)
    losses = watched(patch, method, "distillation_loss")
    gradient, _, _ = method.learn_from_a_service(0) or pytest.fail("no budget was set")
    *inner, ((_, _, fast), last) = losses
    return {
        "inner_losses": [float(loss.detach()) for _, loss in inner],
        "outer_loss": last,
        "fast_parameters": torch.cat([own.flatten() for own in fast.values()]),
        "gradient": list(gradient.values()),
    }


def outer_step(patch: Patch, tmp_path: Path) -> Found:
    """The update that visits a service, with three episodes of memory beside; the released divergence stands for ours."""
    patch.setattr(bidf_mkd, "kl_divergence", released_divergence)
    method = method_of("--inner_update_num_kd", "10", "--episode_batch", "4")
    give_sets(patch, method)
    drawn = torch.stack([normalised_images(530 + task, 15) for task in (2, 3, 4)])
    support, query = (torch.arange(WAY).repeat(times).expand(3, -1) for times in (1, 2))
    episodes = Episodes(drawn[:, :5], support, drawn[:, 5:], query, WAY)
    patch.setattr(method.replay, "episodes", lambda count: episodes[:count])
    numbers = method.train_iteration(0)
    params = list(method.learner.params.values())
    return {
        "gradient": [own.grad for own in params if own.grad is not None],
        "learner_after": torch.cat([own.flatten() for own in params]),
        "accuracy_percent": 100 * numbers.get("accuracy", math.inf),
    }


def reductions(patch: Patch, tmp_path: Path, outputs: Names) -> Found:
    s, t = (value(k, 50, 2.0).view(COUNT, WAY) for k in (570, 572))
    seen = watched(patch, terms, "adversarial_terms")
    found = {
        "kd_loss": kl_divergence(t, s),
        "kd_batchmean_from_log_probabilities_for_comparison": kl_divergence(t, s),
        "adv_white_box": adversarial_loss(t, s),
    }
    agree = seen[0][0][2]
    found |= {"agree": agree.sum(), "adv_zeroth_order_mean_over_images": adversarial_terms(t, s, agree).mean()}
    return {name: found[name] for name in outputs}


def bank() -> tuple[MemoryBank, list[int]]:
    """Memory of a run with sets of three images a class, for pictures of 8 pixels, and what class 3 has as 25 sets come."""
    capacity = method_of("--num_sup_kd", "3", "--num_qur_kd", "3").memory.images.shape[1]
    memory, counts = MemoryBank(WAY, capacity, 8, torch.device("cpu")), []
    labels = torch.tensor([3, 0, 4, 1, 2]).repeat(3)
    for addition in range(25):
        memory.add(PseudoBatch(images(580 + addition, 15, 3, 8, 8), labels, tuple(range(WAY))))
        counts.append(int(memory.counts[3]))
    return memory, counts


def memory_kept(patch: Patch, tmp_path: Path) -> Found:
    return {
        "images_of_class_3_after_each_addition": bank()[1],
        "with_30_images_an_addition_a_class_keeps": method_of("--num_sup_kd", "30", "--num_qur_kd", "30").memory.images.shape[
            1
        ],
    }


def memory_bytes(patch: Patch, tmp_path: Path) -> Found:
    newest = bank()[0].examples(3).unflatten(0, (WAY, 3))[3].flip(0)  # in the order in which they came
    return {
        "bytes_of_class_3_batch_of_addition_25_sum": int(newest.long().sum()),
        "bytes_first": newest[0].flatten()[:10].tolist(),
    }


def visits(patch: Patch, accuracies: list[float]) -> list[int]:
    """The updates (from 1) that visit a service, where update u has the u-th accuracy, whatever it is of."""
    method, found = method_of("--patience", "5", "--episode_batch", "1"), []
    nothing = {name: torch.zeros_like(own) for name, own in method.learner.params.items()}

    def visit(iteration: int) -> tuple[Any, float, dict[str, float]]:
        found.append(iteration + 1)
        return nothing, accuracies[iteration], {}

    patch.setattr(method, "learn_from_a_service", visit)
    patch.setattr(type(method.replay), "ready", property(lambda replay: True))
    patch.setattr(method.replay, "episodes", lambda count: None)
    for iteration, accuracy in enumerate(accuracies):
        patch.setattr(method.outer, "gradient", lambda episodes, accuracy=accuracy: (nothing, 0.0, accuracy))
        method.train_iteration(iteration)
    return found


def patience(patch: Patch, tmp_path: Path) -> Found:
    return {
        "draws_at_updates": visits(patch, FIGURES["17 patience"]["inputs"]["accuracies"]),
        "draws_at_updates_for_a_constant_accuracy_over_30_updates": visits(patch, [20.0] * 30),
    }


def first_border(patch: Patch, start: int) -> int:
    method = method_of("--inner_update_num_kd", "1", "--first_order", "--advstartit", str(start))
    borders = give_sets(patch, method)
    for iteration in range(6):
        method.learn_from_a_service(iteration)
    assert not any(borders[::2])  # support sets have none
    return next(place for place, against in enumerate(borders[1::2]) if against is not None)


def adversarial_start(patch: Patch, tmp_path: Path) -> Found:
    return {"first_update_from_0_by_advstartit": json.dumps({str(start): first_border(patch, start) for start in (-1, 0, 3)})}


AT_X = ("images_normalised", "teacher_logits", "ce_per_image")
STUDENT = (*AT_X, "agree", "student_logits")
STEP = ("latents_after1", "generator_after1")
INVERSION = ("losses", "images_first", "images_kept_of_3", *STEP)
MOVED = ("losses", "images_kept_of_3", *STEP)
BEST = "The loss whose gradient is estimated is that of each image; the images kept are the best by the true loss."
MU = "`--mu` is multiplied by the image set's mean standard deviation"
DIVERGENCE = (
    "The divergence is averaged over images, from log-probabilities; the code feeds probabilities and averages over entries."
)
ADVERSARY = "`--adv 1` is another strength: without `--ZO` the code feeds probabilities to `F.kl_div`"
BYTES = "Bytes in memory are rounded; the code truncates them"
SLOW, FAST = ("--inner_lr", "0.01"), ("--inner_lr", "1")
FIRST = "--first_order"


def zeroth(case: str, adv: int, form: tuple[Any, Any]) -> dict[str, Case]:
    """The rows of a zeroth-order gradient: what it is taken of, the estimate, the loss."""
    run = partial(estimated, adv=adv, form=form)
    rows = {case: Case("equal", partial(run, outputs=STUDENT if adv else AT_X))}
    if adv:
        rows[f"{case} | adversarial"] = Case("differs", partial(run, outputs=("adv_per_image", "estimate")), ADVERSARY)
        if form is PLAIN:
            rows[f"{case} | with their term"] = Case("equal", estimated_by_their_adversary)
    elif form is PLAIN:
        rows[f"{case} | estimate"] = Case("equal", partial(run, outputs=("estimate",)))
    else:
        rows[f"{case} | estimate"] = Case("differs", partial(run, outputs=("estimate",)), MU)
    rows[f"{case} | loss"] = Case("differs", partial(run, outputs=("loss_value",)), BEST)
    return rows


def distillation(case: str, *flags: str) -> dict[str, Case]:
    """The rows of a bi-level distillation: with our divergence, and with theirs in its place."""
    return {
        case: Case("differs", lambda patch, path: distilled(patch, path, *flags), DIVERGENCE),
        f"{case} | with their divergence": Case("equal", lambda patch, path: distilled(patch, path, *flags, theirs=True)),
    }


def by_estimates(outputs: Names, adv: int = 0, form: tuple[Any, Any] = CIFAR) -> Any:
    return lambda patch, path: inverted(patch, path, outputs, *ZEROTH, adv=adv, form=form)


CASES = {
    **zeroth("12 zeroth-order gradient, CE, plain normalisation, mu 0.005", 0, PLAIN),
    **zeroth("12 zeroth-order gradient, CE + adversarial, plain normalisation, mu 0.005", 1, PLAIN),
    **zeroth("12 zeroth-order gradient, CE, cifar normalisation, mu 0.005", 0, CIFAR),
    **zeroth("12 zeroth-order gradient, CE + adversarial, cifar normalisation, mu 0.005", 1, CIFAR),
    "13 inversion call, white box, CE": Case("equal", partial(inverted, outputs=INVERSION)),
    "13 inversion call, white box, CE + adversarial": Case("differs", partial(inverted, outputs=MOVED, adv=1), ADVERSARY),
    "13 inversion call, white box, CE + adversarial | with their term": Case("equal", inverted_by_their_adversary),
    "13 inversion call, zeroth order, CE": Case("equal", by_estimates(("images_first",))),
    "13 inversion call, zeroth order, CE | step": Case("differs", by_estimates(STEP), MU),
    "13 inversion call, zeroth order, CE | kept": Case("differs", by_estimates(("losses", "images_kept_of_3")), BEST),
    "13 inversion call, zeroth order, CE + adversarial": Case("equal", by_estimates(("images_first",), adv=1)),
    "13 inversion call, zeroth order, CE + adversarial | step": Case("differs", by_estimates(MOVED, adv=1), ADVERSARY),
    "13 inversion call, zeroth order, CE, plain normalisation": Case(
        "equal", by_estimates(("images_first", *STEP), form=PLAIN), tolerance=ESTIMATE
    ),
    "13 inversion call, zeroth order, CE, plain normalisation | losses": Case(
        "differs", by_estimates(("losses", "images_kept_of_3"), form=PLAIN), BEST
    ),
    **distillation("14 bi-level distillation, inner rate 0.01", *SLOW),
    **distillation("14 bi-level distillation, inner rate 0.01, first order", *SLOW, FIRST),
    **distillation("14 bi-level distillation, inner rate 1, first order", *FAST, FIRST),
    "14b one outer step of the main loop": Case("equal", outer_step),
    "15 reductions on given logits": Case(
        "equal", partial(reductions, outputs=("kd_batchmean_from_log_probabilities_for_comparison", "agree"))
    ),
    "15 reductions on given logits | divergence": Case("differs", partial(reductions, outputs=("kd_loss",)), DIVERGENCE),
    "15 reductions on given logits | adversarial": Case(
        "differs", partial(reductions, outputs=("adv_white_box", "adv_zeroth_order_mean_over_images")), ADVERSARY
    ),
    "16 memory": Case("equal", memory_kept),
    "16 memory | bytes": Case("differs", memory_bytes, BYTES),
    "17 patience": Case("equal", patience),
    "18 start of the adversarial term": Case("equal", adversarial_start),
    "7b learning rate of pretraining, conv4, CIFAR and mini": Case("equal", partial(rates, arch="conv4")),
    "7b learning rate of pretraining, conv4, CUB": Case("equal", partial(rates, arch="conv4", dataset="cub")),
    "7b learning rate of pretraining, resnet10, CIFAR and mini": Case("equal", partial(rates, arch="resnet10")),
    "7b learning rate of pretraining, resnet10, CUB": Case("equal", partial(rates, arch="resnet10", dataset="cub")),
}
FIGURES = cases("bidf_mkd")


def test_every_case_has_a_row() -> None:
    assert {case_of(row) for row in CASES} == set(FIGURES)


@pytest.mark.parametrize("row", CASES)
def test_as_the_released_code(row: str, tmp_path: Path, monkeypatch: Patch, record_property: Any) -> None:
    outputs = FIGURES[case_of(row)]["outputs"]
    judge(CASES[row], outputs, bidf_mkd, lambda run: run(monkeypatch, tmp_path), record_property)
