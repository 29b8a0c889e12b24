"""TEAPOT beside the released code: every case of teapot.json is a row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.comparison import FORM, SIDE, WAY, Case, case_of, conv4_teacher, fill_learner, filled, judge
from reference.formula import cases, images, latents, value
from torch import Tensor

import main
import methods.teapot
from datasets.episodes import Episodes, EpisodeShape, make_episodes
from examples.attacked_pool import sizes
from methods.inversion import by_generator
from methods.inversion.pseudo_batch import PseudoBatch
from methods.memory.tasks import TaskMemory
from methods.metalearners.learner import LearnerSpec
from methods.teachers.policy import TeacherPolicy, policy_gradient
from methods.teachers.pool import TeacherPool
from methods.teapot import TEAPOT
from models.generator import ConditionalGenerator
from utils.metrics import Patience

pytestmark = pytest.mark.usefixtures("float64")
ENTRIES = cases("teapot")
Patch = pytest.MonkeyPatch
Found = dict[str, Any]
TWICE = torch.arange(WAY).repeat(2)
WIDTH = 64


def method_of(patch: Patch, *flags: str) -> TEAPOT:
    """Of teachers of offsets 100, 200, 300, 400 and a learner of offset 0; nothing is augmented."""
    pool = TeacherPool.of([conv4_teacher(offset) for offset in (100, 200, 300, 400)])
    patch.setattr(pool, "augmentation", lambda x: x)
    args = main.parse_args(["--method", "teapot", *flags])
    method = TEAPOT(args, pool, LearnerSpec("conv4", WAY, SIDE, FORM.mean, FORM.std))
    fill_learner(method.learner, 0)
    return method


def batch(k: int, per_class: int, grouped: bool = False) -> PseudoBatch:
    labels = torch.arange(WAY).repeat_interleave(per_class) if grouped else torch.arange(WAY).repeat(per_class)
    return PseudoBatch(images(k, len(labels), 3, SIDE, SIDE), labels, tuple(range(WAY)))


def gradient(method: TEAPOT, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(method.learner.params.values()), allow_unused=True, materialize_grads=True))


def generator() -> Any:
    return filled(ConditionalGenerator(SIDE, TWICE, WAY), 400)


def conditional_generator(patch: Patch, tmp_path: Path) -> Found:
    made = generator()
    found = made(latents(600, 10, 256))
    probe = value(610, found.numel(), 1.0).view_as(found)
    return {"images": found, "gradient": list(torch.autograd.grad((found * probe).sum(), list(made.parameters())))}


def inversion(patch: Patch, tmp_path: Path) -> Found:
    found: Found = {"losses": []}
    for steps in ("1", "3"):
        method, made = method_of(patch, "--inversion_steps", steps), generator()
        patch.setattr(by_generator, "draw_latents", lambda *_: latents(600, 10, 256))
        losses: list[Tensor] = []

        def loss(*what: Any, method: TEAPOT = method, losses: list[Tensor] = losses) -> Tensor:
            losses.append(method.loss(*what))
            return losses[-1]

        recovered = by_generator.invert_one(method.teachers[0], TWICE, made, loss, method.descent)
        found["losses"] = [float(one.detach()) for one in losses]
        found[f"generator_after_{'one_step' if steps == '1' else 'three_steps'}"] = list(made.parameters())
        found["images"] = recovered.batch.images
    return found


def distilled(patch: Patch, tmp_path: Path, *flags: str, name: str = "gradient") -> Found:
    method = method_of(patch, *flags)
    loss, _ = method.distilled(method.teachers[0], batch(700, 2), batch(701, 2))
    return {"loss": float(loss.detach()), name: gradient(method, loss)}


def distilled_by_prototypes(patch: Patch, tmp_path: Path) -> Found:
    method = method_of(patch)
    asked = method.learner.prepare(batch(701, 2).images)
    seen = method.learner.prepare(batch(700, 2).images)
    logits = method.metalearner.classify(method.learner.params, seen, TWICE, asked, WAY)
    return distilled(patch, tmp_path) | {"logits": logits, "teacher_logits": method.teachers[0](batch(701, 2).images)}


def adapted(patch: Patch, tmp_path: Path) -> Found:
    return distilled(patch, tmp_path, "--metalearner", "maml")


def adapted_first_order(patch: Patch, tmp_path: Path) -> Found:
    found = distilled(patch, tmp_path, "--metalearner", "maml", "--first_order", name="first_order_gradient")
    return {"first_order_gradient": found["first_order_gradient"]}


def four_new_tasks(method: TEAPOT, teachers: list[Any]) -> list[tuple[Tensor, Tensor]]:
    return [method.distilled(one, batch(700 + 2 * i, 1), batch(701 + 2 * i, 2)) for i, one in enumerate(teachers)]


def update(method: TEAPOT, tasks: list[tuple[Tensor, Tensor]], prefix: str = "", gradient: str = "gradient") -> Found:
    """What a step on tasks computes."""
    steps: list[list[Tensor]] = []
    follow = method.outer.follow
    method.outer.follow = lambda found: (steps.append(list(found.values())), follow(found))[1]  # type: ignore[method-assign]
    numbers = method.follow(tasks)
    return {
        f"{prefix}losses": [float(loss.detach()) for loss, _ in tasks],
        f"{prefix}mean": numbers["loss"],
        f"{prefix}{gradient}": steps[0],
        f"{prefix}learner_after_adam": list(method.learner.params.values()),
    }


def own_teachers(patch: Patch, tmp_path: Path) -> Found:
    method = method_of(patch)
    return update(method, four_new_tasks(method, list(method.teachers)), "own_teacher.")


def as_released(patch: Patch, tmp_path: Path) -> Found:
    method = method_of(patch)
    found = update(method, four_new_tasks(method, list(method.teachers)), "released.")
    return {name: found[name] for name in ("released.mean", "released.gradient")}


def tasks(*numbers: int) -> Episodes:
    """Of queries with two images a class, side by side."""
    support = torch.stack([images(800 + 2 * j, 5, 3, SIDE, SIDE) for j in numbers])
    query = torch.stack([images(801 + 2 * j, 10, 3, SIDE, SIDE) for j in numbers])
    return make_episodes(support, query, WAY)


def prepared(method: TEAPOT, *numbers: int) -> Episodes:
    drawn = tasks(*numbers)
    return make_episodes(method.learner.prepare(drawn.support), method.learner.prepare(drawn.query), WAY)


def plain_task(method: TEAPOT, number: int, patch: Patch) -> tuple[Tensor, Tensor]:
    patch.setattr(torch, "rand", lambda *_: torch.tensor(0.5))
    patch.setattr(method.tasks, "sample", lambda count, learner: prepared(method, number))
    return method.remembered()


def plain(patch: Patch, tmp_path: Path) -> Found:
    method = method_of(patch)
    loss, _ = plain_task(method, 0, patch)
    return {"loss": float(loss.detach()), "gradient": gradient(method, loss)}


def interpolated(patch: Patch, tmp_path: Path) -> Found:
    method = method_of(patch)
    loss, _ = method.interpolated(prepared(method, 0, 1), 0.3)
    return {"loss": float(loss.detach()), "gradient": gradient(method, loss)}


def four_of_memory(patch: Patch, tmp_path: Path) -> Found:
    method = method_of(patch)
    drawn = [
        plain_task(method, 0, patch), method.interpolated(prepared(method, 1, 2), 0.3),
        plain_task(method, 3, patch), method.interpolated(prepared(method, 4, 5), 0.85),
    ]  # fmt: skip
    return update(method, drawn, gradient="gradient.all")


def filled_memory(sets: int) -> tuple[TaskMemory, list[list[int]]]:
    memory = TaskMemory(WAY, max(1, sets // 2), EpisodeShape(WAY, 1, 3), 8, torch.device("cpu"))
    order, counts = [3, 0, 4, 1, 2], []
    for n in range(12):
        support, query = images(580 + 2 * n, 5, 3, 8, 8), images(581 + 2 * n, 15, 3, 8, 8)
        labels = torch.arange(WAY)
        memory.add(PseudoBatch(support, labels, tuple(order)), PseudoBatch(query, labels.repeat(3), tuple(order)))
        counts.append([int(memory.support.counts[3]), int(memory.query.counts[3])])
    return memory, counts


def memories(patch: Patch, tmp_path: Path) -> Found:
    return {f"batches {sets}.support_and_query_images_of_class_3": filled_memory(sets)[1] for sets in (1, 2, 10, 20)}


def stored_bytes(patch: Patch, tmp_path: Path) -> Found:
    memory, _ = filled_memory(1)
    return {"bytes_of_the_first_query_image_of_class_3_first_ten": memory.query.images[3, 0].flatten()[:10].tolist()}


def rounds(patch: Patch, tmp_path: Path) -> Found:
    given = ENTRIES["10 rounds"]["inputs"]
    patience, due, found = Patience(given["generate_interval"]), True, []
    for update_number, accuracy in enumerate(given["accuracies"], start=1):
        found += [update_number] if due else []
        due = patience.note(accuracy)
    return {"earlyStop 2.updates_with_new_tasks": found}


def policy(patch: Patch, tmp_path: Path) -> Found:
    given = ENTRIES["11 policy"]["inputs"]
    made, places = TeacherPolicy(given["pool"], given["pool"], 0.1), {1: [2, 0, 9, 5], 9: [1, 7, 3, 10], 18: [0, 4, 11, 6]}
    candidates = torch.tensor(given["candidates"])
    steps, baselines, weights = [], [], {}
    step = made.step
    for number, accuracy in enumerate(given["accuracies"], start=1):
        if number in places:
            made.candidates, made.chosen = candidates, candidates[places[number]]
        made.step = lambda reward, number=number: (steps.append(number), step(reward))[1]  # type: ignore[method-assign]
        made.note(accuracy / 100, number, number in given["rounds_end_after_updates"])
        baselines.append(100 * made.baseline)
        weights[number] = made.weights.tolist()
    found: Found = {"updates_with_a_policy_step": steps, "baseline_after_each_update": baselines}
    found |= {f"weights_after_update_{number}": weights[number] for number in (4, 8, 9, 20, 22)}
    found["probabilities_at_the_end"] = made.weights.softmax(0).tolist()
    return {f"rewardType 2.{name}": own for name, own in found.items()}


def one_policy_gradient(patch: Patch, tmp_path: Path) -> Found:
    candidates = torch.tensor([4, 0, 7, 11, 2, 9])
    return {"gradient": policy_gradient(value(900, 12, 1.0), candidates, candidates[[2, 0, 5, 3]], 33.5 - 30.0).tolist()}


def pools(patch: Patch, tmp_path: Path) -> Found:
    found: Found = {}
    for name, wanted in ENTRIES["13 attacked pools"]["outputs"].items():
        if isinstance(wanted, dict):
            other, untrained = sizes(100, float(name.split()[1]), float(name.split()[3]))
            label = name.replace(".", "_")
            found |= {f"{label}/all": 100 + other + untrained, f"{label}/other_set": other, f"{label}/untrained": untrained}
    return found


def wanted_pools() -> Found:
    outputs = ENTRIES["13 attacked pools"]["outputs"]
    return {
        f"{name}/{part}".replace(".", "_"): n
        for name, one in outputs.items()
        if isinstance(one, dict)
        for part, n in one.items()
    }


CASES: dict[str, Case] = {
    "1 conditional generator": Case("equal", conditional_generator),
    "2 inversion call": Case("equal", inversion),
    "3 distillation of one task, ProtoNet": Case("equal", distilled_by_prototypes),
    "4 distillation of one task, MAML": Case("equal", adapted),
    "4 distillation of one task, MAML | first order": Case("equal", adapted_first_order),
    "5 distillation update of four new tasks": Case("equal", own_teachers),
    "5 distillation update of four new tasks | released": Case(
        "differs", as_released, "A task is distilled from its own teacher"
    ),
    "6 plain memory task, ProtoNet": Case("equal", plain),
    "7 interpolated memory task": Case("equal", interpolated),
    "8 memory update of four tasks": Case("equal", four_of_memory),
    "9 memory": Case("equal", memories),
    "9 memory | bytes": Case("differs", stored_bytes, "Bytes in memory are rounded"),
    "10 rounds": Case("equal", rounds),
    "11 policy": Case("equal", policy),
    "12 one policy gradient, fewer candidates than teachers": Case("equal", one_policy_gradient),
    "13 attacked pools": Case("equal", pools),
    "14 refusing classes (method `reject`, typed by no script)": Case("nothing", None, "the method `reject` is not here"),
}


def test_every_case_has_a_row() -> None:
    assert {case_of(name) for name in CASES} == set(ENTRIES)


@pytest.mark.parametrize("name", CASES)
def test_teapot(name: str, monkeypatch: Patch, tmp_path: Path, record_property: Any) -> None:
    outputs = wanted_pools() if name.startswith("13") else ENTRIES[case_of(name)]["outputs"]

    def run(make: Callable[..., Any]) -> Found:
        return make(monkeypatch, tmp_path)

    judge(CASES[name], outputs, methods.teapot, run, record_property)
