import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.inversion.bn_statistics import record_bn_distances
from methods.inversion.by_pixel import PRIORS, PixelImages, deep_inversion, invert_pixels, jitter
from methods.inversion.terms import inversion_loss, total_variation
from models import create_model
from utils.images import ImageForm

pytestmark = pytest.mark.usefixtures("float64")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
FORM, CPU = ImageForm(16, MEAN, STD), torch.device("cpu")


class Known(nn.Module):
    """A conv4 with lively running statistics that knows some classes of the pool."""

    def __init__(self, class_ids: tuple[int, ...], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = create_model("conv4", len(class_ids), 16).eval().requires_grad_(False)
        self.image_size = 16
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        self.class_ids, self.way, self.kind = class_ids, len(class_ids), len(class_ids)

    def features_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.network.features_and_logits(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))


def pixels(classes: int = 4, lr: float = 0.25, clamp: bool = True) -> PixelImages:
    torch.manual_seed(0)
    return PixelImages(classes, 3, FORM, lr, CPU, clamp)


def loss(teacher: Known, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return inversion_loss(PRIORS, teacher, FORM.to_images(x), labels, pixels=x)


def step(images: PixelImages, teachers: list[Known]) -> float:
    gradient, mean = images.gradient(teachers, loss)
    images.step(gradient)
    return mean


def test_total_variation_by_hand() -> None:
    image = torch.tensor([[[[0.0, 3.0], [4.0, 1.0]]]])
    # right: -3, 3; down: -4, 2; falling: -1; rising: 1
    assert float(total_variation(image)) == pytest.approx(math.sqrt(18) + math.sqrt(20) + 1 + 1, rel=1e-9)
    assert float(total_variation(torch.ones(2, 3, 5, 5))) == 0


def test_jitter_rolls_the_whole_batch_alike() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, 8)
    seen = set()
    for _ in range(60):
        moved = jitter(x)
        shifts = [s for s in ((r, c) for r in range(-2, 3) for c in range(-2, 3)) if torch.equal(x.roll(s, (2, 3)), moved)]
        assert len(shifts) == 1
        seen.add(shifts[0])
    assert len(seen) > 10


def test_a_step_descends_the_plain_sum_over_teachers() -> None:
    """Each teacher counts once, sees its own classes in its own order, and adds CE + bn BN + tv TV + l2 L2."""
    weights = {"ce": 1.0, "tv": 0.01, "bn": 0.1, "l2": 0.02}
    teachers = [Known((2, 0), 1), Known((1, 3, 2), 2)]
    ours = pixels(clamp=False)
    reference = ours.values.detach().clone().requires_grad_()
    torch.manual_seed(5)
    gradient_of_ours, mean_loss = ours.gradient(
        teachers, lambda teacher, x, labels: inversion_loss(weights, teacher, FORM.to_images(x), labels, pixels=x)
    )
    ours.step(gradient_of_ours)
    torch.manual_seed(5)
    total = 0
    for teacher in teachers:
        x = jitter(torch.cat([reference[class_id] for class_id in teacher.class_ids]))
        labels = torch.tensor([label for label in range(teacher.way) for _ in range(3)])
        with record_bn_distances(teacher.network) as distances:
            logits = teacher.network(x)
        total = total + F.cross_entropy(logits, labels) + 0.1 * sum(distances) + 0.01 * total_variation(x) + 0.02 * x.norm()
    (gradient,) = torch.autograd.grad(total, reference)
    assert torch.allclose(ours.values.grad, gradient, rtol=1e-9, atol=1e-12)
    large = gradient.abs() > 1e-4  # Adam's first step is one lr against the sign
    assert torch.allclose((reference - ours.values)[large], 0.25 * gradient[large].sign(), atol=1e-4)  # eps of Adam
    assert mean_loss == pytest.approx(float(total.detach()) / 2, rel=1e-9)


def test_teachers_stay_as_they_are() -> None:
    teacher = Known((0, 1), 1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    step(pixels(), [teacher])
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in teacher.modules())


def test_another_gradient_joins_the_same_step() -> None:
    ours = pixels(clamp=False, lr=1e-3)
    before = ours.values.detach().clone()
    torch.manual_seed(1)
    gradient, _ = ours.gradient([Known((0, 1), 1)], loss)
    gradient[3] += 1e6
    ours.step(gradient)
    assert torch.allclose(before[3] - ours.values[3], torch.full_like(before[3], 1e-3), rtol=1e-3)  # Adam: one lr downhill
    assert torch.equal(before[2], ours.values[2].detach())  # a class that no teacher of the step knows does not move


def test_steps_teach_the_images_their_classes_within_range() -> None:
    teacher = Known((3, 1), 4)
    teacher.network.head.weight.mul_(10)  # an untrained head hardly tells anything apart
    ours = pixels()
    step(ours, [teacher])
    first = ours.batch_of(teacher)
    for _ in range(25):
        step(ours, [teacher])
    batch = ours.batch_of(teacher)
    assert batch.class_ids == (3, 1)
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(batch.images, ours.unit.detach()[[3, 1]].flatten(0, 1).clamp(0, 1))
    before, after = (float(F.cross_entropy(teacher(some.images), some.labels)) for some in (first, batch))
    assert after < 0.8 * before
    assert -1e-6 <= float(ours.unit.min()) < float(ours.unit.max()) <= 1 + 1e-6


def test_a_checkpoint_holds_pixels_and_optimizer() -> None:
    teacher, one, other = Known((0, 1), 1), pixels(), pixels()
    step(one, [teacher])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for images in (one, other):
        torch.manual_seed(3)
        step(images, [teacher])
    assert torch.equal(one.values, other.values)


def test_one_teacher_alone_needs_no_other_classes() -> None:
    """The same steps as in a bank of just its classes; the class ids stay those of the pool."""
    teacher, twin = Known((7, 3), 4), Known((0, 1), 4)
    torch.manual_seed(2)
    batch = invert_pixels(teacher, FORM.noise(6, CPU), FORM, PRIORS, 4, 0.1)
    torch.manual_seed(2)
    bank = PixelImages(2, 3, FORM, 0.1, CPU)
    for _ in range(4):
        step(bank, [twin])
    assert batch.class_ids == (7, 3)
    assert torch.equal(batch.images, bank.batch_of(twin).images)
    assert torch.equal(batch.labels, bank.batch_of(twin).labels)


def test_pixels_may_begin_with_images() -> None:
    start = torch.rand(6, 3, 16, 16)
    subject = Known((4, 9, 2), seed=0)
    begun = invert_pixels(subject, FORM.from_images(start), FORM, PRIORS, 1, 1e-6)
    assert torch.allclose(begun.images, start, atol=1e-4)
    assert begun.class_ids == (4, 9, 2)


def test_deep_inversion_finds_what_is_asked_for() -> None:
    """The loss wants a grey of its own from each image; pixels stay images, and the best step's are kept."""
    wanted, losses = torch.tensor([0.1, 0.5, 0.9]), []

    def loss_of(images: torch.Tensor) -> torch.Tensor:
        assert float(images.min()) > -1e-5 or not losses  # clipped after each step
        losses.append(float((images.mean((1, 2, 3)) - wanted).square().sum().detach()))
        return (images.mean((1, 2, 3)) - wanted).square().sum()

    torch.manual_seed(0)
    images, best = deep_inversion(loss_of, 3, ImageForm(8, MEAN, STD), 60, 0.1, CPU)
    assert images.shape == (3, 3, 8, 8)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert best == pytest.approx(min(losses), rel=1e-9)
    assert best < 0.1 * losses[0]
