"""What the rows of both files of Fast-Datafree's reference numbers are made of: networks, methods, and what is watched."""

import importlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from reference.formula import cases, error, fill, images, latents
from torch import Tensor, nn

import main
import methods.dfkd
import methods.fast
from datasets.registry import get_spec
from methods import get_method
from methods.experiments.whole_class import StudentSpec, WholeClassMethod
from methods.inversion import terms
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from models import create_classifier
from models.backbone import Backbone
from models.generator import Generator
from models.vgg import VGG

Outputs = Mapping[str, Any]
VERDICTS = ("equal", "flag", "differs", "nothing")
LOSSES = {  # theirs -> our term
    "loss_bn": "bn", "loss_oh": "ce", "loss_balance": "balance", "loss_act": "act", "loss_tv": "tv", "loss_l2": "l2",
}  # fmt: skip
WAY, SIZE = 10, 32
HEADS = cases("fast_datafree")["conventions"]["inputs"]["fc_bias"]


@dataclass(frozen=True)
class Case:
    """A row: what `run` finds, by the outputs' names, and how it must lie to what the papers' code gave.

    equal: every output is the same. flag: so it is with the flag of `note` typed, as `run` does. differs: on purpose, which
    `note` finds in the docstring of `module`. nothing: there is nothing to compare, as `note` says.
    apart: patterns of the names of outputs that lie apart in the last but one; all others are the same.
    """

    verdict: str
    run: Callable[["Bench"], Outputs] = lambda bench: {}
    note: str = ""
    apart: tuple[str, ...] = ()
    module: str = "methods.fast"
    tolerance: float = 1e-9
    relative: bool = False  # plain numbers in units of themselves, however small they are
    read: Callable[[Outputs], Outputs] = dict  # what is compared, of the entry's outputs

    def __post_init__(self) -> None:
        assert self.verdict in VERDICTS
        assert bool(self.apart) == (self.verdict == "differs"), "only what differs lies apart"
        assert self.note or self.verdict == "equal", "a note is missing"


def check(case: Case, entry: Mapping[str, Any], bench: "Bench", record: Callable[[str, Any], None]) -> None:
    """Fail where `case` claims what is not so."""
    if case.verdict == "nothing":
        return
    errors = dict(measured(case.run(bench), case.read(entry["outputs"]), case.relative))
    assert errors
    record("error", max(errors.values()))
    apart = {name: found for name, found in errors.items() if any(fnmatch(name, pattern) for pattern in case.apart)}
    above = {name: found for name, found in errors.items() if not found <= case.tolerance}
    assert above.keys() <= apart.keys(), {name: above[name] for name in above.keys() - apart.keys()}
    if case.verdict == "differs":
        assert apart
        assert above.keys() == apart.keys(), f"the same by now: {apart.keys() - above.keys()}"
        assert case.note in " ".join((importlib.import_module(case.module).__doc__ or "").split())


def measured(found: Any, wanted: Any, relative: bool, name: str = "") -> Iterator[tuple[str, float]]:
    """The error of each output, by its path: "call1/loss"."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from measured(value, wanted[key], relative, f"{name}/{key}" if name else key)
    else:
        yield name, error_of(found, wanted, relative)


def error_of(found: Any, wanted: Any, relative: bool) -> float:
    """As `error`, for words and for what is no number too."""
    if isinstance(wanted, list):
        if len(found) != len(wanted):
            return math.inf
        return max((error_of(one, other, relative) for one, other in zip(found, wanted, strict=True)), default=0.0)
    if wanted == "nan":
        return 0.0 if math.isnan(found) else math.inf
    if isinstance(wanted, (str, bool)) or isinstance(found, str):
        return 0.0 if found == wanted else math.inf
    if relative:
        return abs(float(found) / wanted - 1)
    return error(found, wanted)


def in_their_order(network: Backbone) -> nn.Module:
    """The layers of a network in the order in which the papers' code registers them."""
    if isinstance(network, VGG):
        layers = [layer for pair in zip(network.convs, network.norms, strict=True) for layer in pair]
        return nn.ModuleList([*layers, network.head])
    return network


@torch.no_grad()
def classifier(name: str, offset: int, classes: int = WAY, size: int = SIZE) -> Backbone:
    """A classifier with the formula's numbers; the head of a wrn16_1 of ten classes as they come."""
    network = create_classifier(name, classes, size)
    fill(in_their_order(network), offset, 1000)
    return network


@torch.no_grad()
def sharpen(network: Backbone, offset: int) -> Backbone:
    """So that classes vary over images, and two networks agree on some."""
    network.head.weight.mul_(100)
    network.head.bias.copy_(torch.tensor(HEADS[str(offset)]))
    return network


