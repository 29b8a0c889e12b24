"""Using a learner: a few labelled images of new classes in, classes of further images out.

    python -m methods.runs.predict --run runs/x --support DIR --query DIR --out predictions.csv

DIR/<class>/ holds the labelled images of a class; the query folder any images, in folders or not. In Python:

    classifier = FewShotClassifier.load("runs/x").fit(read_images(paths, 32), ["cat", "cat", "dog"])
    probabilities = classifier.predict_proba(images)  # (B, 2), columns as in classifier.classes
    names = classifier.predict(images)
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.given import as_images, as_labels
from datasets.image_files import class_folders, images_of, read_images
from methods.metalearners import get_metalearner
from methods.metalearners.learner import Learner, LearnerSpec
from utils import checkpoint, cli
from utils.errors import UserError
from utils.files import write_text

QUERIES_AT_ONCE = 256


class FewShotClassifier:
    """A meta-trained learner that can be shown new classes.

    Queries are normalised by the support's statistics, so that no prediction depends on what else is asked about;
    `transductive` takes the queries' own, as the papers' evaluation does.
    """

    def __init__(self, learner: Learner, metalearner: str, inner_lr: float, steps: int, transductive: bool = False) -> None:
        self.learner, self.steps = learner, steps
        self.metalearner = get_metalearner(metalearner)(learner.network, inner_lr, inductive=not transductive).reading(
            learner.readout
        )
        self.device = next(iter(learner.params.values())).device
        self.classes: list[Any] = []  # sorted

    @classmethod
    def load(
        cls, run: str | Path, device: str | torch.device = "cpu", transductive: bool = False, metalearner: str | None = None
    ) -> "FewShotClassifier":
        """The learner of a run directory, or of its best.pt, with the run's metalearner or another one.

        Raises `UserError` where there is none, or where it is damaged.
        """
        path = Path(run) / "best.pt" if Path(run).is_dir() else Path(run)
        content = checkpoint.load(path, device)
        try:
            learner = Learner(LearnerSpec(**content["learner"]["spec"]), torch.device(device))
            learner.load_state_dict(content["learner"])
            return cls(
                learner,
                metalearner or content["metalearner"],
                content["inner_lr"],
                content["test_inner_steps"],
                transductive,
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} holds no learner ({error}): expected the best.pt of a run of main.py") from error

    def fit(self, images: Any, labels: Any) -> "FewShotClassifier":
        """Adapt to a support set of M images (whatever `datasets.given.as_images` takes) and M classes, names or numbers.

        Raises `UserError` for numbers of another range, and for fewer than two classes.
        """
        images, labels = as_images(images, self.learner.spec.image_size), as_labels(labels)
        if len(images) != len(labels):
            raise UserError(f"the support set has {len(images)} images and {len(labels)} labels; expected as many of both")
        if len({isinstance(label, str) for label in labels}) > 1:
            raise UserError("the support set has names and numbers as classes; expected one kind")
        self.classes = sorted(set(labels))
        if len(self.classes) < 2:
            raise UserError(f"the support set has the class {self.classes[0]!r} alone; expected two or more")
        self.support = self.learner.prepare(images.to(self.device))
        self.labels = torch.tensor([self.classes.index(label) for label in labels], device=self.device)
        params = {name: value.detach() for name, value in self.learner.params.items()}
        with torch.no_grad():
            start = self.metalearner.starting_point(params, self.support, self.labels, len(self.classes))
            fast = self.metalearner.adapt(start, self.support, self.labels, self.steps, create_graph=False)
        self.adapted = {name: value.detach() for name, value in fast.items()}
        return self

    @torch.no_grad()
    def predict_proba(self, images: Any) -> Tensor:
        """Probabilities (B, N) of images as `fit` takes them, in the order of `classes`.

        Raises `UserError` before `fit`, for numbers of another range, and where an answer is not finite.
        """
        if not self.classes:
            raise UserError("the classifier has seen no support set: call fit first")
        images = as_images(images, self.learner.spec.image_size)
        parts = [
            self.metalearner.classify(
                self.adapted, self.support, self.labels, self.learner.prepare(some.to(self.device)), len(self.classes)
            )
            for some in images.split(len(images) if not self.metalearner.inductive else QUERIES_AT_ONCE)
        ]
        probabilities = F.softmax(torch.cat(parts), 1)
        if not bool(torch.isfinite(probabilities).all()):
            raise UserError("the learner's answers are not finite: it was damaged, or its training failed")
        return probabilities

    def predict(self, images: Any) -> list[Any]:
        """The most probable class of each image."""
        return [self.classes[index] for index in self.predict_proba(images).argmax(1).tolist()]


def labelled_below(folder: Path) -> tuple[list[Path], list[str]]:
    """The image files of the classes DIR/<class>/, and their classes. Raises `UserError` as `class_folders` does."""
    classes = class_folders(folder)
    return [path for paths in classes.values() for path in paths], [name for name, paths in classes.items() for _ in paths]


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(
        "python -m methods.runs.predict", description="Classify images by a learner and a few labelled examples."
    )
    parser.add_argument("--run", type=Path, required=True, help="run directory, or its best.pt")
    parser.add_argument("--support", type=Path, required=True, help="labelled images, DIR/<class>/<image>")
    parser.add_argument("--query", type=Path, required=True, help="folder of images to classify")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"), help="the answers, a line an image")
    parser.add_argument("--metalearner", help="another metalearner than the run's")
    parser.add_argument("--transductive", action="store_true", help="normalise the queries by their own statistics")
    cli.add_machine_flags(parser)
    args: argparse.Namespace = parser.parse_args(cli.underscored(sys.argv[1:] if argv is None else argv))
    classifier = FewShotClassifier.load(args.run, cli.prepare_machine(args), args.transductive, args.metalearner)
    size = classifier.learner.spec.image_size
    paths, labels = labelled_below(args.support)
    queries = images_of(args.query)
    probabilities = classifier.fit(read_images(paths, size), labels).predict_proba(read_images(queries, size))
    best = probabilities.argmax(1)
    answers = pd.DataFrame(
        {
            "file": [path.relative_to(args.query).as_posix() for path in queries],
            "class": [classifier.classes[index] for index in best.tolist()],
            **{f"p({name})": probabilities[:, index].tolist() for index, name in enumerate(classifier.classes)},
        }
    )
    write_text(args.out, answers.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    print(f"{len(queries)} images, {len(classifier.classes)} classes of {len(paths)} examples: {args.out}")


if __name__ == "__main__":
    cli.exit_with_message(main)
