"""The terms of an inversion loss: each a row of one table with its flag, its function and its help; and their sum.

A new term is one row of `TERMS`: every method that inverts by generator or by pixel then has it, and its flag.

`--adv 1` means three things in the papers' code: FREE's and white-box BiDf-MKD's KL of probabilities against a constant
learner, BiDf-MKD's L1 of raw logits for services, and Fast-Datafree's masked KL, which stands here for all of them.
"""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.inversion.bn_statistics import record_bn_distances
from methods.inversion.pseudo_batch import Invertible
from utils import cli

Logits = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> logits (B, N)
Weights = Mapping[str, float]  # of terms, by name
Recorder = Callable[[nn.Module], AbstractContextManager[list[Tensor]]]


def total_variation(images: Tensor) -> Tensor:
    """Sum of the unsquared norms of the differences to the right, lower, and both diagonal neighbours, (B, C, H, W)."""
    right = images[..., :-1] - images[..., 1:]
    down = images[..., :-1, :] - images[..., 1:, :]
    falling = images[..., :-1, :-1] - images[..., 1:, 1:]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    return right.norm() + down.norm() + falling.norm() + rising.norm()


def imbalance(logits: Tensor) -> Tensor:
    """sum_c p_c log p_c of the batch's mean probabilities p: least where all classes are named alike often (DAFL)."""
    mean = F.softmax(logits, 1).mean(0)
    return torch.special.xlogy(mean, mean).sum()


