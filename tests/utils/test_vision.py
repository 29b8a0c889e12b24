from utils.vision import import_torchvision


def test_torchvision_works_beside_any_torch() -> None:
    assert import_torchvision() is import_torchvision()
    from torchvision.utils import make_grid

    assert make_grid.__module__ == "torchvision.utils"
