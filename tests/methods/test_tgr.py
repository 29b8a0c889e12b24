import pytest
import torch

import main
from methods import get_method, tgr
from methods.inversion.subjects import PseudoBatch
from methods.tgr import TGR

pytestmark = pytest.mark.usefixtures("float64")


def build(tiny: list[str], *more: str) -> TGR:
    own = "--method tgr --dataset cifar100 --inversion_steps 1 --num_recover 4 --probe_images 7 --probe_steps 1"
    torch.manual_seed(0)
    method = get_method("tgr")(main.parse_args([*own.split(), *tiny, *more]), torch.device("cpu"))
    assert isinstance(method, TGR)
    return method


def test_groups_are_formed_once_for_a_pool_and_leave_the_run_alone(
    tiny: list[str], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    invert = tgr.invert_alone
    monkeypatch.setattr(tgr, "invert_alone", lambda *args: calls.append(1) or invert(*args))
    method = build(tiny)
    state = torch.get_rng_state()
    method.prepare(tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert len(calls) == 2
    assert method.groups == [[0, 1]]
    build(tiny).prepare(tmp_path)
    assert len(calls) == 2  # read from the cache
    build(tiny, "--probe", "random").prepare(tmp_path)
    build(tiny, "--probe_steps", "2").prepare(tmp_path)
    assert len(calls) == 6  # whatever enters an embedding makes it another one


def test_the_weights_of_the_two_terms_are_used(tiny: list[str]) -> None:
    def loss(*flags: str) -> float:
        method = build(tiny, *flags)
        teacher = method.teachers[0]
        torch.manual_seed(3)
        batch = PseudoBatch(torch.rand(6, 3, 16, 16), torch.tensor([0, 0, 1, 1, 2, 2]), teacher.class_ids)
        return float(method.task_loss(teacher, batch)(method.learner.params).detach())

    truth, imitation = loss("--kd_loss_weight", "0"), loss("--gt_loss_weight", "0")
    assert truth > 0 < imitation
    assert loss("--gt_loss_weight", "2", "--kd_loss_weight", "3") == pytest.approx(2 * truth + 3 * imitation, rel=1e-9)


def test_an_iteration_stays_within_one_group(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(tiny, "--patience", "1")
    method.groups = [[1]]
    seen: list[tuple[int, ...]] = []
    align = method.align
    monkeypatch.setattr(
        method, "align", lambda teachers, batches: seen.extend(t.class_ids for t in teachers) or align(teachers, batches)
    )
    numbers = method.train_iteration(0)
    assert seen == [method.teachers[1].class_ids]
    assert numbers["disagreement"] == 0  # nobody to disagree with
    assert int((method.memory.counts > 0).sum()) == 3
