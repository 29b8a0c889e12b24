"""The floors that every result stands on: chance, raw pixels, frozen teachers, a learner that was never trained."""

import hashlib

import torch
from torch import Tensor
from tqdm import tqdm

from methods.evaluation.few_shot import Exam, Indices
from methods.teachers.pool import TeacherPool
from methods.teachers.views import seen
from utils import seed
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
    return (distances.argmin(2) == labels).to(distances.dtype).mean(1)


def pixel_floor(exam: Exam, device: torch.device) -> Score:
    """Nearest class mean on raw pixels."""
    pixels = to_float(exam.split.images).flatten(1).to(device)
    return Score(accuracy_of(distances_to_means(pixels, exam.indices, exam.shape.way)).tolist())


def teacher_distances(pool: TeacherPool, exam: Exam, view: str = "features") -> Tensor:
    """Distances of queries to class means in the l2-normalised `view` of each frozen teacher: (T, E, N*Q, N)."""
    images, distances = exam.split.images, []
    for teacher_id in tqdm(range(len(pool)), desc="frozen teachers", unit="teacher", leave=False):
        distances.append(distances_to_means(seen(pool, teacher_id, view, images), exam.indices, exam.shape.way))
    return torch.stack(distances)


def ensemble_score(distances: Tensor, size: int, seed_value: int = 0) -> Score:
    """Nearest class mean in the concatenated views of `size` teachers, from their distances (T, E, N*Q, N).

    The squared distance in a concatenation is the sum of the teachers' own. The pool is dealt, by the seed, into as many
    ensembles without a common teacher as it yields; each episode counts with the mean over them.
    """
    order = torch.randperm(len(distances), generator=seed.generator(seed_value, "ensembles")).to(distances.device)
    ensembles = order[: len(order) // size * size].view(-1, size)
    return Score(torch.stack([accuracy_of(distances[members].sum(0)) for members in ensembles]).mean(0).tolist())


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
