import pytest
import torch

from datasets.episodes import EpisodeSampler, EpisodeShape, draw_slots, fixed_episodes, make_episodes
from datasets.split import ImageSplit
from datasets.subsets import disjoint_classes, draw_classes, train_and_held_out
from utils.errors import UserError


@pytest.fixture
def split() -> ImageSplit:
    """6 classes of 10 images; every pixel of image i is i."""
    images = torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1).expand(60, 3, 4, 4)
    return ImageSplit(images, torch.arange(6).repeat_interleave(10), list("abcdef"))


def test_episodes_are_grouped_by_class_and_never_repeat_an_image(split: ImageSplit) -> None:
    support, query = EpisodeSampler(split, EpisodeShape(4, 2, 3)).indices(20, torch.Generator().manual_seed(0))
    assert support.shape == (20, 8)
    assert query.shape == (20, 12)
    classes = split.labels[support].view(20, 4, 2)
    assert torch.equal(classes[..., 0], classes[..., 1])
    assert torch.equal(split.labels[query].view(20, 4, 3), classes[..., :1].expand(-1, -1, 3))
    for one in torch.cat([support, query], 1):
        assert len(one.unique()) == 20
    assert all(len(row.unique()) == 4 for row in classes[..., 0])


def test_labels_follow_the_order_of_the_classes() -> None:
    episodes = make_episodes(torch.zeros(2, 6, 1, 1, 1), torch.zeros(2, 9, 1, 1, 1), way=3)
    assert episodes.support_labels.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert episodes.query_labels.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 2
    assert len(episodes[:1]) == 1


def test_evaluation_episodes_are_the_same_for_everybody(split: ImageSplit) -> None:
    shape = EpisodeShape(3, 1, 2)
    first = fixed_episodes(split, shape, 5, "glyphs meta_test")
    torch.rand(17)
    again = fixed_episodes(split, shape, 7, "glyphs meta_test")
    assert torch.equal(first[0], again[0][:5])
    assert not torch.equal(first[0], fixed_episodes(split, shape, 5, "glyphs meta_val")[0])


def test_impossible_episodes_are_refused_with_the_numbers(split: ImageSplit) -> None:
    with pytest.raises(UserError, match="6 classes, an episode needs 7"):
        EpisodeSampler(split, EpisodeShape(7, 1, 1))
    with pytest.raises(UserError, match=r"10 images, an episode needs 5 shots \+ 6 queries = 11"):
        EpisodeSampler(split, EpisodeShape(5, 5, 6))


def test_too_few_classes_make_no_episode() -> None:
    with pytest.raises(UserError, match="2 classes have images enough, an episode needs 3"):
        draw_slots(torch.tensor([5, 1, 5]), EpisodeShape(3, 1, 3), 4)
    with pytest.raises(ValueError, match="15 images an episode are none of 4 classes"):
        make_episodes(torch.zeros(2, 15, 3, 4, 4), torch.zeros(2, 15, 3, 4, 4), 4)


def test_teachers_classes() -> None:
    assert draw_classes(64, 5, 3, seed_value=0) == draw_classes(64, 5, 3, seed_value=0)
    assert draw_classes(64, 5, 3, seed_value=0) != draw_classes(64, 5, 4, seed_value=0)
    groups = disjoint_classes(64, 5)
    assert [len(group) for group in groups] == [5] * 12 + [4]
    assert sorted(label for group in groups for label in group) == list(range(64))
    assert [len(group) for group in disjoint_classes(71, 5)] == [5] * 13 + [6]  # a remainder of one joins
    assert len(disjoint_classes(100, 5)) == 20


def test_held_out_images_are_held_out_from_all_teachers(split: ImageSplit) -> None:
    (train, labels), (held_out, _) = train_and_held_out(split, [4, 1], seed_value=0)
    assert len(train) == 16
    assert len(held_out) == 4
    assert labels.tolist() == [0] * 8 + [1] * 8
    seen = set(train[:, 0, 0, 0].tolist())
    assert seen <= set(range(40, 50)) | set(range(10, 20))
    (other, _), (also_held_out, _) = train_and_held_out(split, [1, 0], seed_value=0)
    unseen = {value for value in held_out[:, 0, 0, 0].tolist() if value < 20}
    assert unseen == {value for value in also_held_out[:, 0, 0, 0].tolist() if value >= 10}
    assert not unseen & set(other[:, 0, 0, 0].tolist())
