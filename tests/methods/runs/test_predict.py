import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

import main
from datasets.image_files import images_of, read_images
from methods.runs import predict
from methods.runs.classifier import FewShotClassifier
from utils import checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float64")
Flags = Callable[..., list[str]]


@pytest.fixture
def folders(tmp_path: Path, write_images: Callable[..., None]) -> tuple[Path, Path]:
    """Two classes that differ in colour, of sizes of their own: three labelled images each, and queries."""
    for name, seed in (("red", 1), ("teal", 5)):
        write_images(tmp_path / "support" / name, 3, seed, (20, 18))
        write_images(tmp_path / "query" / f"some {name}", 4, seed, (31, 40), "jpg")
    return tmp_path / "support", tmp_path / "query"


@pytest.fixture
def run(flags_for: Flags, tmp_path: Path) -> Path:
    main.main([*flags_for("free"), "--no_floors", "--run_name", "mine"])
    return tmp_path / "runs" / "mine"


@pytest.mark.parametrize("metalearner", ["protonet", "maml", "anil", "ncm"])
def test_the_command_classifies_a_folder(metalearner: str, run: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Two classes where the learner has three outputs: the head of MAML and ANIL is rebuilt."""
    out = tmp_path / "answers.csv"
    where = ["--run", str(run), "--support", str(folders[0]), "--query", str(folders[1]), "--out", str(out)]
    for _ in range(2):  # answers replace answers, and nothing else
        predict.main([*where, "--metalearner", metalearner])
    photo = next(iter(folders[0].rglob("*.png")))
    with pytest.raises(UserError, match="holds no answers"):
        predict.main([*where[:-1], str(photo)])
    answers = pd.read_csv(out)
    assert list(answers.columns) == ["file", "class", "p(red)", "p(teal)"]
    assert len(answers) == 8
    assert (answers[["p(red)", "p(teal)"]].sum(axis=1) - 1).abs().max() < 1e-3
    if metalearner == "protonet":
        assert (answers["class"] == answers.file.str.extract("some (.*)/")[0]).mean() > 0.7


def test_a_prediction_does_not_depend_on_the_other_queries(run: Path, folders: tuple[Path, Path]) -> None:
    paths, labels = predict.labelled_below(folders[0])
    queries = read_images(images_of(folders[1]), 16)
    classifier = FewShotClassifier.load(run).fit(read_images(paths, 16), labels)
    together = classifier.predict_proba(queries)
    alone = torch.cat([classifier.predict_proba(image[None]) for image in queries])
    assert torch.allclose(together, alone, rtol=1e-9)
    other = FewShotClassifier.load(run, transductive=True).fit(read_images(paths, 16), labels)
    assert not torch.allclose(other.predict_proba(queries).log(), together.log(), atol=1e-2)  # probabilities near 1 are alike
    assert classifier.predict(queries) == [classifier.classes[i] for i in together.argmax(1).tolist()]


def test_it_is_the_learner_of_the_exam(run: Path, flags_for: Flags) -> None:
    """The same logits as the evaluation's on the same episode."""
    from datasets.episodes import make_episodes

    classifier = FewShotClassifier.load(run, transductive=True)
    learner, metalearner = classifier.learner, classifier.reader
    support, query = torch.rand(1, 6, 3, 16, 16), torch.rand(1, 9, 3, 16, 16)
    episodes = make_episodes(learner.prepare(support), learner.prepare(query), 3)
    loss, _ = metalearner.outer_loss(learner.params, episodes, classifier.steps, create_graph=False)
    labels = [name for name in "abc" for _ in range(2)]
    probabilities = classifier.fit(support[0], labels).predict_proba(query[0])
    probabilities = (probabilities.log() * classifier.temperature_).softmax(1)  # before the temperature
    wanted = -probabilities[torch.arange(9), torch.arange(3).repeat_interleave(3)].log().mean()
    assert float(loss) == pytest.approx(float(wanted), rel=1e-9)


def test_what_is_wrong_is_said(run: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    classifier = FewShotClassifier.load(run)
    with pytest.raises(UserError, match="call fit first"):
        classifier.predict_proba(torch.rand(1, 3, 16, 16))
    with pytest.raises(UserError, match="2 images and 1 labels"):
        classifier.fit(torch.rand(2, 3, 16, 16), ["a"])
    with pytest.raises(UserError, match="'a' alone"):
        classifier.fit(torch.rand(2, 3, 16, 16), ["a", "a"])
    with pytest.raises(UserError, match=r"best\.pt does not exist"):
        FewShotClassifier.load(tmp_path)
    checkpoint.save({"learner": 3}, tmp_path / "best.pt")
    with pytest.raises(UserError, match="holds no learner"):
        FewShotClassifier.load(tmp_path)
    with pytest.raises(UserError, match=r"has no class folders: expected .*<class>/<image>"):
        predict.labelled_below(folders[0] / "red")
    with pytest.raises(UserError, match="nothing is missing"):
        images_of(run / "images" / "nothing")


def test_images_and_labels_come_as_data_loaders_give_them(run: Path, folders: tuple[Path, Path]) -> None:
    classifier = FewShotClassifier.load(run)
    paths, names = predict.labelled_below(folders[0])
    wanted = classifier.fit(paths, names).predict_proba(paths)
    images = read_images(paths, 16)
    for labels in (
        torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.tensor([0, 0, 0, 1, 1, 1]).numpy(),
        list(torch.tensor([4, 4, 4, 7, 7, 7])),
    ):
        found = classifier.fit(images.permute(0, 2, 3, 1).numpy(), labels)
        assert len(found.classes) == 2
        assert all(isinstance(label, int) for label in found.classes)
        assert torch.equal(found.predict_proba(images), wanted)
    with pytest.raises(UserError, match="divide by 255"):
        classifier.fit(images.float(), names)
    with pytest.raises(UserError, match="divided by 255 twice"):
        classifier.fit(images.double() / 255**2, names)
    with pytest.raises(UserError, match="of 0 and 1"):
        classifier.fit((images > 99).long(), names)
    with pytest.raises(UserError, match="none of the labels is a class"):
        classifier.fit(images, names).score(images, range(6))
    with pytest.raises(UserError, match="one class for each image"):
        classifier.fit(images, torch.eye(6))
    with pytest.raises(UserError, match="names and numbers"):
        classifier.fit(images, [*names[:5], 3])


def test_answers_that_are_not_finite_are_an_error(run: Path, folders: tuple[Path, Path]) -> None:
    classifier = FewShotClassifier.load(run)
    paths, names = predict.labelled_below(folders[0])
    classifier.fit(paths, names)
    classifier.adapted_ = {name: value * torch.nan for name, value in classifier.adapted_.items()}
    with pytest.raises(UserError, match="not finite"):
        classifier.predict_proba(paths)


def test_every_visible_folder_is_a_class_or_the_command_refuses(
    run: Path, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--run", str(run), "--support", str(folders[0]), "--query", str(folders[1]), "--out", str(tmp_path / "o.csv")]
    hidden = folders[0] / ".ipynb_checkpoints"
    hidden.mkdir()
    (hidden / "000.png").write_bytes(b"damaged")
    (folders[1] / "._photo.jpg").write_bytes(b"what a Mac leaves")
    predict.main(where)
    assert list(pd.read_csv(tmp_path / "o.csv").columns) == ["file", "class", "p(red)", "p(teal)"]
    (folders[1] / "scan.heic").write_bytes(b"")
    capsys.readouterr()
    predict.main(where)
    assert "1 file .heic left out, 8 files .jpg read" in capsys.readouterr().err
    (folders[0] / "green").mkdir()
    (folders[0] / "green" / "a.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"class 'green' of .* has no images, only 1 file \.heic"):
        predict.main(where)


def test_parts_of_a_set_are_no_classes(tmp_path: Path, write_images: Callable[..., None]) -> None:
    for number, part in enumerate(("train", "test")):
        write_images(tmp_path / "set" / part / "owl", 2, number, (20, 20))
    with pytest.raises(UserError, match=r"parts of a set \(test, train\) and no classes"):
        predict.labelled_below(tmp_path / "set")


def test_answers_take_the_place_of_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is no ordinary file"):
        predict.check_replaceable(tmp_path / "pipe")
    (tmp_path / "empty.csv").touch()
    predict.check_replaceable(tmp_path / "empty.csv")
