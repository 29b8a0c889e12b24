import copy
from collections.abc import Callable

import pytest
import torch

from datasets.registry import CIFAR
from methods.inversion.by_generator import BETAS, Descent, copy_of, follow, invert_each, mean_loss
from methods.inversion.by_pixel import PixelImages
from methods.inversion.stacked import Stack, alike
from methods.inversion.terms import TERMS, inversion_loss
from methods.metalearners.learner import Learner, LearnerSpec
from methods.teachers.teacher import Teacher
from models.generator import Generator
from utils.errors import UserError
from utils.images import Augmentation, ImageForm

pytestmark = pytest.mark.usefixtures("float64")
CPU = torch.device("cpu")


@pytest.fixture
def mixed(lively_teacher: Callable) -> list[Teacher]:
    archs = ("conv4", "resnet10", "conv4", "conv4")
    return [lively_teacher(seed, arch=arch, first_class=3 * seed) for seed, arch in enumerate(archs)]


def test_teachers_of_a_kind_go_together_as_many_as_may(mixed: list[Teacher]) -> None:
    assert sorted(alike(mixed, 4)) == [[0, 2, 3], [1]]
    assert sorted(alike(mixed, 2)) == [[0, 2], [1], [3]]
    assert alike(mixed, 1) == [[0], [1], [2], [3]]
    narrowed = copy.copy(mixed[0])
    narrowed.outputs = [2, 0, 1]
    assert sorted(alike([mixed[0], narrowed], 2)) == [[0], [1]]  # its outputs come in another order


def test_heads_of_another_width_or_with_a_spare_output_do_not_go_together(lively_teacher: Callable) -> None:
    three, four = lively_teacher(0), lively_teacher(1, way=4)
    first = Teacher(four.network, four.class_names[:3], four.form, arch="conv4")  # of four outputs it knows three
    assert first.outputs == three.outputs
    assert first.unmasked.outputs == four.outputs
    assert sorted(alike([three, first], 2)) == [[0], [1]]
    assert sorted(alike([four, first.unmasked], 2)) == [[0], [1]]


def test_what_is_not_written_for_stacked_teachers_is_refused(mixed: list[Teacher]) -> None:
    stack = Stack([mixed[0], mixed[2]])
    with pytest.raises(AttributeError, match="features of stacked teachers"):
        stack.losses(lambda teacher, x: teacher.features(x).sum(), torch.rand(2, 1, 3, 16, 16))


@pytest.mark.parametrize("gradient_of", ["last", "difference"])
def test_together_the_generators_become_what_they_become_alone(gradient_of: str, mixed: list[Teacher]) -> None:
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in mixed]
    torch.manual_seed(0)
    generator = Generator(16, width=8)
    learner = Learner(LearnerSpec("conv4", 3, 16, *CIFAR), CPU)
    weights: dict[str, float] = dict.fromkeys(TERMS, 0.01) | {"ce": 1.0, "bn": 0.5, "adv": 1.0}  # whatever they look at
    found = []

    def loss(teacher: Teacher, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return inversion_loss(weights, teacher, images, labels, learner.logits)

    for together in (1, 4):
        torch.manual_seed(1)
        own = copy.deepcopy(generator)
        recovered = invert_each(mixed, 2, copy_of(own), loss, Descent(3, gradient_of=gradient_of, together=together))
        follow(torch.optim.Adam(own.parameters(), 1e-3, betas=BETAS), [one.gradient for one in recovered])
        found.append(([one.batch for one in recovered], mean_loss(recovered), list(own.parameters())))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-9)
    for alone, stacked in zip(found[0][0], found[1][0], strict=True):
        assert alone.class_ids == stacked.class_ids
        assert torch.equal(alone.labels, stacked.labels)
        assert torch.allclose(alone.images, stacked.images, rtol=0, atol=1e-9)
    for one, other, start in zip(found[0][2], found[1][2], generator.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)
        assert float((one - start).abs().max()) > 1e-4  # they moved at all
    for one, state in zip(mixed, before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in one.state_dict().items())
        assert not any(module._forward_pre_hooks for module in one.modules())


def test_together_each_is_augmented_by_itself(mixed: list[Teacher]) -> None:
    sizes = []

    def loss(teacher: Teacher, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        moved = Augmentation()(images)
        sizes.append(moved.shape)
        return inversion_loss({"ce": 1.0}, teacher, moved, labels)

    pair = [mixed[0], mixed[2]]
    recovered = invert_each(pair, 2, copy_of(Generator(16, width=8)), loss, Descent(1, together=2))
    assert len(sizes) == 1  # one computation for both
    assert [one.batch.images.shape for one in recovered] == [(6, 3, 16, 16)] * 2
    assert all(bool(torch.isfinite(one.loss)) for one in recovered)


def test_together_is_for_full_precision() -> None:
    with pytest.raises(UserError, match="leave out --precision bf16"):
        Descent(precision="bf16", together=2)


def test_pixels_move_alike_together(mixed: list[Teacher]) -> None:
    form, weights, values = ImageForm(16, *CIFAR), {"ce": 1.0, "tv": 0.01, "bn": 0.1, "l2": 0.02}, []

    def loss(teacher: Teacher, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return inversion_loss(weights, teacher, form.to_images(x), labels, pixels=x)

    for together in (1, 3):
        torch.manual_seed(0)
        images = PixelImages(12, 2, form, 0.25, CPU)
        torch.manual_seed(5)
        alone = [place for group in alike(mixed, 3) for place in group]  # in one order, for the same shifts
        values.append(images.gradient([mixed[place] for place in alone], loss, together))
    assert values[0][1] == pytest.approx(values[1][1], rel=1e-9)
    assert torch.allclose(values[0][0], values[1][0], rtol=1e-9, atol=1e-12)
