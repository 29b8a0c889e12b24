"""What the reference cases of FREE and TGR share: their teachers, learner and episodes, and how a row is judged."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from reference.comparison import FORM, SIDE, WAY, Case, fill_learner, hold
from reference.formula import error, fill, images, latents
from torch import Tensor
from torch.optim import Optimizer

import main
from datasets.episodes import Episodes, make_episodes
from datasets.registry import CIFAR
from methods import get_method
from methods.inversion import by_generator
from methods.inversion.by_generator import Recovered
from methods.inversion.terms import inversion_loss
from methods.metalearners.base import Execution
from methods.metalearners.gradients import meta_gradient
from methods.metalearners.learner import Learner, LearnerSpec
from methods.metalearners.maml import MAML
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from models import create_model

OFFSETS = (2000, 4000, 6000, 8000)
Found = dict[str, Any]  # output -> what this project computes


def wanted_of(outputs: dict[str, Any], name: str) -> Any:
    """An output by name; "losses[:2]" are its first two numbers. A text holds JSON."""
    key, cut = re.fullmatch(r"(\w+)(?:\[:(\d+)\])?", name).groups()
    wanted = outputs[key]
    if isinstance(wanted, str):
        wanted = json.loads(wanted)
    return wanted[: int(cut)] if cut else wanted


def judge(case: Case, entry: dict[str, Any], module: ModuleType, patch: pytest.MonkeyPatch, record: Any) -> None:
    """Compute what a row compares, and hold it against the verdict. `module` is the method's."""
    assert case.run is not None
    errors = {name: error(value, wanted_of(entry["outputs"], name)) for name, value in case.run(patch).items()}
    hold(case, errors, dict.fromkeys(errors, case.tolerance), module, record)


def teacher(offset: int, number: int = 0) -> Teacher:
    """A conv4 of five classes, those after `5 * number`."""
    names = [f"class {WAY * number + label:02d}" for label in range(WAY)]
    return Teacher(fill(create_model("conv4", WAY, SIDE), offset), names, FORM, arch="conv4")


def method_of(name: str, patch: pytest.MonkeyPatch, *flags: str) -> Any:
    """The method of four teachers and the learner of offset 0; nothing is augmented or put into another order."""
    pool = TeacherPool.of([teacher(offset, number) for number, offset in enumerate(OFFSETS)])
    patch.setattr(pool, "augmentation", lambda x: x)
    args = main.parse_args(["--method", name, "--teacher_batch", "4", *flags])
    method = get_method(name)(args, pool, LearnerSpec("conv4", WAY, SIDE, *CIFAR))
    fill_learner(method.learner, 0)
    patch.setattr(torch, "randperm", lambda count, **more: torch.arange(count))
    patch.setattr(
        by_generator, "labels_of", lambda one, per_class, device=None: torch.arange(one.way, device=device).repeat(per_class)
    )
    return method


def maml(execution: Execution = "loop") -> tuple[MAML, dict[str, Tensor]]:
    """The metalearner of a conv4 of offset 0, and its parameters."""
    network = fill(create_model("conv4", WAY, SIDE, norm="batch"), 0).requires_grad_(False)
    params = {name: value.clone().requires_grad_() for name, value in network.named_parameters()}
    return MAML(network, inner_lr=0.01, execution=execution), params


def learner_logits(patch: pytest.MonkeyPatch) -> Found:
    metalearner, params = maml()
    return {"logits": metalearner.call(params, images(30001, 6, 3, SIDE, SIDE))}


def teacher_logits(patch: pytest.MonkeyPatch) -> Found:
    return {"logits": teacher(2000).network(images(30000, 3, 3, SIDE, SIDE))}


def values_of(params: Any) -> list[Tensor]:
    """The tensors of a mapping or of a module, as they are now."""
    values = params.values() if isinstance(params, dict) else params.parameters()
    return [value.detach().clone() for value in values]


def gradients_of(parameters: Any) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in parameters]


def given_images() -> list[Tensor]:
    """Ten images of each teacher."""
    return list(images(32000, 4, 10, 3, SIDE, SIDE))


def labels() -> Tensor:
    return torch.arange(WAY).repeat(2)


