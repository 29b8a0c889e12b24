import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from utils.errors import UserError

Flags = Callable[..., list[str]]
Build = Callable[..., Any]


def test_a_round_begins_with_new_tasks_and_ends_when_the_accuracy_rises_no_more(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build("teapot", "--patience", "2").method
    accuracies, note = iter([0.4, 0.5, 0.5, 0.5, 0.9, 0.1, 0.1]), method.patience.note
    monkeypatch.setattr(method.patience, "note", lambda accuracy: note(next(accuracies)))
    assert ["inversion_loss" in method.train_iteration(number) for number in range(7)] == [True] + [False] * 3 + [True] + [
        False
    ] * 2


@pytest.mark.parametrize(("maxbatch", "sets"), [("4", 2), ("3", 3), ("1", 1)])
def test_support_and_query_sets_are_kept_apart(maxbatch: str, sets: int, build: Build) -> None:
    method = build("teapot", "--num_sup_train", "2", "--maxbatch", maxbatch).method
    method.train_iteration(0)
    known = method.tasks.classes
    assert 3 <= len(known) <= 6
    assert method.tasks.support.images.shape[1] == sets * 2  # images of a set
    assert method.tasks.query.images.shape[1] == sets * 2
    episodes = method.tasks.sample(5, method.learner)
    assert episodes.support.shape[:2] == (5, 3 * 2)
    assert episodes.query.shape[:2] == (5, 3 * 2)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("how", [[], ["--inductive"]])
def test_an_interpolation_ends_at_both_tasks(build: Build, share: float, how: list[str]) -> None:
    method = build("teapot", *how).method
    method.train_iteration(0)
    tasks = method.tasks.sample(2, method.learner)
    mixed = method.interpolated(tasks, share)[0]
    one = tasks[int(share) : int(share) + 1]
    alone = method.metalearner.outer_loss(method.learner.params, one, 1, create_graph=False)[0]
    assert float(mixed.detach()) == pytest.approx(float(alone.detach()), rel=1e-4)


def test_the_policy_asks_those_whose_tasks_served(build: Build) -> None:
    method = build("teapot", "--schedule_weight", "--candidate_size", "2").method
    policy = method.policy
    policy.candidates, policy.chosen = torch.tensor([0, 1]), torch.tensor([1])
    policy.step(reward=0.9)
    assert policy.weights[1] > 1 > policy.weights[0]
    method.train_iteration(0)
    assert len(policy.chosen) == 2


def test_real_labels_are_marked(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("teapot"), "--dataset", "cifar100", "--reward", "meta_val", "--schedule_weight", "--no_floors"])
    result = json.loads(next((tmp_path / "runs").glob("*/result.json")).read_text())
    assert "real labels" in result["examined"]
    with pytest.raises(UserError, match=r"--reward meta_val: .* one image set"):
        main.parse_args([*flags_for("teapot"), "--dataset", "mix", "--reward", "meta_val"])


def test_without_distillation_new_tasks_enter_memory_alone(build: Build) -> None:
    method = build("teapot", "--noteacher").method
    method.distilled = lambda *task: (torch.zeros(()), torch.tensor(0.75))
    before = {name: value.clone() for name, value in method.learner.params.items()}
    assert method.train_iteration(0)["accuracy"] == 0.75  # what the policy is told is looked at, and not learnt
    assert method.tasks.ready
    assert all(torch.equal(value, before[name]) for name, value in method.learner.params.items())
