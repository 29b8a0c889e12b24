"""TGR beside the released code: every case of tgr.json is a row."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.comparison import FORM, SIDE, WAY, Case, case_of, rows
from reference.formula import cases, fill, images, value
from reference.free_and_tgr import (
    Found,
    given_images,
    gradients_of,
    judge,
    labels,
    learner_logits,
    method_of,
    replayed,
    teacher_logits,
    values_of,
    watch,
    watch_iteration,
)
from torch import Tensor

import methods.tgr
from methods.inversion import by_generator
from methods.inversion.by_generator import Recovered
from methods.inversion.pseudo_batch import PseudoBatch
from methods.metalearners.gradients import aligned_gradient
from methods.metalearners.learner import LearnerSpec
from methods.teachers import probes
from methods.teachers.probes import Probe, embed_all, fisher_embedding
from methods.teachers.task_groups import dissimilarity, group_by
from models import create_model
from models.generator import Generator

pytestmark = pytest.mark.usefixtures("float64")
ENTRIES = cases("tgr")
DISSIMILARITY = 1e-4  # the released matrix is rounded
Patch = pytest.MonkeyPatch


def drawn_generators(patch: Patch) -> None:
    """Newly drawn generators are those of offsets 20000, 20100, ..."""
    offsets = iter(range(20000, 21000, 100))
    patch.setattr(by_generator, "Generator", lambda size: fill(Generator(size), next(offsets)))


def synthesize(patch: Patch) -> Found:
    """An iteration of TGR, as far as its inversions and what enters the memory."""
    method = method_of("tgr", patch, "--num_recover", "2", "--inversion_steps", "2")
    drawn_generators(patch)
    descent = watch_iteration(methods.tgr, patch, 40200)
    patch.setattr(method.replay, "until_no_better", dict)
    method.train_iteration(0)
    return descent.numbers() | {
        "z_0_after": descent.latents[0],
        "z_last_after": descent.latents[3],
        "generator_after_last": descent.generator,
        "classes_in_memory": method.memory.counts.nonzero().flatten().tolist(),
        **{f"images_{number}": one.batch.images for number, one in enumerate(descent.recovered)},
    }


def one_generator_for_two_batches(patch: Patch) -> Found:
    """A generator that is trained on from batch to batch, by the inversion of one teacher."""
    method = method_of("tgr", patch, "--inversion_steps", "3")
    generator = fill(Generator(SIDE), 20000)
    noting, descent = watch(patch, 40200)
    loss = noting(method.loss)
    found = [by_generator.invert_one(method.teachers[0], labels(), generator, loss, method.descent) for _ in range(2)]
    descent.end(found)
    return descent.numbers() | {
        "z_0_after": descent.latents[0],
        "z_last_after": descent.latents[1],
        "generator_after_last": values_of(generator),
        "images_0": found[0].batch.images,
    }


def images_for_the_probe(patch: Patch) -> Found:
    """What the probe is shown of the first teacher."""
    method = method_of("tgr", patch)
    shown: list[Tensor] = []
    patch.setattr(probes, "embed", lambda some, x, *more: shown.append(x) or [])
    with tempfile.TemporaryDirectory() as folder:
        embed_all(method.teachers, [], LearnerSpec("conv4", WAY, SIDE, FORM.mean, FORM.std), 10, 3, 0, Path(folder))
    return {"images_0": shown[0]}


def probe() -> Probe:
    network = fill(create_model("conv4", WAY, SIDE), 9000)
    return Probe(network.eval(), FORM.prepare)


def fisher_of(x: Tensor) -> list[Tensor]:
    """The probe's Fisher information of each filter on images, one vector for each convolution."""
    return fisher_embedding(probe().network, FORM.prepare(x), torch.Generator())


def fisher_of_batches() -> list[Tensor]:
    """Of two batches together; a filter's mean stands for each of its weights."""
    found = fisher_of(torch.cat([images(35000 + batch, 6, 3, SIDE, SIDE) for batch in range(2)]))
    return [filters.view(-1, 1, 1, 1).expand(32, inputs, 3, 3) for filters, inputs in zip(found, (3, 32, 32, 32), strict=True)]


def fisher_first_and_last(patch: Patch) -> Found:
    layers = fisher_of_batches()
    return {"first_conv": layers[0], "last_conv": layers[3]}


def fisher_all(patch: Patch) -> Found:
    return {"all": fisher_of_batches()}


def fisher_single_images(patch: Patch) -> Found:
    x = images(35000, 6, 3, SIDE, SIDE)[:2]
    return {
        "probabilities": F.softmax(probe().network(FORM.prepare(x)), 1),
        "expected_filters": fisher_of(x),
    }


