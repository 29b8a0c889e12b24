import torch

from methods.evaluation.top1 import agreement, top1

CPU = torch.device("cpu")


def brightest(images: torch.Tensor) -> torch.Tensor:
    return images.mean((2, 3))  # the class is the brightest channel


def darkest(images: torch.Tensor) -> torch.Tensor:
    return -images.mean((2, 3))


def test_right_and_alike() -> None:
    images = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    for number in range(6):
        images[number, number % 3] = 200
    score = top1(brightest, images, torch.tensor([0, 1, 2, 0, 0, 0]), CPU)
    assert list(score.values) == [1, 1, 1, 1, 0, 0]
    assert agreement(brightest, brightest, images, CPU).mean == 1
    assert agreement(brightest, darkest, images, CPU).mean == 0
