"""Inversion through a generator: descend on its weights and its latents until the teacher sees the wanted classes.

`invert_each` inverts several teachers, each with a generator of its own; `invert_one` one teacher for given labels. What
they descend on is the caller's loss; a generator that is shared learns from what they give back by `follow`.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from methods.inversion.pseudo_batch import Classifying, PseudoBatch, labels_of
from methods.inversion.stacked import Stack, alike, mapped
from models.generator import Generator
from utils import cli, distributed, seed
from utils.errors import BudgetSpent, UserError
from utils.precision import PRECISIONS, autocast

BETAS = (0.5, 0.999)  # Adam's, of generators and latents
Start = Callable[[Any], Generator]  # teacher -> the generator that it is inverted with; it is changed in place
TOGETHER = 20  # teachers, as many as a published iteration has at most
Loss = Callable[[Any, Tensor, Tensor], Tensor]  # (teacher, images in [0, 1], labels) -> what a step descends on


Descended = tuple[Tensor, Tensor, list[Tensor]]  # images and loss of the best step, gradient


@dataclass(frozen=True)
class Descent:
    """How to descend. `gradient_of` says what `Recovered.gradient` is: that of the "last" step, the "sum" over the steps,
    or the "difference" between where the parameters began and where they ended (Reptile). With `precision` "bf16" the
    generator and what the loss asks run in bfloat16; parameters, statistics and the steps stay in full precision.
    together: teachers of one kind that are inverted in one mapped computation, which is for a GPU that small batches leave
    idle: on a CPU it takes 2.6 times as long. Raises `UserError` for both: autocast does not reach into `vmap`.
    """

    steps: int = 5
    lr: float = 1e-3
    lr_latent: float = 1e-3
    gradient_of: str = "last"
    precision: str = "fp32"
    together: int = 1

    def __post_init__(self) -> None:
        if self.together > 1 and self.precision != "fp32":
            raise UserError(f"--together {self.together} computes in fp32: leave out --precision {self.precision}")


@dataclass(frozen=True)
class Recovered:
    """What a descent ended with: the images of the best step, that step's loss, and what moves a shared generator."""

    batch: PseudoBatch
    loss: Tensor
    gradient: list[Tensor]


def invert_each(teachers: Sequence[Any], images_per_class: int, start: Start, loss: Loss, descent: Descent) -> list[Recovered]:
    """Pseudo-images of each teacher, by a descent on a generator and latents of its own.

    Each teacher has random numbers of its own, so that several processes can share them; teachers that are inverted
    together share those of the loss.
    """
    seeds = torch.randint(2**62, (len(teachers),)).tolist()
    share = distributed.share()
    mine, streams = teachers[share], seeds[share]
    done: dict[int, Recovered] = {}
    for places in alike(mine, descent.together):
        with seed.kept():
            some = _invert([mine[p] for p in places], [streams[p] for p in places], images_per_class, start, loss, descent)
        done |= zip(places, some, strict=True)
    return distributed.gathered([done[place] for place in range(len(mine))])


def invert_one(
    teacher: Classifying, labels: Tensor, generator: Generator, loss: Loss, descent: Descent, beside: Sequence[Tensor] = ()
) -> Recovered:
    """Pseudo-images of one teacher for wanted `labels` (M,), in their order; `generator` is changed in place.

    beside: tensors that `loss` trains itself, and that get gradients for it.
    """
    labels = labels.to(next(generator.parameters()).device)
    images, value, gradient = descend(generator, lambda images: loss(teacher, images, labels), len(labels), descent, beside)
    return Recovered(PseudoBatch(images, labels, teacher.class_ids), value, gradient)


def mean_loss(recovered: Sequence[Recovered]) -> float:
    """The mean over teachers of the loss of the images that were kept."""
    return float(torch.stack([one.loss for one in recovered]).mean())


def fresh(device: torch.device) -> Start:
    """Every teacher is inverted with a newly initialised generator of images of the teacher's own size."""
    return lambda teacher: Generator(teacher.image_size).to(device)


def copy_of(generator: Generator) -> Start:
    """Every teacher is inverted with a copy of a shared generator."""
    return lambda teacher: copy.deepcopy(generator)


def follow(optimizer: torch.optim.Optimizer, gradients: Sequence[Sequence[Tensor]]) -> None:
    """A step of a shared generator's optimizer along the sum of what the descents on its copies gave."""
    for parameter, parts in zip(optimizer.param_groups[0]["params"], zip(*gradients, strict=True), strict=True):
        parameter.grad = torch.stack(parts).sum(0)
    optimizer.step()


def _invert(
    teachers: Sequence[Any], seeds: Sequence[int], images_per_class: int, start: Start, loss: Loss, descent: Descent
) -> list[Recovered]:
    """Teachers of one kind, each from its own seed: one alone, or several in one mapped computation."""
    labels = labels_of(teachers[0], images_per_class)
    if len(teachers) == 1:
        torch.manual_seed(seeds[0])
        return [invert_one(teachers[0], labels, start(teachers[0]), loss, descent)]
    generators, latents = [], []
    for teacher, own in zip(teachers, seeds, strict=True):
        torch.manual_seed(own)
        generators.append(start(teacher))
        latents.append(draw_latents(generators[-1], len(labels)))
    stack, labels = Stack(teachers), labels.to(latents[0].device)

    def losses_of(images: Tensor) -> Tensor:
        return stack.losses(lambda teacher, x: loss(teacher, x, labels), images)

    return [
        Recovered(PseudoBatch(images, labels, teacher.class_ids), value, gradient)
        for teacher, (images, value, gradient) in zip(
            teachers, descend_together(generators, latents, losses_of, descent), strict=True
        )
    ]


