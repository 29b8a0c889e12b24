import pytest
import torch

from datasets.episodes import EpisodeShape
from methods.inversion.pseudo_batch import PseudoBatch
from methods.memory import images
from methods.memory.bank import MemoryBank
from methods.memory.images import ImagePool
from methods.metalearners.learner import Learner, LearnerSpec

DEVICE = torch.device("cpu")
SHAPE = EpisodeShape(way=3, shot=2, query=4)


def batch(class_ids: tuple[int, ...], per_class: int, size: int = 16) -> PseudoBatch:
    """Every pixel of class c's i-th image is the byte 30 c + i."""
    values = torch.tensor([(30 * c + i) / 255 for c in class_ids for i in range(per_class)])
    labels = torch.arange(len(class_ids)).repeat_interleave(per_class)
    return PseudoBatch(values.view(-1, 1, 1, 1).expand(-1, 3, size, size), labels, class_ids)


def learner() -> Learner:
    return Learner(LearnerSpec("conv4", 3, 16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), DEVICE)


def class_of(images: torch.Tensor) -> torch.Tensor:
    return (images[..., 0, 0, 0] * 255 / 30 + 1e-3).floor()


def test_episodes_come_from_classes_with_enough_images() -> None:
    torch.manual_seed(0)
    memory = MemoryBank(8, 20, 16, DEVICE)
    memory.add(batch((0, 2, 4), 6))
    memory.add(batch((6, 7), 5))
    assert memory.ready_for(SHAPE)
    assert memory.counts.tolist() == [6, 0, 6, 0, 6, 0, 5, 5]
    episodes = memory.sample_episodes(50, SHAPE, learner())
    assert episodes.support.shape == (50, 6, 3, 16, 16)
    assert episodes.query.shape == (50, 12, 3, 16, 16)
    support, query = class_of(episodes.support).view(50, 3, 2), class_of(episodes.query).view(50, 3, 4)
    assert torch.equal(support[..., :1].expand(-1, -1, 4), query)  # labels match images
    assert set(support.unique().tolist()) == {0.0, 2.0, 4.0}
    for one in torch.cat([episodes.support, episodes.query], 1):
        assert len(one[:, 0, 0, 0].unique()) == 18  # no image twice


def test_mixed_classes_over_teachers() -> None:
    torch.manual_seed(0)
    memory = MemoryBank(8, 20, 16, DEVICE)
    memory.add(batch((0, 1), 6))
    memory.add(batch((5, 6), 6))
    classes = class_of(memory.sample_episodes(60, SHAPE, learner()).support).view(60, 3, 2)[..., 0]
    assert any({0.0, 5.0} <= set(row.tolist()) for row in classes)


def test_the_ring_forgets_the_oldest() -> None:
    memory = MemoryBank(2, 8, 16, DEVICE)
    memory.add(batch((0,), 6))
    memory.add(batch((0,), 6))
    assert memory.counts.tolist() == [8, 0]
    kept = sorted(memory.images[0, :, 0, 0, 0].tolist())
    assert kept == [0, 1, 2, 3, 4, 4, 5, 5]
    assert memory.examples(4)[:, 0, 0, 0].tolist() == [5, 4, 3, 2]


def test_images_of_other_sizes_are_resized_on_the_way_in() -> None:
    memory = MemoryBank(2, 8, 16, DEVICE)
    memory.add(batch((1,), 3, size=32))
    assert memory.images[1, :3].unique().tolist() == [30, 31, 32]


def test_state_survives() -> None:
    memory, copy = MemoryBank(3, 8, 16, DEVICE), MemoryBank(3, 8, 16, DEVICE)
    memory.add(batch((2, 0), 5))
    copy.load_state_dict(memory.state_dict())
    assert torch.equal(copy.images, memory.images)
    assert torch.equal(copy.counts, memory.counts)


def grey(first: int, count: int) -> torch.Tensor:
    """Images whose byte is their number."""
    return (torch.arange(first, first + count) / 255).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_a_pool_grows_beyond_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BLOCK_BYTES", 5 * 3 * 4 * 4)  # of five images
    pool = ImagePool(4, DEVICE, near=10)
    for first in range(0, 28, 7):
        pool.add(grey(first, 7))
    assert len(pool) == 28
    assert (len(pool.near), pool.count_near, pool.count_far, len(pool.far)) == (10, 10, 18, 4)
    torch.manual_seed(0)
    drawn = pool.sample(2000)
    assert drawn.dtype == torch.uint8
    share = torch.bincount(drawn[:, 0, 0, 0].long(), minlength=28) / 2000
    assert float(share.min()) > 0.5 / 28  # every image, near or far, comes about as often
    assert float(share.max()) < 2 / 28
    assert pool.newest(3)[:, 0, 0, 0].tolist() == [25, 26, 27]
    assert pool.newest(20)[:, 0, 0, 0].tolist() == list(range(8, 28))
    other = ImagePool(4, DEVICE, near=10)
    other.load_state_dict(pool.state_dict())
    earlier = ImagePool(4, DEVICE, near=10)
    earlier.load_state_dict({"stores": [pool.near, torch.cat(pool.far)[:18]]})
    assert earlier.newest(28).equal(pool.newest(28))
    pool.add(grey(40, 2))
    other.add(grey(40, 2))
    torch.manual_seed(2)
    one = pool.sample(50)
    torch.manual_seed(2)
    assert torch.equal(other.sample(50), one)


def test_a_device_holds_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "NEAR_BYTES", 7 * 3 * 4 * 4)
    pool = ImagePool(4, DEVICE, near=200_000)
    pool.add(grey(0, 9))
    assert (len(pool.near), pool.count_far) == (7, 2)


def test_a_pool_resizes_what_it_takes() -> None:
    pool = ImagePool(8, DEVICE, near=5)
    pool.add(torch.rand(2, 3, 4, 4))
    assert pool.sample(3).shape == (3, 3, 8, 8)


@pytest.mark.parametrize(("before", "now"), [(4, 7), (7, 4)])
@pytest.mark.parametrize("number", [3, 5, 17])
def test_a_ring_of_another_capacity_gives_its_newest_images(before: int, now: int, number: int) -> None:
    """As earlier versions had; nothing that was never filled may count."""
    old, new = (MemoryBank(2, capacity, 4, torch.device("cpu")) for capacity in (before, now))
    for value in range(number):
        old.add(PseudoBatch(torch.full((2, 3, 4, 4), (value + 1) / 255), torch.tensor([0, 1]), (0, 1)))
    new.load_state_dict(old.state_dict())
    kept = min(number, before, now)
    assert new.counts.tolist() == [kept, kept]
    assert sorted(new.examples(kept)[:kept, 0, 0, 0].tolist()) == list(range(number - kept + 1, number + 1))
    new.add(PseudoBatch(torch.full((2, 3, 4, 4), 99 / 255), torch.tensor([0, 1]), (0, 1)))
    assert int(new.examples(1)[0, 0, 0, 0]) == 99
