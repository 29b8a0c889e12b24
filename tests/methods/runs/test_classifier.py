import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils import estimator_checks

import main
from datasets.image_files import read_images
from methods.runs import predict
from methods.runs.classifier import FewShotClassifier
from methods.runs.export import export
from utils.errors import UserError

Flags = Callable[..., list[str]]


@pytest.fixture
def shown(tmp_path: Path, write_images: Callable[..., None]) -> tuple[list[Path], list[str]]:
    """Two classes that differ in colour, in the learner's own size: three labelled images each."""
    for name, seed in (("red", 1), ("teal", 5)):
        write_images(tmp_path / "support" / name, 3, seed, (16, 16))
    return predict.labelled_below(tmp_path / "support")


@pytest.fixture
def run(flags_for: Flags, tmp_path: Path) -> Callable[..., Path]:
    def made(method: str, *more: str) -> Path:
        main.main([*flags_for(method, 1), "--run_name", method, *more])
        return tmp_path / "runs" / method

    return made


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("chorus", ["--sources", "procedural"]),
        ("free", ["--metalearner", "protonet"]),
        ("random", ["--metalearner", "maml"]),
        ("teacher_ncm", ["--readout", "whitened"]),
        ("teacher_ncm", ["--ncm_on", "answers", "--ensemble", "1"]),
    ],
)
def test_what_is_saved_predicts_the_same(
    method: str, more: list[str], run: Callable[..., Path], shown: tuple[list[Path], list[str]], tmp_path: Path
) -> None:
    """Fitted or not: read-out, batch statistics of the support, and adapted heads come back; twice is refused."""
    classifier = FewShotClassifier.load(run(method, *more))
    images = torch.rand(5, 3, 16, 16)
    bare = FewShotClassifier.load(classifier.save(tmp_path / "bare"))
    classifier.fit(*shown)
    wanted = classifier.predict_proba(images)
    assert torch.allclose(bare.fit(*shown).predict_proba(images), wanted)
    again = FewShotClassifier.load(classifier.save(tmp_path / "kept" / "mine"))
    assert again.classes == ["red", "teal"]
    assert again.classes_.tolist() == ["red", "teal"]
    assert torch.allclose(again.predict_proba(images), wanted)
    assert torch.allclose(again.embed(images), classifier.embed(images))
    assert again.score(*shown) == classifier.score(*shown)
    card = (tmp_path / "kept" / "mine" / "README.md").read_text()
    assert f"method: {method}" in card
    assert "raw pixels, nearest class mean" in card
    assert sorted(path.name for path in (tmp_path / "kept").rglob("*.*")) == ["README.md", "config.json", "model.safetensors"]
    with pytest.raises(UserError, match="is there already"):
        classifier.save(tmp_path / "bare")


@pytest.mark.usefixtures("float64")
def test_a_class_is_added_as_if_it_had_been_there(
    run: Callable[..., Path], shown: tuple[list[Path], list[str]], tmp_path: Path, write_images: Callable[..., None]
) -> None:
    write_images(tmp_path / "support" / "zinc", 3, 9, (16, 16))
    paths, names = predict.labelled_below(tmp_path / "support")
    folder = run("chorus", "--sources", "procedural", "--no_floors")
    together = FewShotClassifier.load(folder).fit(paths, names)
    added = FewShotClassifier.load(folder).fit(*shown).add_class("zinc", paths[-3:])
    images = torch.rand(5, 3, 16, 16)
    assert added.classes == together.classes
    assert torch.allclose(added.predict_proba(images), together.predict_proba(images))
    for name in ("red", 3):
        with pytest.raises(UserError, match="cannot be added"):
            added.add_class(name, paths[:1])
    with pytest.raises(UserError, match="call fit first"):
        FewShotClassifier.load(folder).add_class("zinc", paths[:1])