def adversarial_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Minus the disagreement of two classifiers where they still name the same class.

    -(1/B) sum_b 1[argmax t_b = argmax s_b] KL(t_b || s_b), from logits (B, N): divided by all images; the mask carries
    no gradient; temperature 1 (Fang et al., AAAI 2022, and the data-free meta-learning papers after it).
    """
    agree = teacher_logits.argmax(1) == student_logits.argmax(1)  # (B,)
    return adversarial_terms(teacher_logits, student_logits, agree).mean()


def adversarial_terms(teacher_logits: Tensor, student_logits: Tensor, agree: Tensor) -> Tensor:
    """-KL(t_b || s_b) of each image where the mask `agree` (B,) holds, else 0: (B,)."""
    theirs, mine = F.log_softmax(teacher_logits, 1), F.log_softmax(student_logits, 1)
    divergence = (theirs.exp() * (theirs - mine)).sum(1)  # `F.kl_div` cannot be mapped over
    return -torch.where(agree, divergence, 0.0)


def jensen_shannon(one: Tensor, other: Tensor, temperature: float = 3.0) -> Tensor:
    """Mean over images of 1/2 KL(p || m) + 1/2 KL(q || m), m = (p + q) / 2, from logits (B, N) at `temperature`.

    Between 0 and log 2. DeepInversion's code takes the divergences the other way round, KL(m || p), of clamped values.
    """
    p, q = F.softmax(one / temperature, 1), F.softmax(other / temperature, 1)
    middle = ((p + q) / 2).clamp(min=1e-12).log()
    return (F.kl_div(middle, p, reduction="batchmean") + F.kl_div(middle, q, reduction="batchmean")) / 2


@dataclass(frozen=True)
class Evidence:
    """What a teacher makes of a batch: all that a term may be computed from.

    images (B, C, h, w) in [0, 1], as the teacher saw them; pixels, the same in the scale in which an inverter moves them;
    labels (B,); logits (B, N); features (B, D) and distances of the layers' statistics, where a term asks for them; the
    student, where there is one, and `adversary`, the adversarial term of the teacher's and the student's logits.
    """

    images: Tensor
    pixels: Tensor
    labels: Tensor
    logits: Tensor
    features: Tensor | None
    distances: Sequence[Tensor]
    student: Logits | None
    adversary: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """A term: the flag of its weight, its value, what it is, and what of the evidence it `needs` that is not always there:
    "features", "distances", "student". Without a student, terms that need one do not count.
    """

    flag: str
    value: Callable[[Evidence], Tensor]
    help: str
    needs: frozenset[str] = frozenset()


def _activation(evidence: Evidence) -> Tensor:
    assert evidence.features is not None
    return -evidence.features.abs().mean()


def _batch_statistics(evidence: Evidence) -> Tensor:
    return torch.stack(list(evidence.distances)).sum() if evidence.distances else evidence.logits.new_zeros(())


def _adversarial(evidence: Evidence) -> Tensor:
    assert evidence.student is not None
    return evidence.adversary(evidence.logits, evidence.student(evidence.images))


def contender(student: Logits, weights: Weights) -> Logits:
    """The student as the adversarial term asks it; with --adv_detach it is a constant, of which no gradient reaches images."""
    return (lambda images: student(images.detach()).detach()) if weights.get(DETACH) else student


DETACH = "adv_detach"  # kept beside the weights, since it is about one of them
# In the order of summation, which decides the last bits.
TERMS: dict[str, Term] = {
    "ce": Term("oh", lambda evidence: F.cross_entropy(evidence.logits, evidence.labels), "the cross entropy"),
    "tv": Term("tv", lambda evidence: total_variation(evidence.pixels), "the pixels' total variation"),
    "l2": Term("l2", lambda evidence: evidence.pixels.norm(), "the pixels' norm"),
    "bn": Term("bn", _batch_statistics, "the batch statistics", frozenset({"distances"})),
    "act": Term("act", _activation, "the activations (DAFL)", frozenset({"features"})),
    "balance": Term("balance", lambda evidence: imbalance(evidence.logits), "the balance of classes (DAFL, DFQ)"),
    "adv": Term("adv", _adversarial, "the disagreement with the student or learner", frozenset({"student"})),
}


def weighted_sum(weights: Weights, evidence: Evidence) -> Tensor:
    """sum_k weight_k * term_k. Terms that need a student count only where there is one."""
    parts = [
        weights[name] * term.value(evidence)
        for name, term in TERMS.items()
        if weights.get(name) and not ("student" in term.needs and evidence.student is None)
    ]
    total = parts[0] if parts else 0.0 * evidence.logits.sum()
    for part in parts[1:]:
        total = total + part
    return total


def inversion_loss(
    weights: Weights,
    teacher: Invertible,
    images: Tensor,
    labels: Tensor | None = None,
    student: Logits | None = None,
    adversary: Callable[[Tensor, Tensor], Tensor] = adversarial_loss,
    record: Recorder = record_bn_distances,
    pixels: Tensor | None = None,
) -> Tensor:
    """What an inversion descends on: the `weighted_sum` for images (B, C, h, w) in [0, 1], as the teacher is to see them.

    Only what terms with a weight need is recorded. Without `labels` the teacher's own answers count as right. `adversary` is
    the adversarial term of the teacher's and the student's logits; `record` says how far the statistics of each layer lie from
    what it remembers; `pixels` are the images in the scale in which an inverter moves them.
    """
    needed = {need for name, term in TERMS.items() if weights.get(name) for need in term.needs}
    with record(teacher.network) if "distances" in needed else nullcontext([]) as distances:
        features, logits = teacher.features_and_logits(images) if "features" in needed else (None, teacher(images))
    labels = logits.argmax(1) if labels is None else labels
    student = contender(student, weights) if student is not None else None
    pixels = images if pixels is None else pixels
    return weighted_sum(weights, Evidence(images, pixels, labels, logits, features, distances, student, adversary))


def add_term_flags(group: argparse._ArgumentGroup, without: Collection[str] = (), **defaults: float) -> None:
    """A flag for the weight of each term but those in `without`; 0 where `defaults` say nothing else."""
    for name, term in TERMS.items():
        if name not in without:
            spellings = dict.fromkeys((f"--{term.flag}", f"--{name}"))
            default, text = defaults.get(name, 0.0), f"weight of {term.help}"
            group.add_argument(*spellings, dest=term.flag, type=cli.weight, default=default, help=text)
    if "adv" not in without:
        text = "count the student or learner as a constant in --adv, as the few-shot papers' code does"
        group.add_argument("--adv_detach", action="store_true", help=text)


def weights_of(args: argparse.Namespace, without: Collection[str] = ()) -> dict[str, float]:
    """The weights that the flags of `add_term_flags` say."""
    weights = {name: getattr(args, term.flag) for name, term in TERMS.items() if name not in without}
    return weights if "adv" in without else weights | {DETACH: float(args.adv_detach)}
