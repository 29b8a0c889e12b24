import torch

from datasets.split import ImageSplit
from methods.evaluation.judge import beside_real
from methods.inversion.pseudo_batch import PseudoBatch


def test_rows_of_few_images_are_filled_up_with_white() -> None:
    """So that a picture's rows stay the classes'."""
    batch = PseudoBatch(torch.zeros(3, 3, 4, 4), torch.tensor([0, 0, 1]), (0, 1))
    split = ImageSplit(torch.zeros(10, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1] * 5), ["a", "b"])
    tiles = beside_real(batch, split, [0, 1], 6, torch.Generator())
    there = [*[True] * 2, *[False] * 4, *[True] * 5, False, True, *[False] * 5, *[True] * 5, False]
    assert (tiles == 0).all(3).all(2).all(1).tolist() == there
