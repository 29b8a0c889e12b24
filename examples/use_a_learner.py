"""Show a learner two new classes and ask it about other images: three lines of Python.

    python examples/use_a_learner.py runs/free-glyphs-5w1s-conv4

Takes any run directory of main.py; the new classes are letters drawn here, which needs no data set.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods.predict import FewShotClassifier
from utils import cli


def drawing(kind: str, count: int) -> torch.Tensor:
    """Images (count, 3, 32, 32) in [0, 1]: a bar that stands or lies, somewhere, in some colour, on some ground."""
    images = torch.rand(count, 3, 1, 1).expand(-1, -1, 32, 32).clone()
    for image in images:
        start, middle = torch.randint(2, 10, (2,)).tolist()
        rows, columns = slice(start, start + 20), slice(middle + 6, middle + 11)
        image[:, rows, columns] = torch.rand(3, 1, 1)
    return images if kind == "standing" else images.transpose(2, 3)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser("examples/use_a_learner.py", description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory of main.py")
    run = parser.parse_args(argv).run
    torch.manual_seed(0)
    support = torch.cat([drawing("standing", 5), drawing("lying", 5)])
    classifier = FewShotClassifier.load(run).fit(support, ["standing"] * 5 + ["lying"] * 5)
    answers = classifier.predict(torch.cat([drawing("standing", 50), drawing("lying", 50)]))
    right = sum(answer == wanted for answer, wanted in zip(answers, ["standing"] * 50 + ["lying"] * 50, strict=True))
    print(f"{right} of {len(answers)} right")


if __name__ == "__main__":
    cli.exit_with_message(main)
