import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import main
from datasets.image_files import read_images
from methods.metalearners.readout import FLOOR, PLAIN, Readout, fit_readout, half_whitening
from methods.runs.classifier import FewShotClassifier
from methods.runs.predict import labelled_below
from utils import checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float64")
Flags = Callable[..., list[str]]


@pytest.mark.parametrize(("rows", "columns"), [(40, 6), (6, 40)])
def test_half_whitening_takes_the_root_of_every_singular_value(rows: int, columns: int) -> None:
    """Beside numpy's decomposition; the sign of a direction does not matter, so products are compared."""
    torch.manual_seed(0)
    embeddings = torch.randn(rows, columns) * torch.linspace(0.05, 2, columns) + 1  # not centred
    _, singular, right = np.linalg.svd(embeddings.numpy(), full_matrices=False)
    expected = right.T / (singular + FLOOR * singular[0]) @ right  # V (S + s_1 / 1000)^-1 V^T
    matrix = half_whitening(embeddings)
    assert matrix.shape == (columns, min(rows, columns))
    np.testing.assert_allclose((matrix @ matrix.T).numpy(), expected, atol=1e-9)


def test_a_read_out_by_hand() -> None:
    """The embedding is the mean colour of the left half; of the mirror image, then, that of the right half."""

    def embed(images: torch.Tensor) -> torch.Tensor:
        return images[..., :2].mean((2, 3))

    images = torch.zeros(1, 2, 2, 4)
    images[0, 0, :, :2], images[0, 1, :, 2:] = 1, 3
    assert Readout()(embed, images).tolist() == [[1, 0]]
    assert Readout(mirror=True)(embed, images).tolist() == [[0.5, 1.5]]
    matrix = torch.tensor([[2.0, 0], [0, 1]])
    assert torch.allclose(Readout(True, matrix)(embed, images), F.normalize(torch.tensor([[1, 1.5]])))


def test_no_mirror_image_where_it_would_be_another_class() -> None:
    def fitted(*words: str, flip: bool = True) -> Readout:
        return fit_readout(words, lambda images: images.flatten(1).double(), 2, torch.device("cpu"), flip)

    assert fitted("mirror").mirror
    assert not fitted("mirror", flip=False).mirror
    assert fitted("plain") is PLAIN
    whitened = fitted("whitened", "mirror")
    assert whitened.mirror
    assert whitened.matrix is not None
    assert torch.equal(whitened.matrix, fitted("whitened", "mirror").matrix)  # the same images every time


def test_a_learner_keeps_how_it_is_read(
    flags_for: Flags, tmp_path: Path, write_images: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Validation, best.pt, predict and --evaluate read it alike; --evaluate may read it otherwise; older files are plain."""
    for name, seed in (("red", 1), ("teal", 5)):
        write_images(tmp_path / "support" / name, 3, seed, (20, 18))
    paths, labels = labelled_below(tmp_path / "support")
    images, run = read_images(paths, 16), tmp_path / "runs" / "mine"
    read = ["--readout", "whitened", "mirror"]
    main.main([*flags_for("free"), "--metalearner", "protonet", *read, "--no_floors", "--run_name", "mine"])
    kept = checkpoint.load(run / "best.pt")
    assert kept["readout"] == ["whitened", "mirror"]
    assert kept["learner"]["readout"]["mirror"]

    def embeddings(place: Path) -> torch.Tensor:
        classifier = FewShotClassifier.load(place).fit(images, labels)
        return classifier.reader.read(classifier.adapted_, classifier.support_)  # type: ignore[attr-defined]

    assert torch.allclose(embeddings(run).norm(dim=1), torch.ones(6))
    result = json.loads((run / "result.json").read_text())
    main.main(["--evaluate", str(run)])
    again = json.loads((run / "evaluate-3w1s.json").read_text())
    assert again["episodes"] == result["episodes"]
    assert again["readout"] == ["whitened", "mirror"]
    plain = {name: value for name, value in kept["learner"].items() if name != "readout"}
    checkpoint.save(kept | {"learner": plain}, tmp_path / "older.pt")
    assert not torch.allclose(embeddings(tmp_path / "older.pt").norm(dim=1), torch.ones(6))
    main.main(["--evaluate", str(run), "--readout", "plain"])
    assert json.loads((run / "evaluate-3w1s-plain.json").read_text())["readout"] == ["plain"]


def test_a_head_cannot_be_read_otherwise(flags_for: Flags) -> None:
    with pytest.raises(UserError, match="--metalearner protonet or ncm"):
        main.parse_args([*flags_for("free"), "--readout", "mirror"])


def test_the_teachers_are_read_as_a_learner_is(flags_for: Flags, tmp_path: Path) -> None:
    """Read plainly through the same door, the score is that of summed distances."""
    main.main([*flags_for("teacher_ncm"), "--readout", "plain", "plain", "--run_name", "read"])
    main.main([*flags_for("teacher_ncm"), "--run_name", "summed"])
    main.main([*flags_for("teacher_ncm"), "--readout", "whitened", "mirror", "--ensemble", "1", "--run_name", "whitened"])
    results = {
        name: json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("read", "summed", "whitened")
    }
    assert results["read"]["episodes"] == results["summed"]["episodes"]
    assert results["whitened"]["readout"] == ["whitened", "mirror"]
