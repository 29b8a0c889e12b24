import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import main
from methods.evaluation.exams import examine
from methods.metalearners import get_metalearner
from methods.teachers.ensemble import EnsembleLearner, learner_from
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from methods.teachers.views import VIEWS, view_of
from utils import checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float64")
DEVICE = torch.device("cpu")


@pytest.fixture
def pool(lively_teacher: Callable[..., Teacher]) -> TeacherPool:
    return TeacherPool.of([lively_teacher(0), lively_teacher(1, first_class=3), lively_teacher(2, arch="resnet10")])


@pytest.mark.parametrize("view", VIEWS)
def test_it_sees_what_its_teachers_see(view: str, pool: TeacherPool) -> None:
    """And so does what comes back from its state."""
    learner = EnsembleLearner.of(pool, [0, 2], view, 16)
    images = (torch.rand(4, 3, 16, 16) * 255).to(torch.uint8)
    wanted = torch.cat([view_of(pool, teacher_id, view, images) for teacher_id in (0, 2)], 1)
    with torch.no_grad():
        assert torch.allclose(learner.logits(images), wanted, atol=1e-9)
        again = learner_from(learner.state_dict(), DEVICE)
        assert torch.equal(again.logits(images), learner.logits(images))
    assert again.spec == learner.spec


def test_code_that_built_a_teacher_is_not_run_again(pool: TeacherPool) -> None:
    state = EnsembleLearner.of(pool, [0], "features", 16).state_dict()
    state["teachers"] = [state["teachers"][0] | {"arch": "os:system"}]
    with pytest.raises(UserError, match="built by os:system, which is not run"):
        learner_from(state, DEVICE)


def test_what_a_run_of_frozen_teachers_keeps_scores_as_the_run_did(
    build: Callable[..., object], flags_for: Callable[..., list[str]], tmp_path: Path
) -> None:
    main.main([*flags_for("teacher_ncm"), "--run_name", "mine"])
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    learner = learner_from(checkpoint.load(tmp_path / "runs" / "mine" / "best.pt")["learner"], DEVICE)
    (exam,) = build("teacher_ncm").exams["meta_test"]  # type: ignore[attr-defined]
    score = examine(learner, get_metalearner("ncm")(learner.network), exam, 1)
    assert score.values == pytest.approx(result["episodes"]["cifar100"])
