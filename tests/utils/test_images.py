import pytest
import torch

from utils.images import Augmentation, normalise, recolour, resize, shift_and_flip, take, to_float, to_uint8

pytestmark = pytest.mark.usefixtures("float64")


def test_bytes_survive_the_way_through_floats() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(images)), images)
    assert to_uint8(torch.tensor([-1.0, 2.0])).tolist() == [0, 255]


def test_normalise_by_hand() -> None:
    image = torch.full((2, 3, 1, 1), 0.5)
    assert normalise(image, (0.5, 0.25, 0.0), (1.0, 0.5, 0.25))[1].flatten().tolist() == [0.0, 0.5, 2.0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_are_taken_as_by_indexing_in_their_layout(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    images, index = torch.rand(7, 3, 4, 5).contiguous(memory_format=layout), torch.randint(7, (2, 3))
    taken = take(images, index)
    assert torch.equal(taken, images[index])
    assert taken.flatten(0, 1).is_contiguous(memory_format=layout)
    leaf = images.clone().requires_grad_()
    weights = torch.rand(2, 3, 3, 4, 5)
    one, other = (torch.autograd.grad((some * weights).sum(), leaf)[0] for some in (take(leaf, index), leaf[index]))
    assert torch.allclose(one, other, rtol=1e-9)


def test_every_image_is_augmented_by_itself() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(1.0, 65.0).view(1, 1, 8, 8).expand(64, 1, 8, 8)
    moved = shift_and_flip(ramp, padding=2)
    assert len({tuple(image.flatten().tolist()) for image in moved}) > 20
    for image in moved[:, 0]:  # each is a window of the padded picture or of its mirror image
        padded = torch.nn.functional.pad(ramp[0, 0], (2, 2, 2, 2))
        windows = [view[r : r + 8, c : c + 8] for view in (padded, padded.flip(1)) for r in range(5) for c in range(5)]
        assert any(torch.equal(image, window) for window in windows)


def test_augmentation_passes_gradients_and_can_leave_the_side() -> None:
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    torch.manual_seed(0)
    shift_and_flip(images, padding=0).sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))
    assert torch.equal(shift_and_flip(images, padding=0, flip=False), images)


def test_recolouring_permutes_and_inverts_whole_channels() -> None:
    torch.manual_seed(0)
    image = torch.tensor([0.1, 0.3, 0.6]).view(1, 3, 1, 1).expand(2000, 3, 2, 2)
    changed = recolour(image)
    assert all(len(channel.unique()) == 1 for picture in changed[:20] for channel in picture)
    kinds = {tuple(round(float(v), 1) for v in picture[:, 0, 0]) for picture in changed}
    assert len(kinds) == 48  # 6 orders, 8 choices of inversion
    assert all(sorted(min(v, round(1 - v, 1)) for v in kind) == [0.1, 0.3, 0.4] for kind in kinds)


def test_augmentation_does_what_the_image_set_allows() -> None:
    images = torch.rand(8, 3, 8, 8)
    torch.manual_seed(0)
    plain = Augmentation(flip=False)(images)
    torch.manual_seed(0)
    assert torch.equal(plain, shift_and_flip(images, flip=False))
    assert not torch.equal(Augmentation(flip=False, recolour=True)(images), plain)


def test_resize_keeps_constants_and_sizes() -> None:
    assert torch.allclose(resize(torch.full((2, 3, 32, 32), 0.3), 84), torch.full((2, 3, 84, 84), 0.3), rtol=1e-9)
    images = torch.rand(1, 3, 16, 16)
    assert resize(images, 16) is images
