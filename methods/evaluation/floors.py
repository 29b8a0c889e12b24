"""The floors that every result stands on: chance, raw pixels, frozen teachers, a learner that was never trained."""

import hashlib

import torch
from torch import Tensor
from tqdm import tqdm

from methods.evaluation.few_shot import Exam, Indices
from methods.teachers.pool import TeacherPool
from utils.images import to_float
from utils.metrics import Score


@torch.no_grad()
def distances_to_means(embeddings: Tensor, indices: Indices, way: int) -> Tensor:
    """Squared distances of every query to the class means of its episode's support: (E, N*Q, N).

    embeddings (images, D) of the whole split; support indices (E, N*K) and query indices (E, N*Q) grouped by class.
    """
    parts = []
    for support, query in zip(indices[0].split(20), indices[1].split(20), strict=True):
        means = embeddings[support].unflatten(1, (way, -1)).mean(2)  # (e, N, D)
        parts.append(torch.cdist(embeddings[query], means).square())
    return torch.cat(parts)


def accuracy_of(distances: Tensor) -> Tensor:
    """Share of queries nearest to their own class, per episode: (E, N*Q, N) to (E,)."""
    _, queries, way = distances.shape
    labels = torch.arange(way, device=distances.device).repeat_interleave(queries // way)
    return (distances.argmin(2) == labels).float().mean(1)


def pixel_floor(exam: Exam, device: torch.device) -> Score:
    """Nearest class mean on raw pixels."""
    pixels = to_float(exam.split.images).flatten(1).to(device)
    return Score(accuracy_of(distances_to_means(pixels, exam.indices, exam.shape.way)).tolist())


@torch.no_grad()
def teacher_floors(pool: TeacherPool, exam: Exam) -> tuple[Score, Score, list[float]]:
    """Nearest class mean in the l2-normalised penultimate features of the frozen teachers.

    Returns the score of one teacher (per episode, the mean over teachers), of all teachers' features concatenated, and
    the mean accuracy of each teacher. The distance in the concatenation is the sum of the teachers' distances.
    """
    images, one, each = exam.split.images, torch.zeros(exam.count), []
    together = torch.zeros((), device=pool.device)
    for teacher_id in tqdm(range(len(pool)), desc="frozen teachers", unit="teacher", leave=False):
        teacher = pool[teacher_id]
        features = torch.cat([teacher.features(to_float(part.to(pool.device))) for part in images.split(500)])
        distances = distances_to_means(torch.nn.functional.normalize(features), exam.indices, exam.shape.way)
        accuracy = accuracy_of(distances).cpu()
        one += accuracy / len(pool)
        each.append(float(accuracy.mean()))
        together = together + distances
    return Score(one.tolist()), Score(accuracy_of(together).tolist()), each


def exam_key(exam: Exam) -> list[object]:
    """What identifies an exam: its images and its episodes."""
    shape = exam.shape
    listed = hashlib.sha256(exam.split.images.numpy().tobytes()).hexdigest()
    return [
        exam.spec.name,
        exam.split_name,
        listed,
        exam.image_size,
        shape.way,
        shape.shot,
        shape.query,
        exam.count,
    ]