def small_generator(image_size: int = SIZE, channels: int = 3, latent_dim: int = 32) -> Generator:
    """Latents of 32 numbers, 16 channels, the formula's numbers from 4000 on."""
    generator = Generator(image_size, channels, 32, 16)
    fill(generator, 4000)
    return generator


def statistics_of(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The running means and variances of all layers."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    return [layer.running_mean for layer in norms], [layer.running_var for layer in norms]


def state_after(network: nn.Module) -> dict[str, list[Tensor]]:
    """What the steps of a student leave."""
    mean, var = statistics_of(network)
    return {"student_after": list(network.parameters()), "running_mean_after": mean, "running_var_after": var}


class Bench:
    """Makes methods with the formula's networks and without chance, and writes down what they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.steps: list[dict[str, Any]] = []  # of inversion: the loss, its terms, and the images
        self.optimizers: list[torch.optim.Adam] = []
        self.updates: list[Tensor] = []  # the losses of the student's steps
        monkeypatch.setattr(terms, "weighted_sum", self._watched)
        for module in (methods.fast, methods.dfkd):
            monkeypatch.setattr(module, "Generator", small_generator)

    def method(self, name: str, flags: str, teacher: str = "wrn16_1") -> Any:
        """A method on a teacher k0 = 0 and a student k0 = 2000, without crops and mirrors, with labels 0, 1, 2, ..."""
        names = [f"class {number}" for number in range(WAY)]
        dataset = get_spec("cifar10", WholeClassMethod.TASK)
        spec = StudentSpec("wrn16_1", names, SIZE, dataset)
        network = classifier(teacher, 0)
        pool = TeacherPool.of([Teacher(sharpen(network, 0) if teacher == "wrn16_1" else network, names, spec.form)])
        words = f"--method {name} --dataset cifar10 --teacher {teacher} --student wrn16_1 {flags}"
        method = get_method(name)(main.parse_args(words.split()), pool, spec)
        fill(method.network, 2000, 1000)
        sharpen(method.network, 2000)
        method.augmentation = lambda images: images
        method.draw_labels = lambda: torch.arange(method.args.synthesis_batch_size) % WAY
        update = method.student.update
        method.student.update = lambda *what: (done := update(*what), self.updates.append(done[0]))[0]
        return method

    def draw(self, *numbers: int) -> None:
        """Let `torch.randn` give the formula's latents (or pixels), each of the `numbers` in turn."""
        left = iter(numbers)
        self.monkeypatch.setattr(torch, "randn", lambda *shape, **more: latents(next(left), *shape))

    def in_order(self) -> None:
        """Let `torch.randperm` leave everything where it is."""
        self.monkeypatch.setattr(torch, "randperm", torch.arange)

    def keep_optimizers(self) -> None:
        """Keep every Adam that is made from now on."""
        kept = self.optimizers

        class Kept(torch.optim.Adam):
            def __init__(self, *what: Any, **more: Any) -> None:
                super().__init__(*what, **more)
                kept.append(self)

        self.monkeypatch.setattr(torch.optim, "Adam", Kept)

    def listed(self, *names: str) -> dict[str, list[float]]:
        """One number a step, for each of `names`."""
        return {name: [step[name] for step in self.steps] for name in names}

    def _watched(self, weights: terms.Weights, evidence: terms.Evidence) -> Tensor:
        loss = _weighted_sum(weights, evidence)
        step = {"loss": float(loss.detach()), "loss_adv": 0.0, "images": evidence.images.detach()}
        with torch.no_grad():
            for name, term in LOSSES.items():
                if weights.get(term) or term in ("ce", "balance"):
                    step[name] = float(terms.TERMS[term].value(evidence))
            if evidence.student is not None and weights.get("adv"):
                answers = evidence.student(evidence.images)
                step["loss_adv"] = float(evidence.adversary(evidence.logits, answers))
                step["agree"] = float((answers.argmax(1) == evidence.logits.argmax(1)).to(answers.dtype).mean())
        self.steps.append(step)
        return loss


_weighted_sum = terms.weighted_sum


def rates(method: Any, wanted: Collection[str]) -> dict[str, float]:
    """The student's rate in the epochs that are wanted, before their end, while nothing else happens."""
    optimizer, found = method.student.optimizer, {}
    for epoch in range(method.args.epochs):
        found[str(epoch)] = optimizer.param_groups[0]["lr"]
        optimizer.step()  # without gradients
        method.train_iteration(epoch)
    return {epoch: found[epoch] for epoch in wanted}


def batches_of(*numbers: int, count: int = 8) -> list[Tensor]:
    """Batches of images in [0, 1]."""
    return [images(number, count, 3, SIZE, SIZE) for number in numbers]
