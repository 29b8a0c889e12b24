from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.given import as_images, as_labels
from utils.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)  # (M, H, W, 3)
WANTED = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


def test_every_way_of_giving_the_same_images(tmp_path: Path) -> None:
    pictures = [Image.fromarray(image) for image in PIXELS]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for given in (
        PIXELS,
        WANTED,
        WANTED.long(),
        pictures,
        paths,
        list(map(str, paths)),
        list(PIXELS),
        list(WANTED),
        [pictures[0], paths[1]],
    ):
        found = as_images(given, 8)
        assert found.dtype == torch.uint8
        assert torch.equal(found, WANTED)
    floats = as_images(WANTED / 255, 8)
    assert floats.dtype == torch.get_default_dtype()
    assert torch.allclose(floats * 255, WANTED.to(floats))


def test_grey_becomes_three_channels_and_sizes_become_one() -> None:
    for grey in (PIXELS[..., 0], PIXELS[..., :1], WANTED[:, :1]):
        assert torch.equal(as_images(grey, 8), WANTED[:, :1].expand(-1, 3, -1, -1))
    assert as_images([PIXELS[0], PIXELS[1, :6, :5]], 4).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (WANTED.float(), "divide by 255"),
        (WANTED / 255 - 0.5, "take the normalisation away"),
        (WANTED / torch.zeros(()), "lie between"),
        (WANTED.long() + 300, "expected bytes"),
        (PIXELS.astype(np.uint16) * 257, "expected bytes"),
        (PIXELS.astype(object), "an array of object"),
        (WANTED * 1j, "sparse or complex"),
        (WANTED > 100, "expected bytes"),
        (WANTED[0], r"expected \(1, 3, H, W\)"),
        (torch.zeros(2, 5, 8, 8), "shape"),
        (torch.zeros(0, 3, 8, 8), "shape"),
        ("a.png", "images are str"),
        ([], "images are an empty list"),
        ([3], "an image is int"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(given: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        as_images(given, 8)


def test_labels_are_plain_values() -> None:
    assert as_labels(torch.tensor([0, 1])) == as_labels(np.array([0, 1])) == as_labels(list(torch.tensor([0, 1]))) == [0, 1]
    assert as_labels(np.array(["a", "b"])) == as_labels(("a", "b")) == ["a", "b"]
    assert as_labels(["owl", " owl "]) == ["owl", "owl"]
    for bad in (torch.eye(2), "ab", [None, 1], [float("nan")], [[1], [2]], None, 3, {1, 2}, {"a": 1}, [("a", 1)]):
        with pytest.raises(UserError):
            as_labels(bad)
