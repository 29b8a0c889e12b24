import copy
from functools import partial

import pytest
import torch
from torch import nn

from datasets.registry import CIFAR
from methods.inversion.generator import InversionWeights, Settings, inversion_loss
from methods.inversion.meta_generator import MetaGenerator
from methods.inversion.pixel import PixelImages, PixelWeights
from methods.inversion.stacked import alike
from methods.metalearners.learner import Learner, LearnerSpec
from methods.teachers.manifest import TeacherRow
from methods.teachers.pool import Teacher
from models import create_model
from models.generator import Generator
from utils.errors import UserError
from utils.images import Augmentation

pytestmark = pytest.mark.usefixtures("float64")
CPU = torch.device("cpu")


def teacher(seed: int, arch: str = "conv4") -> Teacher:
    torch.manual_seed(seed)
    network = create_model(arch, 3, 16)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    class_ids = tuple(range(3 * seed, 3 * seed + 3))
    row = TeacherRow(f"{seed}", arch, class_ids, (), 16, *CIFAR, "cifar100")
    return Teacher(network, row, class_ids)


@pytest.fixture
def mixed() -> list[Teacher]:
    return [teacher(0), teacher(1, "resnet10"), teacher(2), teacher(3)]


def test_teachers_of_a_kind_go_together_as_many_as_may(mixed: list[Teacher]) -> None:
    assert sorted(alike(mixed, 4)) == [[0, 2, 3], [1]]
    assert sorted(alike(mixed, 2)) == [[0, 2], [1], [3]]
    assert alike(mixed, 1) == [[0], [1], [2], [3]]
    narrowed = copy.copy(mixed[0])
    narrowed.outputs = [2, 0, 1]
    assert sorted(alike([mixed[0], narrowed], 2)) == [[0], [1]]  # its outputs come in another order


@pytest.mark.parametrize("gradient_of", ["last", "difference"])
def test_together_the_generators_become_what_they_become_alone(gradient_of: str, mixed: list[Teacher]) -> None:
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in mixed]
    torch.manual_seed(0)
    generator = Generator(16, width=8)
    learner = Learner(LearnerSpec("conv4", 3, 16, *CIFAR), CPU)
    loss = partial(inversion_loss, weights=InversionWeights(1, 0.5, 1), augment=lambda images: images)
    found = []
    for together in (1, 4):
        torch.manual_seed(1)
        settings = Settings(3, gradient_of=gradient_of)
        inverter = MetaGenerator(copy.deepcopy(generator), loss, settings, together=together)
        batches, mean = inverter.invert(mixed, 2, learner.logits)
        found.append((batches, mean, list(inverter.generator.parameters())))
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
    seen = []

    def watched(images: torch.Tensor) -> torch.Tensor:
        moved = Augmentation()(images)
        seen.append(moved)
        return moved

    loss = partial(inversion_loss, weights=InversionWeights(1, 0, 0), augment=watched)
    batches, mean = MetaGenerator(Generator(16, width=8), loss, Settings(1), together=2).invert([mixed[0], mixed[2]], 2)
    assert len(seen) == 1  # one computation for both
    assert [batch.images.shape for batch in batches] == [(6, 3, 16, 16)] * 2
    assert torch.isfinite(torch.tensor(mean))


def test_together_is_for_full_precision() -> None:
    with pytest.raises(UserError, match="leave out --precision bf16"):
        MetaGenerator(Generator(16, width=8), inversion_loss, Settings(precision="bf16"), together=2)


def test_pixels_move_alike_together(mixed: list[Teacher]) -> None:
    values = []
    for together in (1, 3):
        torch.manual_seed(0)
        images = PixelImages(12, 2, 16, *CIFAR, 0.25, PixelWeights(0.01, 0.1, 0.02), True, CPU, together)
        torch.manual_seed(5)
        alone = [place for group in alike(mixed, 3) for place in group]  # in one order, for the same shifts
        loss = images.step([mixed[place] for place in alone])
        values.append((loss, images.values.grad.clone()))
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-9)
    assert torch.allclose(values[0][1], values[1][1], rtol=1e-9, atol=1e-12)
