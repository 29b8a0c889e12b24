"""FREE on teachers that are made here: FIVE moves the generator, BELL the learner, and nothing else moves."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import main
from datasets.registry import CIFAR
from methods.free import FREE
from methods.inversion.by_generator import copy_of, invert_each
from methods.metalearners.learner import LearnerSpec
from methods.teachers.pool import TeacherPool

pytestmark = pytest.mark.usefixtures("float64")
Made = Callable[..., FREE]


@pytest.fixture
def free(lively_teacher: Callable, flags_for: Callable[..., list[str]]) -> Made:
    def made(*flags: str) -> FREE:
        teachers = TeacherPool.of([lively_teacher(seed, first_class=2 * seed) for seed in range(3)])
        args = main.parse_args([*flags_for("free"), *flags])
        torch.manual_seed(4)
        return FREE(args, teachers, LearnerSpec("conv4", 3, 16, *CIFAR))

    return made


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_teachers_that_share_classes_share_them_in_the_pool(free: Made) -> None:
    method = free()
    assert [teacher.class_ids for teacher in method.teachers] == [(0, 1, 2), (2, 3, 4), (4, 5, 6)]


def test_warm_up_moves_the_generator_alone(free: Made) -> None:
    method = free("--warmup", "1")
    before, learner = state_of(method.generator), {name: value.clone() for name, value in method.learner.params.items()}
    numbers = method.train_iteration(0)
    assert set(numbers) == {"inversion_loss"}
    assert any(not torch.equal(value, before[name]) for name, value in method.generator.state_dict().items())
    assert all(torch.equal(value, learner[name]) for name, value in method.learner.params.items())
    assert int(method.memory.counts.sum()) == 0


@pytest.mark.parametrize("which", ["last", "sum"])
def test_five_moves_the_generator_by_the_sum_of_the_inner_gradients(free: Made, which: str) -> None:
    """Adam(.5, .999) on the gradients that the inversions of this iteration's teachers end with."""
    method = free("--warmup", "1", "--meta_grad", which)
    reference = copy.deepcopy(method.generator)
    optimizer = torch.optim.Adam(reference.parameters(), method.args.Glr, betas=(0.5, 0.999))
    state = torch.get_rng_state()
    teachers = method.teachers.sample(2, 3)
    loss = partial(method.loss, student=None)  # nobody contends in warm-up
    found = invert_each(teachers, 8, copy_of(reference), loss, method.descent)
    for place, parameter in enumerate(reference.parameters()):
        parameter.grad = sum(one.gradient[place] for one in found)
    optimizer.step()
    torch.set_rng_state(state)
    method.train_iteration(0)
    for ours, theirs in zip(method.generator.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_bell_goes_the_given_part_of_the_way_of_a_distilled_copy(free: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """One Adam step on batchmean KL(t || s) for each teacher in random order, then theta += eps (theta' - theta)."""
    method = free("--reptile_lr", "0.25")
    method.teachers.augmentation = lambda images: images  # so that they are the same here
    monkeypatch.setattr(method.replay, "until_no_better", dict)
    kept, add = [], method.memory.add
    monkeypatch.setattr(method.memory, "add", lambda *batches: (kept.extend(batches), add(*batches)))
    start = {name: value.detach().clone() for name, value in method.learner.params.items()}
    orders, randperm = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *what, **more: (orders.append(drawn := randperm(*what, **more)), drawn)[1])
    method.train_iteration(0)
    fast = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.Adam(fast.values(), lr=method.args.outer_lr)
    by_classes = {teacher.class_ids: teacher for teacher in method.teachers}
    for place in orders[-1].tolist():
        x = kept[place].images
        with torch.no_grad():
            t = by_classes[kept[place].class_ids](x).softmax(1)
        s = F.log_softmax(functional_call(method.learner.network, fast, (method.learner.prepare(x),)), 1)
        optimizer.zero_grad()
        ((t * (t.log() - s)).sum() / len(x)).backward()
        optimizer.step()
    for name, value in method.learner.params.items():
        assert torch.allclose(value, start[name] + 0.25 * (fast[name] - start[name]), rtol=0, atol=1e-9), name


def test_teachers_stay_as_they_are_and_looking_changes_nothing(free: Made) -> None:
    method = free()
    before = [state_of(teacher) for teacher in method.teachers]
    generator, memory = state_of(method.generator), method.memory.counts.clone()
    batches = method.recover([0, 2])
    assert [batch.class_ids for batch in batches] == [(0, 1, 2), (4, 5, 6)]
    assert all(torch.equal(value, generator[name]) for name, value in method.generator.state_dict().items())
    assert torch.equal(method.memory.counts, memory)
    method.train_iteration(0)
    for teacher, state in zip(method.teachers, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
        assert not any(module._forward_pre_hooks for module in teacher.modules())