def descend(
    generator: Generator, loss_of: Callable[[Tensor], Tensor], count: int, descent: Descent, beside: Sequence[Tensor] = ()
) -> Descended:
    """Take Adam(.5, .999) steps on `generator` (in place) and on `count` fresh latents z ~ N(0, I).

    The images kept are those of the step with the lowest loss, chosen on the device without waiting for it.
    A loss that raises `BudgetSpent` ends the descent early, with what it has; at the first step it is passed on. Of all else
    that the loss asks, only the tensors `beside` get gradients.
    """

    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        images = generator(z)  # (count, C, S, S)
        return images, loss_of(images)

    return _descend(forward, list(generator.parameters()), draw_latents(generator, count), descent, beside)


def draw_latents(generator: Generator, count: int) -> Tensor:
    """z ~ N(0, I), (count, latent_dim), where the generator is."""
    return torch.randn(count, generator.latent_dim, device=next(generator.parameters()).device)


def descend_together(
    generators: Sequence[Generator], latents: Sequence[Tensor], losses_of: Callable[[Tensor], Tensor], descent: Descent
) -> list[Descended]:
    """`descend` for K generators at once, each from its own latents (count, latent_dim), which stay as they are.

    `losses_of` maps images (K, count, C, S, S) to losses (K,), each of one generator's images alone.
    """
    state = torch.func.stack_module_state(cast(list[nn.Module], list(generators)))

    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        images = mapped(generators[0], state, z)  # (K, count, C, S, S)
        return images, losses_of(images)

    images, losses, gradient = _descend(forward, list(state[0].values()), torch.stack(list(latents)), descent)
    return [(images[k], losses[k], [whole[k] for whole in gradient]) for k in range(len(generators))]


def _descend(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
    parameters: list[Tensor],
    z: Tensor,
    descent: Descent,
    beside: Sequence[Tensor] = (),
) -> Descended:
    """Adam steps on `parameters` (in place) and latents from `z`; `forward` gives images (..., B, C, S, S) and losses (...)."""
    device, steps, gradient_of = z.device, descent.steps, descent.gradient_of
    z = z.clone().requires_grad_()
    groups = [{"params": parameters, "lr": descent.lr}, {"params": [z], "lr": descent.lr_latent}]
    optimizer = torch.optim.Adam(groups, betas=BETAS)
    best = kept = torch.empty(0, device=device)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    before = [parameter.detach().clone() for parameter in parameters] if gradient_of == "difference" else []
    for step in range(steps):
        try:
            with autocast(device, descent.precision):
                images, loss = forward(z)
        except BudgetSpent:
            if step == 0:
                raise
            break
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward(inputs=[*parameters, z, *beside])
        for sum_, parameter in zip(total, parameters, strict=True):
            if parameter.grad is not None and (gradient_of == "sum" or (gradient_of == "last" and step == steps - 1)):
                sum_ += parameter.grad
        optimizer.step()
        images, loss = images.detach(), loss.detach()
        if step == 0:
            kept, best = images, loss
        better = loss < best
        kept = torch.where(better.view(*better.shape, 1, 1, 1, 1), images, kept)
        best = torch.where(better, loss, best)
    if before:
        total = [start - parameter.detach() for start, parameter in zip(before, parameters, strict=True)]
    return kept.to(z.dtype), best, total


def add_descent_flags(group: argparse._ArgumentGroup, latents: bool = True) -> None:
    """Steps and rates of an inversion by generator, which `descent_of` reads; without `latents` these stay as they are."""
    group.add_argument(
        "--generate_iterations", "--inversion_steps", dest="inversion_steps", type=cli.count, default=5,
        help="steps on one teacher",
    )  # fmt: skip
    group.add_argument("--Glr", type=cli.rate, default=1e-3, help="learning rate of the generator")
    if latents:
        group.add_argument("--zlr", type=cli.rate, default=1e-3, help="learning rate of the latents (without default: --Glr)")
    add_precision_flag(group)


def descent_of(args: argparse.Namespace, gradient_of: str = "last", together: int = 1) -> Descent:
    """The descent that the flags of `add_descent_flags` and `add_precision_flag` ask for; latents move at --zlr, or --Glr."""
    lr_latent = args.Glr if args.zlr is None else args.zlr
    return Descent(args.inversion_steps, args.Glr, lr_latent, gradient_of, args.precision, together)


def add_together_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--together", type=cli.count,
        help=f"teachers of one kind inverted in one mapped computation (default: {TOGETHER} on a card, 1 on a CPU or in bf16)",
    )  # fmt: skip


def together_of(args: argparse.Namespace, device: torch.device) -> int:
    """What --together says, or is where nobody typed it."""
    if args.together is not None:
        return int(args.together)
    return 1 if device.type == "cpu" or getattr(args, "precision", "fp32") != "fp32" else TOGETHER


def add_precision_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of generator and teachers in inversion")
