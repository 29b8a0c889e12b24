"""FREE beside the released code: every case of free.json is a row."""

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.comparison import SIDE, WAY, Case, case_of, rows
from reference.formula import cases, fill, images, latents, value
from reference.free_and_tgr import (
    OFFSETS,
    Descent,
    Found,
    given_images,
    gradients_of,
    judge,
    labels,
    learner_logits,
    maml,
    method_of,
    replayed,
    summed_gradient,
    teacher_logits,
    values_of,
    watch_iteration,
)  # fmt: skip
from torch import Tensor, nn
from tqdm import tqdm

import methods.free
from datasets.episodes import Episodes
from datasets.registry import SPECS
from methods.inversion.by_generator import Recovered
from methods.inversion.pseudo_batch import PseudoBatch
from methods.inversion.terms import inversion_loss
from methods.memory.bank import MemoryBank
from methods.metalearners.gradients import meta_gradient
from methods.teachers import pretraining
from methods.teachers.teacher import Teacher
from models import create_model
from models.generator import Generator
from utils.images import to_float, to_uint8
from utils.metrics import Score

pytestmark = pytest.mark.usefixtures("float64")
ENTRIES = cases("free")
Patch = pytest.MonkeyPatch


def resnet(arch: str, size: int) -> Any:
    def run(patch: Patch) -> Found:
        network = fill(create_model(arch, WAY, size), 2000).eval()
        return {"logits": network(images(30000, 2, 3, size, size))}

    return run


def learner_fast(patch: Patch) -> Found:
    metalearner, params = maml()
    fast = {
        name: weight - 0.05 * value(700 + i, weight.numel(), 1).view_as(weight)
        for i, (name, weight) in enumerate(params.items())
    }
    return {"logits": metalearner.call(fast, images(30001, 6, 3, SIDE, SIDE))}


def learner_global(patch: Patch) -> Found:
    network = fill(create_model("conv4", WAY, 84, norm="batch", global_pool=True), 0)
    return {"logits_84": network(images(30002, 4, 3, 84, 84)), "logits_32": network(images(30003, 4, 3, 32, 32))}