def embeddings() -> list[list[Tensor]]:
    """Of six teachers, three layers each."""
    sizes = (16 * 27, 16, 240)
    return [[0.2 + value(36000 + 10 * t + j, size, 1).square() * (1 + t % 3) for j, size in enumerate(sizes)] for t in range(6)]


def dissimilarities(patch: Patch) -> Found:
    return {"matrix": dissimilarity(embeddings())}


def affinity(count: int, kinds: bool) -> Tensor:
    """A matrix of dissimilarities with noise on it; with two kinds of teachers, or without structure."""
    noise = value(37000, count * count, 1).view(count, count)
    parity = torch.arange(count) % 2
    mean = torch.where(parity[:, None] == parity[None], 0.05, 0.35) if kinds else torch.full((count, count), 0.15)
    matrix = mean + (0.02 if kinds else 0.03) * (noise + noise.T) / 2
    return matrix.clamp(0, 1).fill_diagonal_(0)


def groups(count: int, kinds: bool, number: int) -> Any:
    return lambda patch: {"partition": sorted(group_by(affinity(count, kinds), number, 42))}


def released_divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Of probabilities, and the mean over all entries."""
    return F.kl_div(F.softmax(student_logits, 1), F.softmax(teacher_logits, 1), reduction="none").mean()


def stepping(patch: Patch, released: bool, *flags: str) -> Any:
    """TGR with its own divergence from the teachers or the released code's."""
    if released:
        patch.setattr(methods.tgr, "kl_divergence", released_divergence)
    return method_of("tgr", patch, *flags)


def task_losses(method: Any) -> list[Any]:
    """The loss of each teacher's given images, as a function of the learner's parameters."""
    return [
        method.task_loss(one, PseudoBatch(x, labels(), one.class_ids))
        for one, x in zip(method.teachers, given_images(), strict=True)
    ]


def terms(method: Any, patch: Patch) -> Found:
    """Both terms of each task's loss, at the learner and where the task's displacement leads."""
    truths: list[float] = []
    imitations: list[float] = []

    def noted(term: Any, values: list[float]) -> Any:
        def run(*args: Tensor) -> Tensor:
            found = term(*args)
            values.append(float(found.detach()))
            return found

        return run

    with patch.context() as inner:
        inner.setattr(methods.tgr.F, "cross_entropy", noted(F.cross_entropy, truths))
        inner.setattr(methods.tgr, "kl_divergence", noted(methods.tgr.kl_divergence, imitations))
        aligned_gradient(task_losses(method), method.learner.params, method.args.displace_lr)
    return {
        "loss_gt": truths[:4],
        "loss_kd": imitations[:4],
        "loss_gt_displaced": truths[4:],
        "loss_kd_displaced": imitations[4:],
    }


def mean_gradient(method: Any) -> list[Tensor]:
    return list(aligned_gradient(task_losses(method), method.learner.params, 0.0)[0].values())


def gradients(method: Any) -> list[list[Tensor]]:
    """Of each task by itself: a single task is not displaced."""
    return [list(aligned_gradient([loss], method.learner.params, 0.0)[0].values()) for loss in task_losses(method)]


def up_to_displacement(displacement: str) -> Any:
    """All of the step before the last gradient, with the released divergence."""

    def run(patch: Patch) -> Found:
        method = stepping(patch, True, "--displace_lr", displacement)
        own, mean = gradients(method), mean_gradient(method)
        return terms(method, patch) | {
            "gradient_0": own[0],
            "gradient_3": own[3],
            "mean_gradient": mean,
            "displacement_0": [everyone - one for everyone, one in zip(mean, own[0], strict=True)],
        }

    return run


def handed(displacement: str) -> Any:
    """What an iteration gives to the learner's Adam, and what that makes of it, with the released divergence."""

    def run(patch: Patch) -> Found:
        method = stepping(patch, True, "--displace_lr", displacement)
        batches = [PseudoBatch(x, labels(), one.class_ids) for x, one in zip(given_images(), method.teachers, strict=True)]
        patch.setattr(methods.tgr, "invert_each", lambda *_: [Recovered(batch, torch.zeros(()), []) for batch in batches])
        patch.setattr(method.replay, "until_no_better", dict)
        method.train_iteration(0)
        params = method.learner.params
        return {"gradient_handed": gradients_of(params.values()), "learner_after": values_of(params)}

    return run


def own_divergence(patch: Patch) -> Found:
    method = stepping(patch, False)
    return {"loss_kd": terms(method, patch)["loss_kd"], "mean_gradient": mean_gradient(method)}


