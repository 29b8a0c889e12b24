from collections.abc import Callable
from typing import Any

import pytest
import torch

from methods.inversion.pseudo_batch import PseudoBatch
from methods.teachers import probes

pytestmark = pytest.mark.usefixtures("float64")
Build = Callable[..., Any]
OWN = "--dataset cifar100 --inversion_steps 1 --num_recover 4 --probe_images 7 --probe_steps 1".split()


def test_groups_are_formed_once_for_a_pool_and_leave_the_run_alone(
    build: Build, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    invert = probes.invert_pixels
    monkeypatch.setattr(probes, "invert_pixels", lambda *args: calls.append(1) or invert(*args))
    method = build("tgr", *OWN).method
    state = torch.get_rng_state()
    method.prepare(tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert len(calls) == 2
    assert method.groups == [[0, 1]]
    build("tgr", *OWN).method.prepare(tmp_path)
    assert len(calls) == 2  # read from the cache
    build("tgr", *OWN, "--probe", "random").method.prepare(tmp_path)
    build("tgr", *OWN, "--probe_steps", "2").method.prepare(tmp_path)
    assert len(calls) == 6  # whatever enters an embedding makes it another one


def test_the_weights_of_the_two_terms_are_used(build: Build) -> None:
    def loss(*flags: str) -> float:
        method = build("tgr", *OWN, *flags).method
        teacher = method.teachers[0]
        torch.manual_seed(3)
        batch = PseudoBatch(torch.rand(6, 3, 16, 16), torch.tensor([0, 0, 1, 1, 2, 2]), teacher.class_ids)
        return float(method.task_loss(teacher, batch)(method.learner.params).detach())

    truth, imitation = loss("--kd_loss_weight", "0"), loss("--gt_loss_weight", "0")
    assert truth > 0 < imitation
    assert loss("--gt_loss_weight", "2", "--kd_loss_weight", "3") == pytest.approx(2 * truth + 3 * imitation, rel=1e-9)


def test_an_iteration_stays_within_one_group(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("tgr", *OWN, "--patience", "1").method
    method.groups = [[1]]
    met: list[tuple[int, ...]] = []
    task_loss = method.task_loss
    monkeypatch.setattr(method, "task_loss", lambda teacher, batch: met.append(teacher.class_ids) or task_loss(teacher, batch))
    numbers = method.train_iteration(0)
    assert met == [method.teachers[1].class_ids]
    assert numbers["disagreement"] == 0  # nobody to disagree with
    assert int((method.memory.counts > 0).sum()) == 3
