from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from datasets.episodes import EpisodeShape
from datasets.registry import get_spec
from methods.evaluation.exams import Exam
from methods.evaluation.floors import accuracy_of, distances_to_means, ensemble_score, teacher_distances
from methods.teachers.manifest import read_manifest
from methods.teachers.pool import TeacherPool
from utils.images import to_float

pytestmark = pytest.mark.usefixtures("float64")


def test_nearest_class_mean_by_hand() -> None:
    embeddings = torch.tensor([[0.0, 0], [2, 0], [0, 9], [0, 11], [1, 1], [1, 9]])
    indices = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[4, 5]])  # means (1, 0) and (0, 10)
    distances = distances_to_means(embeddings, indices, way=2)
    assert torch.allclose(distances, torch.tensor([[[1.0, 82.0], [81.0, 2.0]]]), rtol=1e-9)
    assert accuracy_of(distances).tolist() == [1.0]
    assert accuracy_of(distances.flip(2)).tolist() == [0.0]


def test_distances_in_a_concatenation_add_up() -> None:
    torch.manual_seed(0)
    parts = [F.normalize(torch.randn(20, dim)) for dim in (3, 7)]
    indices = torch.arange(6).view(1, 6), torch.arange(6, 18).view(1, 12)
    together = distances_to_means(torch.cat(parts, 1), indices, way=3)
    assert torch.allclose(together, sum(distances_to_means(part, indices, way=3) for part in parts), rtol=1e-9)


@pytest.mark.parametrize("view", ["features", "logits", "probabilities"])
def test_an_ensemble_is_nearest_class_mean_on_the_concatenation(view: str, data_root: Path) -> None:
    pool = TeacherPool(
        read_manifest(data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv")
        + read_manifest(data_root / "teachers/cifar100/resnet10/3way-16px/teachers.csv"),
        torch.device("cpu"),
    )
    exam = Exam(get_spec("cifar100"), "meta_test", data_root, 16, EpisodeShape(3, 2, 3), 5)
    images, parts = to_float(exam.split.images), []
    for teacher in (pool[i] for i in range(4)):
        logits = teacher(images)
        seen = {"features": teacher.features(images), "logits": logits, "probabilities": logits.softmax(1)}[view]
        parts.append(seen / seen.norm(dim=1, keepdim=True))
    together = torch.cat(parts, 1)
    wanted = []
    for support, query in zip(*exam.indices, strict=True):
        means = together[support].view(3, 2, -1).mean(1)
        nearest = (together[query][:, None] - means).square().sum(2).argmin(1)
        wanted.append(float((nearest == torch.arange(3).repeat_interleave(3)).double().mean()))
    distances = teacher_distances(pool, exam, view)
    assert list(ensemble_score(distances, 4).values) == pytest.approx(wanted, rel=1e-9)


def test_ensembles_are_dealt_without_a_common_teacher() -> None:
    """One teacher always right, three always wrong by less than it is right: alone 1 of 4 is right, in pairs 1 of 2."""
    right, wrong = torch.tensor([[[0.0, 9.0], [9.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    distances = torch.stack([wrong, right, wrong, wrong])
    for seed_value in range(3):
        assert ensemble_score(distances, 1, seed_value).mean == pytest.approx(0.25, rel=1e-9)
        assert ensemble_score(distances, 2, seed_value).mean == pytest.approx(0.5, rel=1e-9)
        assert ensemble_score(distances, 4, seed_value).mean == pytest.approx(1.0, rel=1e-9)