@pytest.mark.parametrize(
    ("file", "damage"),
    [("config.json", b"{"), ("config.json", b"[]"), ("model.safetensors", b"nothing"), ("config.json", b'{"format": 99}')],
)
def test_a_damaged_folder_is_refused(file: str, damage: bytes, run: Callable[..., Path], tmp_path: Path) -> None:
    folder = FewShotClassifier.load(run("random", "--no_floors")).save(tmp_path / "mine")
    (folder / file).write_bytes(damage)
    with pytest.raises(UserError, match=r"holds no learner|later version|cannot be read|damaged"):
        FewShotClassifier.load(folder)


@pytest.mark.parametrize(("method", "more"), [("chorus", ["--sources", "procedural"]), ("teacher_ncm", [])])
def test_an_export_serves_without_the_program(
    method: str, more: list[str], run: Callable[..., Path], shown: tuple[list[Path], list[str]], tmp_path: Path
) -> None:
    """The code of its card, in a process that cannot import the program, on a hundred images."""
    pytest.importorskip("onnxruntime")
    folder, support = run(method, *more, "--no_floors"), str(tmp_path / "support")
    where = ["--run", str(folder), "--support", support, "--query", support, "--out", str(tmp_path / "answers.csv")]
    predict.main([*where, "--save", str(tmp_path / "kept"), "--export", str(tmp_path / "alone")])
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number:03d}.png" for number in range(100)]
    for number, path in enumerate(paths):
        picture = Image.fromarray((rng.random((16, 16, 3 + number % 2)) * 255).astype(np.uint8))
        exif = Image.Exif()
        exif[274] = 1 + number % 8
        picture.save(path, exif=exif)  # turned, and in part transparent
    code = (tmp_path / "alone" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    given = f"paths = {[str(path) for path in paths]}\n"
    last = "print(json.dumps([names, embed(paths).tolist()]))"
    said = subprocess.run(
        [sys.executable, "-I", "-c", given + code + last], cwd=tmp_path / "alone", capture_output=True, text=True, check=True
    ).stdout
    names, embeddings = json.loads(said)
    classifier = FewShotClassifier.load(tmp_path / "kept")
    images = read_images(paths, 16)
    assert torch.allclose(torch.tensor(embeddings), classifier.embed(images), atol=1e-4)  # of vectors of length 1
    probabilities = classifier.predict_proba(images)
    sure = (probabilities[:, 0] - 0.5).abs() > 0.01
    assert [name for name, one in zip(names, sure, strict=True) if one] == [
        name for name, one in zip(classifier.predict(images), sure, strict=True) if one
    ]


def test_what_cannot_serve_alone_says_why(
    run: Callable[..., Path], shown: tuple[list[Path], list[str]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="normalises by the batch at hand"):
        export(FewShotClassifier.load(run("random", "--no_floors")).fit(*shown), tmp_path / "alone")
    with pytest.raises(UserError, match="has seen no support set"):
        export(FewShotClassifier.load(run("chorus", "--sources", "procedural", "--no_floors")), tmp_path / "alone")
    assert not (tmp_path / "alone").exists()
    for words, message in (([], "nothing to do"), (["--query", str(tmp_path)], "--support is missing")):
        with pytest.raises(UserError, match=message):
            predict.main(["--run", str(tmp_path / "runs" / "chorus"), *words])


@pytest.mark.usefixtures("float64")
def test_answers_are_as_sure_as_held_out_images_are_named_right(
    run: Callable[..., Path], shown: tuple[list[Path], list[str]]
) -> None:
    classifier = FewShotClassifier.load(run("free", "--metalearner", "protonet"))
    classifier.temperature = 3.0
    images = torch.rand(5, 3, 16, 16)
    for paths, labels, wanted in ((shown[0], shown[1], None), (shown[0][::3], shown[1][::3], 3.0)):
        classifier.fit(paths, labels)
        assert wanted is None or classifier.temperature_ == wanted
        logits = classifier.predict_proba(images).log() * classifier.temperature_
        assert torch.allclose(logits - logits.mean(1, keepdim=True), _centred(classifier._logits(images)))


def _centred(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(1, keepdim=True)


def test_none_of_these(run: Callable[..., Path], shown: tuple[list[Path], list[str]]) -> None:
    classifier = FewShotClassifier.load(run("chorus", "--sources", "procedural")).fit(*shown)
    strange = torch.rand(20, 3, 16, 16)
    assert None not in classifier.predict(strange)
    assert None not in classifier.predict(shown[0], refused=0.0)
    assert classifier.predict(strange, refused=1.0).count(None) >= classifier.predict(strange, refused=0.0).count(None)
    with pytest.raises(UserError, match="expected a share from 0 to 1"):
        classifier.predict(strange, refused=1.5)
    with pytest.raises(UserError, match="one image a class"):
        classifier.fit(shown[0][::3], shown[1][::3]).predict(strange, refused=0.1)


def test_a_run_knows_how_sure_its_answers_are(run: Callable[..., Path]) -> None:
    folder = run("free", "--metalearner", "protonet", "--num_sup_test", "3")
    result = json.loads((folder / "result.json").read_text())
    (numbers,) = result["calibration"].values()
    assert set(numbers) == {"confidence", "before", "after", "own_refused", "strangers_taken"}
    assert all(0 <= value <= 1 for value in numbers.values())
    assert FewShotClassifier.load(folder).temperature == result["one_shot_temperature"] > 0
    before = (folder / "best.pt").read_bytes()
    main.main(["--evaluate", str(folder), "--num_sup_test", "1"])
    assert (folder / "best.pt").read_bytes() == before
    (numbers,) = json.loads((folder / "evaluate-3w1s.json").read_text())["calibration"].values()
    assert set(numbers) == {"confidence", "before", "after"}


def test_it_is_a_classifier_of_scikit_learn(
    run: Callable[..., Path], write_images: Callable[..., None], tmp_path: Path
) -> None:
    """Cloned, validated by folds, searched over and checked like others, as far as samples may be images."""
    classifier = FewShotClassifier.load(run("chorus", "--sources", "procedural"))
    for check in (
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
    ):
        check("FewShotClassifier", classifier)
    for name, seed in (("red", 1), ("teal", 5)):
        write_images(tmp_path / "more" / name, 4, seed, (16, 16))
    paths, labels = predict.labelled_below(tmp_path / "more")
    images = read_images(paths, 16).numpy()
    scores = cross_val_score(classifier, images, labels, cv=2)
    fitted = clone(classifier).fit(images[::2], labels[::2])
    assert not hasattr(clone(fitted), "classes_")
    assert scores.shape == (2,)
    assert ((scores >= 0) & (scores <= 1)).all()
    search = GridSearchCV(classifier, {"transductive": [False, True]}, cv=2, error_score="raise").fit(images, labels)
    assert isinstance(search.best_estimator_.predict(images)[0], str)


def test_another_metalearner_reads_plainly(run: Callable[..., Path], shown: tuple[list[Path], list[str]]) -> None:
    """A read-out that was whitened for the outputs is none for the features."""
    folder = run("chorus", "--sources", "procedural")
    whitened, plain = FewShotClassifier.load(folder), FewShotClassifier.load(folder, metalearner="protonet")
    assert whitened.learner.readout.matrix is not None
    assert plain.learner.readout.matrix is None
    assert len(plain.fit(*shown).predict(shown[0])) == len(shown[0])


def test_teachers_side_by_side_are_not_adapted(run: Callable[..., Path], flags_for: Flags) -> None:
    folder = run("teacher_ncm")
    assert FewShotClassifier.load(folder, metalearner="protonet").metalearner == "protonet"
    with pytest.raises(UserError, match="maml cannot adapt"):
        FewShotClassifier.load(folder, metalearner="maml")
    with pytest.raises(UserError, match="--metalearner anil: frozen teachers are not adapted"):
        main.main([*flags_for("teacher_ncm"), "--metalearner", "anil"])