def episode_of(support: Tensor, query: Tensor) -> Episodes:
    """One episode whose labels are 0..4 repeated."""
    support_labels, query_labels = (torch.arange(WAY).repeat(len(part) // WAY) for part in (support, query))
    return Episodes(support[None], support_labels[None], query[None], query_labels[None], WAY)


def first_episode() -> Episodes:
    return episode_of(images(31001, 5, 3, SIDE, SIDE), images(31101, 25, 3, SIDE, SIDE))


def maml_gradient(first_order: bool) -> Any:
    def run(patch: Patch) -> Found:
        metalearner, params = maml()
        episode = first_episode()
        gradient, loss, accuracy = meta_gradient(metalearner, params, episode, 5, first_order)
        support, known, query = episode.support[0], episode.support_labels[0], episode.query[0]
        before, after = (metalearner.adapt(params, support, known, steps, create_graph=False) for steps in (4, 5))
        return {
            "query_loss": loss,
            "accuracy_percent": 100 * accuracy,
            "inner_logits_step5": metalearner.call(before, support),
            "query_logits": metalearner.classify(after, support, known, query, WAY),
            "meta_gradient": gradient.values(),
            "head_gradient": gradient["head.weight"],
            "first_conv_gradient": gradient["blocks.0.conv.weight"],
        }

    return run


def mapped_gradient(first_order: bool) -> Any:
    """The same gradient where episodes are computed together."""

    def run(patch: Patch) -> Found:
        gradient, loss, accuracy = meta_gradient(*maml("vmap"), first_episode(), 5, first_order)
        return {"query_loss": loss, "accuracy_percent": 100 * accuracy, "meta_gradient": gradient.values()}

    return run


def evaluation(patch: Patch) -> Found:
    metalearner, params = maml()
    drawn = images(31201, 80, 3, SIDE, SIDE)
    episode = episode_of(drawn[:5], drawn[5:])
    loss, accuracy = metalearner.outer_loss(params, episode, 10, create_graph=False)
    fast = metalearner.adapt(params, drawn[:5], episode.support_labels[0], 10, create_graph=False)
    logits = metalearner.classify(fast, drawn[:5], episode.support_labels[0], drawn[5:], WAY)
    return {"query_logits": logits, "query_loss": loss.detach(), "accuracy_percent": 100 * accuracy}


def scores() -> Score:
    return Score(value(31300, 20, 10, 50).tolist())


def half_width(patch: Patch) -> Found:
    return {"half_width": scores().half_width}


def generator(patch: Patch) -> Found:
    return {"images": fill(Generator(SIDE), 20000)(latents(40000, 4, 256))}


def released_loss(method: Any) -> Any:
    """The method's loss with the released adversarial term: of probabilities, the learner a constant and the target."""

    def adversary(theirs: Tensor, mine: Tensor) -> Tensor:
        agree = theirs.argmax(1) == mine.argmax(1)
        apart = F.kl_div(F.softmax(theirs, 1), F.softmax(mine, 1), reduction="none").sum(1)
        return -(apart * agree).mean()

    def loss(one: Teacher, x: Tensor, y: Tensor) -> Tensor:
        return inversion_loss(method.weights, one, x, y, torch.no_grad()(method.learner.logits), adversary)

    return loss


def five(patch: Patch, iteration: int, released: bool = False) -> tuple[Any, Descent]:
    """An iteration of FREE up to the replay."""
    method = method_of("free", patch, "--num_qur_kd", "2")
    fill(method.generator, 20000)
    descent = watch_iteration(methods.free, patch, 40100, released_loss(method) if released else None)
    patch.setattr(method.replay, "until_no_better", dict)
    method.train_iteration(iteration)
    return method, descent


@cache
def released_call() -> tuple[Any, Descent]:
    """An iteration after warm-up with the released adversarial term: computed once, for reading only."""
    with pytest.MonkeyPatch.context() as patch:
        return five(patch, 20, released=True)


def generation(method: Any, descent: Descent) -> Found:
    """All that a call of inversion leaves but the images."""
    return descent.numbers() | {
        "z_0_after": descent.latents[0],
        "z_3_after": descent.latents[3],
        "outer_gradient": gradients_of(method.generator.parameters()),
        "generator_after": values_of(method.generator),
    }


def last_images(descent: Descent) -> Found:
    return {f"images_{number}": descent.images[5 * number + 4] for number in range(len(OFFSETS))}


def warm_up(patch: Patch) -> Found:
    method, descent = five(patch, 0)
    return generation(method, descent) | last_images(descent)


def adversarial(patch: Patch) -> Found:
    method, descent = five(patch, 20)
    kept = ("loss", "outer_gradient", "generator_after")
    return {name: found for name, found in generation(method, descent).items() if name in kept}


def adversarial_released(patch: Patch) -> Found:
    method, descent = released_call()
    found = generation(method, descent)
    terms = {"adv_term": [loss - ce for loss, ce in zip(found["loss"], found["ce"], strict=True)]}
    return found | terms | last_images(descent)


def kept_images(patch: Patch) -> Found:
    """Those of the teachers whose last step was not their best."""
    _, descent = released_call()
    best = [torch.stack(descent.losses[5 * n : 5 * n + 5]).argmin() for n in range(len(OFFSETS))]
    return {f"images_{n}": descent.recovered[n].batch.images for n in range(len(OFFSETS)) if best[n] != 4}


def classes_kept(patch: Patch) -> Found:
    method, _ = released_call()
    counts = method.memory.counts
    return {"classes_in_memory": counts.nonzero().flatten().tolist(), "files": counts.sum()}


def bytes_kept(cut: bool) -> Any:
    """The last teacher's first class as a memory gives it back, from images as they are or from such that bytes hold."""

    def run(patch: Patch) -> Found:
        method, descent = released_call()
        last = descent.images[-1]
        memory = MemoryBank(len(method.teachers.class_names), 2, SIDE, method.device)
        memory.add(PseudoBatch((255 * last).floor() / 255 if cut else last, labels(), method.teachers[3].class_ids))
        newest_first = memory.examples(2)[:2]
        return {"class_first_two_images_normalised": method.learner.prepare(to_float(newest_first.flip(0)))}

    return run


def after_an_episode(patch: Patch) -> Found:
    metalearner, params = maml()
    metalearner.outer_loss(params, first_episode(), 5, create_graph=True)
    return {"logits": metalearner.call(params, images(30001, 6, 3, SIDE, SIDE))}


def released_divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Of probabilities, and the mean over all entries."""
    return F.kl_div(F.softmax(student_logits, 1), F.softmax(teacher_logits, 1), reduction="none").mean()


def bell(patch: Patch, *, released: bool) -> tuple[Any, Found]:
    """BELL on given images: losses, gradients, the distilled copy, and the learner that followed it."""
    method = method_of("free", patch, "--num_qur_kd", "2")
    batches = [PseudoBatch(x, labels(), one.class_ids) for x, one in zip(given_images(), method.teachers, strict=True)]
    given = [Recovered(batch, torch.zeros(()), [torch.zeros(())] * 12) for batch in batches]
    patch.setattr(methods.free, "invert_each", lambda *args: given)
    patch.setattr(methods.free, "follow", lambda *args: None)
    patch.setattr(method.replay, "until_no_better", dict)
    found: Found = {"losses": []}
    gradients: list[list[Tensor]] = []
    divergence, reptile = released_divergence if released else methods.free.kl_divergence, methods.free.reptile_step

    def noted(theirs: Tensor, mine: Tensor) -> Tensor:
        loss = divergence(theirs, mine)
        found["losses"].append(float(loss.detach()))
        return loss

    def followed(params: dict[str, Tensor], fast: dict[str, Tensor], rate: float) -> None:
        found["fast_after"] = values_of(fast)
        found["gradient_to_optimizer"] = [67 * (params[name] - fast[name]).detach() for name in params]
        reptile(params, fast, rate)

    class Adam(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            gradients.append(gradients_of(self.param_groups[0]["params"]))
            return super().step(closure)

    patch.setattr(methods.free, "kl_divergence", noted)
    patch.setattr(methods.free, "reptile_step", followed)
    patch.setattr(torch.optim, "Adam", Adam)
    method.train_iteration(20)
    found |= {"gradient_teacher_0": gradients[0], "gradient_teacher_3": gradients[3]}
    return method, found | {"learner_after": values_of(method.learner.params)}


def some_of(found: Found, *names: str) -> Found:
    return {name: found[name] for name in names}


def bell_divergence(patch: Patch) -> Found:
    return some_of(bell(patch, released=False)[1], "losses", "gradient_teacher_0", "gradient_teacher_3", "fast_after")


def bell_step(patch: Patch) -> Found:
    return some_of(bell(patch, released=True)[1], "learner_after")


def bell_released(patch: Patch) -> Found:
    found = bell(patch, released=True)[1]
    del found["learner_after"]
    return found


def replaying(patch: Patch) -> Any:
    return method_of("free", patch, "--episode_batch", "2", "--patience", "2")


def replay(patch: Patch) -> Found:
    """A replay, and the update that the sum of the episodes' losses makes."""
    method = replaying(patch)
    other = replaying(patch)
    gradient = summed_gradient(other, 2)
    other.outer.follow(dict(zip(other.learner.params, gradient, strict=True)))
    found = replayed(method, patch)
    return {
        "losses[:1]": [2 * found.losses[0]],  # theirs is the sum
        "accuracies_percent[:2]": found.accuracies[:2],
        "first_gradient": gradient,
        "learner_after_first_update": values_of(other.learner.params),
    }


def replay_scale(patch: Patch) -> Found:
    return {"first_gradient": replayed(replaying(patch), patch).gradients[0]}


def after_bell(patch: Patch, shared: bool) -> Any:
    """The learner that the released BELL leaves, with an Adam of its own or with the one that made that step."""
    difference = bell(patch, released=True)[1]["gradient_to_optimizer"]
    patch.undo()
    method = replaying(patch)
    method.outer.follow(dict(zip(method.learner.params, difference, strict=True)))
    if not shared:
        method.outer.optimizer.state.clear()
    return method


def replay_after_bell(patch: Patch) -> Found:
    """The first update up to its gradient.

    Beyond it all hangs on rounding: the convolutions' biases have gradients that are zero but for it, and BELL's Adam and
    the learner's magnify them.
    """
    method = after_bell(patch, shared=True)
    gradient = summed_gradient(method, 2)
    found = replayed(method, patch)
    return {
        "losses[:1]": [2 * found.losses[0]],
        "accuracies_percent[:1]": found.accuracies[:1],
        "first_gradient": gradient,
    }


def replay_with_its_own_adam(patch: Patch) -> Found:
    return {"learner_after_first_update": replayed(after_bell(patch, shared=False), patch).params[0]}


def pretrained(arch: str, count: int, epochs: int, patch: Patch, accuracies: tuple[float, ...]) -> tuple[Any, Any, Found]:
    """A teacher's training, the state it returns, and what was seen of each step."""
    network = fill(create_model(arch, WAY, SIDE), 2000)
    data = to_uint8(images(34000, count, 3, SIDE, SIDE)), torch.arange(count) % WAY
    norms: list[float] = []
    losses: list[float] = []
    clip, cross_entropy, found = nn.utils.clip_grad_norm_, F.cross_entropy, iter(accuracies)

    def clipped(*args: Any) -> Tensor:
        norms.append(float(norm := clip(*args)))
        return norm

    def noted(*args: Any) -> Tensor:
        losses.append(float((loss := cross_entropy(*args)).detach()))
        return loss

    patch.setattr(torch, "randperm", lambda size, **more: torch.arange(size))
    patch.setattr(nn.utils, "clip_grad_norm_", clipped)
    patch.setattr(pretraining.F, "cross_entropy", noted)
    patch.setattr(pretraining, "accuracy", lambda *args: next(found))
    state, _ = pretraining.train_teacher(
        network, arch, data, data, SPECS["cifar100"], pretraining.Recipe(epochs), torch.Generator(), tqdm(disable=True)
    )
    norm_layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    return (
        network,
        state,
        {
            "losses": losses,
            "gradient_norms_before_clipping": norms,
            "parameters_after": list(network.parameters()),
            "running_statistics_after": [x for layer in norm_layers for x in (layer.running_mean, layer.running_var)],
        },
    )


def pretrain(arch: str, count: int, epochs: int = 1) -> Any:
    return lambda patch: pretrained(arch, count, epochs, patch, (0.1, 0.2))[2]


def pretrained_together(patch: Patch) -> Found:
    """The same teacher trained beside another."""
    networks: Any = [fill(create_model("conv4", WAY, SIDE), offset) for offset in OFFSETS[:2]]
    data = to_uint8(images(34000, 12, 3, SIDE, SIDE)), torch.arange(12) % WAY
    patch.setattr(torch, "randperm", lambda size, **more: torch.arange(size))
    spec, recipe, streams = SPECS["cifar100"], pretraining.Recipe(1), [torch.Generator(), torch.Generator()]
    trained = pretraining.train_together(networks, "conv4", [data] * 2, [data] * 2, spec, recipe, streams, tqdm(disable=True))
    state, statistics = trained[0][0], ("running_mean", "running_var")
    return {
        "parameters_after": [state[name] for name, _ in networks[0].named_parameters()],
        "running_statistics_after": [tensor for name, tensor in state.items() if name.endswith(statistics)],
    }


def returned_state(patch: Patch) -> Found:
    """Whether the state that training returns is the last epoch's, where the first was better."""
    network, state, _ = pretrained("conv4", 12, 2, patch, (0.2, 0.1))
    same = all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    return {"returned_state_is_that_of_the_last_epoch_whichever_was_best": same}


def rates(arch: str) -> list[float]:
    """The learning rate of some epochs."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer, schedule = pretraining.make_optimizer([weight], arch, pretraining.Recipe(epochs=100))
    found = []
    for _ in range(100):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [found[epoch] for epoch in (0, 29, 30, 49, 50, 59, 69, 70, 79, 80, 99)]


CASES: dict[str, Case] = {
    "teacher_conv4_32": Case("equal", teacher_logits),
    "teacher_resnet10_32": Case("equal", resnet("resnet10", 32)),
    "teacher_resnet10_84": Case("equal", resnet("resnet10", 84)),
    "teacher_resnet18_32": Case("equal", resnet("resnet18", 32)),
    "teacher_resnet18_84": Case("equal", resnet("resnet18", 84)),
    "learner_conv4": Case("equal", learner_logits),
    "learner_conv4_fast": Case("equal", learner_fast),
    "learner_conv4_global": Case("equal", learner_global),
    "maml_1shot_second_order": Case("equal", maml_gradient(first_order=False)),
    "maml_1shot_second_order | mapped": Case("equal", mapped_gradient(first_order=False)),
    "maml_1shot_first_order": Case("equal", maml_gradient(first_order=True)),
    "maml_1shot_first_order | mapped": Case("equal", mapped_gradient(first_order=True)),
    "evaluate_1shot": Case("equal", evaluation),
    "confidence": Case("equal", lambda patch: {"mean": scores().mean}),
    "confidence | half-width": Case("differs", half_width, "s with n - 1", Score.__doc__),
    "generator_32": Case("equal", generator),
    "synthesize_warmup": Case("equal", warm_up),
    "synthesize_adv": Case("differs", adversarial, "the code feeds probabilities to `F.kl_div`"),
    "synthesize_adv | with the released term": Case("equal", adversarial_released),
    "synthesize_adv | images": Case("differs", kept_images, "images kept are those of the step with the lowest loss"),
    "memory": Case("differs", classes_kept, "All teachers' images enter the memory bank"),
    "memory | bytes": Case("differs", bytes_kept(cut=False), "Bytes in memory are rounded; the code truncates them"),
    "memory | of images that were cut": Case("equal", bytes_kept(cut=True)),
    "stale_fast_weights": Case("differs", after_an_episode, "whatever fast weights the last episode left behind"),
    "bell": Case("differs", bell_divergence, "The Kullback-Leibler divergence takes log-probabilities and is averaged"),
    "bell | the learner's step": Case("differs", bell_step, "here the learner moves by that difference itself"),
    "bell | with the released divergence": Case("equal", bell_released),
    "replay_alone": Case("equal", replay),
    "replay_alone | scale": Case("differs", replay_scale, "Replay's gradient is the mean over episodes"),
    "replay_after_bell": Case("equal", replay_after_bell),
    "replay_after_bell | Adam": Case(
        "differs", replay_with_its_own_adam, "The replay's Adam sees only the replay's gradients"
    ),
    "pretrain_conv4_1": Case("equal", pretrain("conv4", 12)),
    "pretrain_conv4_1 | together with another": Case("equal", pretrained_together),
    "pretrain_resnet10_1": Case("equal", pretrain("resnet10", 8)),
    "pretrain_resnet18_1": Case("equal", pretrain("resnet18", 8)),
    "pretrain_conv4_2": Case("equal", pretrain("conv4", 12, epochs=2)),
    "pretrain_conv4_2 | the state returned": Case(
        "differs", returned_state, "what they keep is the last epoch's", pretraining.__doc__
    ),
    "pretrain_rates": Case("equal", lambda patch: {arch: rates(arch) for arch in ("conv4", "resnet10", "resnet18")}),
}  # fmt: skip


def test_every_case_has_a_row() -> None:
    assert {case_of(name) for name in CASES} == set(ENTRIES)


SLOW = {"synthesize_warmup", "synthesize_adv | with the released term", "pretrain_resnet18_1", "teacher_resnet18_84"}


@pytest.mark.parametrize("name", rows(CASES, SLOW))
def test_free(name: str, monkeypatch: Patch, record_property: Any) -> None:
    judge(CASES[name], ENTRIES[case_of(name)], methods.free, monkeypatch, record_property)
