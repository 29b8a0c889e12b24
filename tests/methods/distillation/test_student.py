import pytest
import torch
import torch.nn.functional as F

from datasets.registry import CIFAR
from methods.distillation.divergences import regression, relational
from methods.distillation.student import LearnersStudent, TargetScale
from methods.metalearners.learner import Learner, LearnerSpec
from utils.errors import UserError
from utils.images import to_uint8

pytestmark = pytest.mark.usefixtures("float64")
DEVICE = torch.device("cpu")


def learner(arch: str = "conv4", outputs: int = 6, global_pool: bool = False) -> Learner:
    torch.manual_seed(0)
    return Learner(LearnerSpec(arch, outputs, 16, *CIFAR, global_pool=global_pool, norm="fixed"), DEVICE)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    images = to_uint8(torch.rand(64, 3, 16, 16) * torch.rand(64, 3, 1, 1))
    return images, images.to(torch.float64).mean((2, 3)).repeat(1, 2) / 255


def test_a_student_learns_what_it_is_told() -> None:
    images, targets = data()
    student = LearnersStudent(learner(), 0.01, 40)
    losses = [student.epoch(images, targets, regression, 16) for _ in range(10)]
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("arch", "global_pool"),
    [("conv4", False), ("conv4", True), pytest.param("resnet10", False, marks=pytest.mark.slow)],
)
def test_the_learner_computes_what_the_student_does_in_evaluation(arch: str, global_pool: bool) -> None:
    images, targets = data()
    student = LearnersStudent(learner(arch, global_pool=global_pool), 0.01, 40)
    student.epoch(images, targets, regression, 16)
    student.teach()
    student.network.eval()
    x = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        wanted = student.network(student.learner.prepare(x))
        assert torch.allclose(student.learner.logits(x), wanted, rtol=1e-9, atol=1e-12)
        alone = torch.cat([student.learner.logits(image[None]) for image in x])
    assert torch.allclose(alone, wanted, rtol=1e-9, atol=1e-12)  # no image depends on its neighbours


def test_going_on_is_as_if_never_stopped() -> None:
    images, targets = data()
    start = LearnersStudent(learner(), 0.01, 8).state_dict()
    ends = []
    for stopped in (False, True):
        student, fresh = LearnersStudent(learner(), 0.01, 8), LearnersStudent(learner(), 0.01, 8)
        student.load_state_dict(start)
        torch.manual_seed(2)
        student.epoch(images, targets, regression, 16)
        if stopped:
            fresh.load_state_dict(student.state_dict())
            student = fresh
        student.epoch(images, targets, regression, 16)
        student.teach()
        ends.append(student.learner.params)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_run_that_another_optimizer_began_does_not_go_on() -> None:
    student = LearnersStudent(learner(), 0.01, 8)
    state = student.state_dict()
    state["optimizer"] = torch.optim.Adam(student.network.parameters()).state_dict()
    state["network"] = {name: value + 1 for name, value in state["network"].items()}
    student.load_state_dict(state)  # it can be scored
    assert torch.equal(student.network.state_dict()["head.bias"], state["network"]["head.bias"])
    with pytest.raises(UserError, match="start a new one"):
        student.check_goes_on()
    student.load_state_dict(LearnersStudent(learner(), 0.01, 8).state_dict())
    student.check_goes_on()


def test_regression_is_one_for_knowing_the_mean_alone() -> None:
    targets = torch.randn(200, 5) * 3 + 1
    assert float(regression(targets.mean(0).expand_as(targets), targets)) == pytest.approx(1.0, abs=1e-9)
    assert float(regression(targets, targets)) == 0


def test_relational_by_hand_and_blind_to_turning_and_scale() -> None:
    torch.manual_seed(0)
    targets = torch.randn(7, 4)
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    assert float(relational(3 * targets @ turn + 1, targets)) < 1e-9
    outputs, total = torch.randn(7, 3), 0.0
    s, t = (F.normalize(values - values.mean(0)) for values in (outputs, targets))
    for b in range(7):
        others = [i for i in range(7) if i != b]
        p = torch.softmax(torch.stack([t[b] @ t[i] for i in others]) / 0.1, 0)
        q = torch.softmax(torch.stack([s[b] @ s[i] for i in others]) / 0.1, 0)
        total += float((p * (p / q).log()).sum()) / 7
    assert float(relational(outputs, targets)) == pytest.approx(total, rel=1e-9)


def test_a_fixed_learner_can_be_adapted() -> None:
    """Gradients reach scale and shift."""
    taught = learner()
    taught.logits(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(value.grad is not None for value in taught.params.values())


def test_what_is_regressed_has_mean_zero_and_variance_one() -> None:
    """Over all outputs together, so that they keep their shares; the head gives it back in the targets' own unit."""
    torch.manual_seed(0)
    targets = torch.randn(300, 6) * torch.linspace(0.001, 0.02, 6) + torch.linspace(-1, 1, 6)
    scale = TargetScale(6, DEVICE)
    assert torch.equal(scale(targets), targets)
    scale.fit(targets)
    assert torch.allclose(scale(targets).mean(0), torch.zeros(6), atol=1e-9)
    assert torch.allclose(scale(targets).square().mean(), torch.ones(()), atol=1e-9)
    head = {"head.weight": torch.randn(6, 4), "head.bias": torch.randn(6), "else": torch.ones(1)}
    features, undone = torch.randn(5, 4), scale.undone(head)
    answers = F.linear(features, undone["head.weight"], undone["head.bias"])
    assert torch.allclose(scale(answers), F.linear(features, head["head.weight"], head["head.bias"]), atol=1e-9)
    assert torch.equal(undone["else"], head["else"])


def test_a_learner_answers_in_the_targets_own_unit() -> None:
    """A hundredfold smaller targets, far from 0, are learnt as well."""
    images, targets = data()
    student = LearnersStudent(learner(), 0.01, 160)
    small = 5 + targets / 100
    student.scale.fit(small)
    for _ in range(40):
        loss = student.epoch(images, small, regression, 16)
    student.teach()
    with torch.no_grad():
        error = regression(student.learner.logits(images), small)
    assert loss < 0.2
    assert error < 0.3
