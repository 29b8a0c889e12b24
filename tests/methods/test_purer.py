from collections.abc import Callable
from typing import Any

import pytest
import torch

import main
from methods.purer import GradientSwitch
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float64")
Build = Callable[..., Any]
OWN = ("--dataset", "cifar100", "--synthesis_per_class", "4")


def fired(switch: GradientSwitch, accuracies: list[float]) -> list[int]:
    """The updates after which the next step of the pixels goes against the learner."""
    result = []
    for update, accuracy in enumerate(accuracies, start=1):
        switch.note(update, accuracy)
        result += [update] if switch.on else []
    return result


def test_the_switch_fires_at_the_start_and_after_six_updates_in_vain() -> None:
    falling = [1.0] + [0.5] * 30
    assert fired(GradientSwitch(True, 2, fires_at_start=True), falling) == [2, 9, 16, 23, 30]
    assert fired(GradientSwitch(True, 2, fires_at_start=False), falling) == [9, 16, 23, 30]
    assert fired(GradientSwitch(False, 2, fires_at_start=True), falling) == []
    rising = [0.01 * step for step in range(30)]
    assert fired(GradientSwitch(True, 2, fires_at_start=False), rising) == []


def test_pools_and_defaults_of_both_papers(build: Build, tiny: list[str]) -> None:
    purer, plus = build("purer", *OWN), build("purer", *OWN, "--candidate_size", "1")
    assert [len(row.class_ids) for row in purer.teachers.rows] == [3, 4]  # disjoint: a remainder of one joins the last
    assert [len(row.class_ids) for row in plus.teachers.rows] == [3, 3]
    both = (main.parse_args(["--method", "purer", *tiny, *more]) for more in ([], ["--candidate_size", "1"]))
    found = [(args.Glr, args.adv, args.average, args.episode_train, args.val_interval) for args in both]
    assert found == [(0.25, True, True, 240_000, 2_000), (1e-2, True, False, 240_000, 2_000)]
    own = main.parse_args(["--method", "purer", "--teachers", "zoo.csv"])  # of which nobody knows the networks yet
    assert own.average is False
    assert (purer.num_iterations, purer.val_interval) == (2, 1)  # two episodes an update
    assert build("purer", *OWN, "--candidate_size", "1", "--no-adv").args.adv is False


def test_the_switched_gradient_makes_the_images_harder(build: Build) -> None:
    """Without the teachers' terms, a step down the switched gradient raises the learner's loss on the same episode."""
    method = build("purer", *OWN).method

    def outer_loss() -> torch.Tensor:
        torch.manual_seed(7)
        return method.outer.loss(method.draw(1))

    before = outer_loss()
    gradient = torch.autograd.grad(-2 * before, method.pixels.values)[0]
    assert int((gradient.flatten(1).abs().sum(1) > 0).sum()) == 3  # the classes of one episode
    with torch.no_grad():
        method.pixels.values -= 0.05 * gradient / gradient.norm() * 10
    assert float(outer_loss().detach()) > float(before.detach())


def test_the_gradient_that_the_pixels_follow_when_the_switch_is_on(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teachers' gradient minus adv_scale times that of an episode's outer loss; without the switch, the teachers' alone."""
    method = build("purer", *OWN, "--adv_scale", "2").method
    stepped: list[torch.Tensor] = []
    monkeypatch.setattr(method.pixels, "step", lambda gradient: stepped.append(gradient.clone()))
    for on in (True, False):
        method.switch.on = on
        torch.manual_seed(7)
        method.train_iteration(0)
    method = build("purer", *OWN, "--adv_scale", "2").method  # as it was
    torch.manual_seed(7)
    teachers = method.teachers.sample(len(method.teachers))
    easier, _ = method.pixels.gradient(teachers, method.loss)
    harder = torch.autograd.grad(method.outer.loss(method.draw(1)), method.pixels.values)[0]
    assert torch.allclose(stepped[0], easier - 2 * harder, rtol=1e-9, atol=1e-12)
    torch.manual_seed(7)
    easier, _ = method.pixels.gradient(method.teachers.sample(len(method.teachers)), method.loss)
    assert torch.allclose(stepped[1], easier, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metalearner", ["maml", "anil", "protonet"])
def test_the_gradient_against_the_learner_is_the_same_batched(build: Build, metalearner: str) -> None:
    """As on a GPU, where episodes run under vmap."""
    method = build("purer", *OWN, "--metalearner", metalearner, "--inner_lr", "0.1").method
    gradients = []
    for execution in ("loop", "vmap"):
        network = method.learner.network
        method.outer.metalearner = type(method.metalearner)(network, 0.1, execution)
        torch.manual_seed(7)
        gradients.append(torch.autograd.grad(method.outer.loss(method.draw(1)), method.pixels.values)[0])
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-12)


def test_average_starts_from_the_teachers_mean(build: Build) -> None:
    method = build("purer", *OWN, "--candidate_size", "1", "--average").method
    weights = [teacher.network.blocks[0].conv.weight for teacher in (method.teachers[0], method.teachers[1])]
    assert torch.allclose(method.learner.params["blocks.0.conv.weight"], torch.stack(weights).mean(0), rtol=1e-9)


def test_calibration_changes_meta_test_only(build: Build) -> None:
    plain, calibrated = (build("purer", *OWN, "--inner_lr", "0.5", *more) for more in ([], ["--icfil", "--icfil_steps", "3"]))
    state = torch.get_rng_state()
    both = [{split: one.evaluate(split)["cifar100"].values for split in one.exams} for one in (plain, calibrated)]
    assert both[0]["meta_val"] == both[1]["meta_val"]
    assert both[0]["meta_test"] != both[1]["meta_test"]
    assert torch.equal(state, torch.get_rng_state())  # so that evaluating does not change the run


def test_too_few_images_for_an_episode(tiny: list[str]) -> None:
    with pytest.raises(UserError, match=r"1 shots \+ 2 queries = 3"):
        main.parse_args(["--method", "purer", *tiny, "--synthesis_per_class", "2"])
