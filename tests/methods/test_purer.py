import pytest
import torch

import main
from methods import get_method
from methods.purer import PURER, GradientSwitch
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float64")


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


def build(tiny: list[str], *more: str) -> PURER:
    argv = ["--method", "purer", *tiny, "--dataset", "cifar100", "--synthesis_per_class", "4", *more]
    torch.manual_seed(0)
    method = get_method("purer")(main.parse_args(argv), torch.device("cpu"))
    assert isinstance(method, PURER)
    return method


def test_pools_and_defaults_of_both_papers(tiny: list[str]) -> None:
    purer, plus = build(tiny), build(tiny, "--candidate_size", "1")
    assert [len(row.class_ids) for row in purer.teachers.rows] == [3, 4]  # disjoint: a remainder of one joins the last
    assert [len(row.class_ids) for row in plus.teachers.rows] == [3, 3]
    assert (purer.args.Glr, purer.args.adv, purer.args.episode_train) == (0.25, False, 60_000)
    assert (plus.args.Glr, plus.args.adv, plus.args.episode_train) == (1e-3, True, 240_000)
    assert (purer.num_iterations, purer.val_interval) == (30_000, 1_000)  # two episodes an update
    assert build(tiny, "--candidate_size", "1", "--no-adv").args.adv is False


def test_the_switched_gradient_makes_the_images_harder(tiny: list[str]) -> None:
    """With the teachers' terms silenced, a step must raise the learner's loss on the same episode."""
    method = build(tiny, "--adv_scale", "2", "--Glr", "1e-3")

    def outer_loss() -> float:
        torch.manual_seed(7)
        return float(-method.against_learner()) / 2

    before = outer_loss()
    torch.manual_seed(7)
    gradient = torch.autograd.grad(method.against_learner(), method.pixels.values)[0]
    assert int((gradient.flatten(1).abs().sum(1) > 0).sum()) == 3  # the classes of one episode
    with torch.no_grad():
        method.pixels.values -= 0.05 * gradient / gradient.norm() * 10
    assert outer_loss() > before


@pytest.mark.parametrize("metalearner", ["maml", "anil", "protonet"])
def test_the_gradient_against_the_learner_is_the_same_batched(tiny: list[str], metalearner: str) -> None:
    """As on a GPU, where episodes run under vmap."""
    method = build(tiny, "--metalearner", metalearner, "--inner_lr", "0.1")
    gradients = []
    for execution in ("loop", "vmap"):
        network = method.learner.network
        method.metalearner = type(method.metalearner)(network, 0.1, execution)
        torch.manual_seed(7)
        gradients.append(torch.autograd.grad(method.against_learner(), method.pixels.values)[0])
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-12)


def test_average_starts_from_the_teachers_mean(tiny: list[str]) -> None:
    method = build(tiny, "--candidate_size", "1", "--average")
    weights = [teacher.network.blocks[0].conv.weight for teacher in (method.teachers[0], method.teachers[1])]
    assert torch.allclose(method.learner.params["blocks.0.conv.weight"], torch.stack(weights).mean(0), rtol=1e-9)


def test_calibration_changes_meta_test_only(tiny: list[str]) -> None:
    plain, calibrated = (build(tiny, "--inner_lr", "0.5", *more) for more in ([], ["--icfil", "--icfil_steps", "3"]))
    calibrated.learner.load_state_dict(plain.learner.state_dict())
    state = torch.get_rng_state()
    scores = [{split: method.evaluate(split)["cifar100"].values for split in method.exams} for method in (plain, calibrated)]
    assert scores[0]["meta_val"] == scores[1]["meta_val"]
    assert scores[0]["meta_test"] != scores[1]["meta_test"]
    assert torch.equal(state, torch.get_rng_state())  # so that looking does not change the run


def test_too_few_images_for_an_episode(tiny: list[str]) -> None:
    with pytest.raises(UserError, match=r"1 shots \+ 2 queries = 3"):
        main.parse_args(["--method", "purer", *tiny, "--synthesis_per_class", "2"])
