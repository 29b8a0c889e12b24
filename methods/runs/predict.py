"""Using a learner: a few labelled images of new classes in, classes of further images out.

    python -m methods.predict --run runs/x --support DIR --query DIR --out predictions.csv

DIR/<class>/ holds the labelled images of a class; the query folder any images, in folders or not. With --save the learner
goes into a folder, with the classes it was shown. In Python: `methods.runs.classifier`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from datasets.image_files import class_folders, images_of, read_images
from datasets.own import check_no_parts
from methods.runs.classifier import FewShotClassifier
from methods.runs.export import export
from utils import cli
from utils.errors import UserError
from utils.files import starts_with, write_text
from utils.names import look_alike_notes

FILE, CLASS = "file", "class"  # the first columns of answers
HEADER = f"{FILE},{CLASS},"


def labelled_below(folder: Path) -> tuple[list[Path], list[str]]:
    """The image files of the classes DIR/<class>/, and their classes; a note on stderr where two look alike.

    Raises `UserError` as `class_folders` does, and where the folders are the parts of a set.
    """
    check_no_parts(folder)
    classes = class_folders(folder)
    for note in look_alike_notes(classes):
        print(note, file=sys.stderr)
    return [path for paths in classes.values() for path in paths], [name for name, paths in classes.items() for _ in paths]


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(
        "python -m methods.predict", description="Classify images by a learner and a few labelled examples, or keep it."
    )
    parser.add_argument("--run", type=Path, required=True, help="run directory, its best.pt, or a folder of --save")
    parser.add_argument("--support", type=Path, help="labelled images, DIR/<class>/<image>")
    parser.add_argument("--query", type=Path, help="folder of images to classify")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"), help="the answers, a line an image")
    parser.add_argument("--save", type=Path, help="new folder to keep the learner in, with the classes of --support")
    parser.add_argument("--export", type=Path, help="new folder that serves without this program: ONNX and class means")
    parser.add_argument("--metalearner", help="another metalearner than the run's")
    parser.add_argument(
        "--none_of_these", type=cli.number(0, 1), metavar="SHARE",
        help="leave images of no class shown unnamed, though this share of the others is lost too (two images a class)",
    )  # fmt: skip
    parser.add_argument("--transductive", action="store_true", help="normalise the queries by their own statistics")
    cli.add_machine_flags(parser)
    args = parser.parse_args(argv)
    if not (args.query or args.save or args.export):
        raise UserError("nothing to do: give --query DIR to classify, --save or --export FOLDER to keep the learner")
    if args.query:
        check_replaceable(args.out)
    classifier = FewShotClassifier.load(args.run, cli.prepare_machine(args), args.transductive, args.metalearner)
    if args.support:
        paths, labels = labelled_below(args.support)
        classifier.fit(read_images(paths, classifier.learner.spec.image_size), labels)
    if args.query:
        answer(classifier, args.query, args.out, args.none_of_these)
    if args.save:
        print(f"the learner is kept in {classifier.save(args.save)}")
    if args.export:
        print(f"{export(classifier, args.export)} serves without this program; its README.md says how")


def check_replaceable(out: Path) -> None:
    """Raise `UserError` where the answers would take the place of a file that holds none."""
    if not starts_with(out, HEADER.encode()):
        raise UserError(f"--out {out} is there already and holds no answers of this program: name another file")


def answer(classifier: FewShotClassifier, folder: Path, out: Path, refused: float | None = None) -> None:
    """Classify the images of a folder, write a line for each, and say how many lie in a folder of their class.

    refused: as `FewShotClassifier.predict` has it; an image of no class shown gets an empty name.
    """
    if not classifier.classes:
        raise UserError("--support is missing: labelled images of the classes to tell apart")
    queries = images_of(folder)
    probabilities, names = classifier.answers(read_images(queries, classifier.learner.spec.image_size), refused)
    answers = pd.DataFrame(
        {
            FILE: [path.relative_to(folder).as_posix() for path in queries],
            CLASS: ["" if name is None else name for name in names],
            **{f"p({name})": probabilities[:, index].tolist() for index, name in enumerate(classifier.classes)},
        }
    )
    write_text(out, answers.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    print(f"{len(queries)} images, {len(classifier.classes)} classes of {len(classifier.support_)} examples: {out}")
    if refused is not None:
        print(f"{names.count(None)} of them are called none of these")
    folders = [path.relative_to(folder).parts[0] for path in queries]
    if set(folders) <= set(classifier.classes):
        right = sum(own == named for own, named in zip(folders, answers[CLASS], strict=True))
        print(f"{right} of them ({100 * right / len(queries):.0f} %) lie in a folder of the class that was named")