def half_weight(patch: Patch) -> Found:
    return {"mean_gradient": mean_gradient(stepping(patch, True, "--kd_loss_weight", "0.5"))}


def released_gradient(method: Any) -> dict[str, Tensor]:
    """The released step's: differentiated through the displacement, too."""
    params, losses = method.learner.params, task_losses(method)
    own = [torch.autograd.grad(loss(params), list(params.values()), create_graph=True) for loss in losses]
    mean = [torch.stack(parts).mean(0) for parts in zip(*own, strict=True)]
    rate = method.args.displace_lr
    displaced = [
        loss(
            {
                name: weight - rate * (everyone - mine)
                for (name, weight), everyone, mine in zip(params.items(), mean, gradient, strict=True)
            }
        )
        for loss, gradient in zip(losses, own, strict=True)
    ]
    return dict(zip(params, torch.autograd.grad(torch.stack(displaced).mean(), list(params.values())), strict=True))


def released_step(patch: Patch, *flags: str) -> tuple[Any, dict[str, Tensor]]:
    """TGR whose learner, and its Adam, have taken the released step."""
    method = stepping(patch, True, "--displace_lr", "1e-3", *flags)
    gradient = released_gradient(method)
    method.outer.follow(gradient)
    return method, gradient


def through_the_displacement(patch: Patch) -> Found:
    """The step that this file writes out, from which the replays begin."""
    method, gradient = released_step(patch)
    return {"gradient_handed": gradient.values(), "learner_after": values_of(method.learner.params)}


def replay(count: int) -> Any:
    """The first update of a replay of so many episodes."""

    def run(patch: Patch) -> Found:
        method, _ = released_step(patch, "--episode_batch", str(count), "--patience", "1")
        found = replayed(method, patch)
        return {
            "first_loss": count * found.losses[0],  # what is reported is a mean
            "first_gradient": found.gradients[0],
            "learner_after_first_update": found.params[0],
        }

    return run


KL = "its reduction makes the divergence 0.3 % of it"
DISPLACEMENT = "The displaced parameters count as constants"
CASES: dict[str, Case] = {
    "learner_conv4": Case("equal", learner_logits),
    "teacher_conv4_32": Case("equal", teacher_logits),
    "synthesize": Case("equal", synthesize),
    "synthesize_pre": Case("differs", images_for_the_probe, "images inverted pixel by pixel"),
    "synthesize_pre | by generator": Case("equal", one_generator_for_two_batches),
    "fisher_train_mode": Case("differs", fisher_first_and_last, "squares each image's own gradient"),
    "fisher_train_mode | parameters": Case(
        "differs", fisher_all, "every parameter, the teacher's labels and train-mode normalisation"
    ),
    "fisher_single_images": Case("equal", fisher_single_images),
    "dissimilarity": Case(
        "differs", dissimilarities, "eps of the dissimilarity is 1e-3 of a layer's mean", tolerance=DISSIMILARITY
    ),
    "groups_kinds_12_2": Case("equal", groups(12, True, 2)),
    "groups_kinds_12_3": Case("equal", groups(12, True, 3)),
    "groups_none_20_5": Case("equal", groups(20, False, 5)),
    "step": Case("differs", own_divergence, KL),
    "step | with the released divergence": Case("equal", up_to_displacement("1e-3")),
    "step | what is handed over": Case("differs", handed("1e-3"), DISPLACEMENT),
    "step | differentiated through the displacement": Case("equal", through_the_displacement),
    "step_strong": Case("differs", handed("0.1"), DISPLACEMENT),
    "step_strong | with the released divergence": Case("equal", up_to_displacement("0.1")),
    "step_kd_half": Case("differs", half_weight, "`--kd_loss_weight` is read"),
    "step_none": Case("equal", handed("0")),
    "step_none | with the released divergence": Case("equal", up_to_displacement("0")),
    "step_weak": Case("differs", handed("1e-7"), DISPLACEMENT),
    "step_weak | with the released divergence": Case("equal", up_to_displacement("1e-7")),
    "replay_after_step_16": Case("equal", replay(16)),
    "replay_after_step_2": Case("equal", replay(2)),
}


def test_every_case_has_a_row() -> None:
    assert {case_of(name) for name in CASES} == set(ENTRIES)


@pytest.mark.parametrize("name", rows(CASES, slow={"replay_after_step_16"}))
def test_tgr(name: str, monkeypatch: Patch, record_property: Any) -> None:
    judge(CASES[name], ENTRIES[case_of(name)], methods.tgr, monkeypatch, record_property)