@dataclass
class Descent:
    """What was seen of descents on generators: at each step loss, cross entropy and images; at the end what they gave.

    latents: those that each descent ended with. generator: the last one's parameters.
    """

    losses: list[Tensor] = field(default_factory=list)
    cross_entropies: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    recovered: list[Recovered] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    generator: list[Tensor] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)

    def end(self, recovered: list[Recovered]) -> None:
        """Note what descents ended with, and let go of what they kept for going on."""
        self.recovered += recovered
        for optimizer in self.optimizers:
            generator, latents = (group["params"] for group in optimizer.param_groups)
            self.latents.append(latents[0].detach())
            self.generator = [value.detach() for value in generator]
        self.optimizers.clear()

    def numbers(self) -> Found:
        return {"loss": [float(x) for x in self.losses], "ce": [float(x) for x in self.cross_entropies]}


Loss = Callable[..., Tensor]  # (teacher, images, labels)


def watch(patch: pytest.MonkeyPatch, first_latents: int) -> tuple[Callable[[Loss], Loss], Descent]:
    """Give descents the formula's latents, of rising k; the function returned lets a loss note what it is asked."""
    found = Descent()

    class Adam(torch.optim.Adam):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            found.optimizers.append(self)

    def noting(loss: Loss) -> Loss:
        def noted(one: Teacher, x: Tensor, y: Tensor) -> Tensor:
            value = loss(one, x, y)
            found.losses.append(value.detach())
            found.cross_entropies.append(inversion_loss({"ce": 1.0}, one, x.detach(), y))
            found.images.append(x.detach().clone())
            return value

        return noted

    ks = iter(range(first_latents, first_latents + 100))
    patch.setattr(by_generator, "draw_latents", lambda generator, count: latents(next(ks), count, generator.latent_dim))
    patch.setattr(torch.optim, "Adam", Adam)
    return noting, found


def watch_iteration(module: Any, patch: pytest.MonkeyPatch, first_latents: int, loss: Loss | None = None) -> Descent:
    """The same for an iteration of the method of `module`, whose inversions descend on `loss` where one is given."""
    noting, found = watch(patch, first_latents)
    invert = module.invert_each

    def inverted(teachers: Any, per_class: int, start: Any, own: Loss, descent: Any) -> list[Recovered]:
        recovered = invert(teachers, per_class, start, noting(own if loss is None else loss), descent)
        found.end(recovered)
        return recovered

    patch.setattr(module, "invert_each", inverted)
    return found


def episodes(learner: Learner) -> Iterator[Episodes]:
    """Single episodes of the formula, one after another."""
    for number in range(1000):
        support, query = images(33000 + 2 * number, 1, 5, 3, SIDE, SIDE), images(33001 + 2 * number, 1, 25, 3, SIDE, SIDE)
        yield make_episodes(learner.prepare(support), learner.prepare(query), WAY)


def feed(method: Any, patch: pytest.MonkeyPatch) -> None:
    """Let the replay draw the formula's episodes."""
    stream = episodes(method.learner)

    def drawn(count: int) -> Episodes:
        some = [next(stream) for _ in range(count)]
        return make_episodes(torch.cat([one.support for one in some]), torch.cat([one.query for one in some]), WAY)

    patch.setattr(method.memory, "ready_for", lambda shape: True)
    patch.setattr(method.replay, "episodes", drawn)


def summed_gradient(method: Any, count: int) -> list[Tensor]:
    """The gradient of the sum of the first episodes' query losses."""
    stream = episodes(method.learner)
    args = (method.outer.inner_steps, method.outer.first_order)
    parts = [meta_gradient(method.metalearner, method.learner.params, next(stream), *args)[0] for _ in range(count)]
    return [torch.stack([part[name] for part in parts]).sum(0) for name in method.learner.params]


@dataclass
class Updates:
    """Updates of the learner: the gradients that its Adam was given, the parameters after them, losses and accuracies."""

    gradients: list[list[Tensor]] = field(default_factory=list)
    params: list[list[Tensor]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def replayed(method: Any, patch: pytest.MonkeyPatch) -> Updates:
    """The method's replay on the formula's episodes, from where its learner is."""
    found, outer, once = Updates(), method.outer, method.replay.once
    feed(method, patch)
    outer.optimizer.register_step_pre_hook(lambda *_: found.gradients.append(gradients_of(outer.learner.params.values())))
    outer.optimizer.register_step_post_hook(lambda *_: found.params.append(values_of(outer.learner.params)))

    def noted() -> tuple[float, float]:
        loss, accuracy = once()
        found.losses.append(loss)
        found.accuracies.append(100 * accuracy)
        return loss, accuracy

    patch.setattr(method.replay, "once", noted)
    method.replay.until_no_better()
    return found
