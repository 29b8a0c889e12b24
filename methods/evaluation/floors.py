"""The floors that every result stands on: chance, raw pixels, frozen teachers, a learner that was never trained."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.evaluation.exams import Exam, Indices, examine
from methods.evaluation.yardsticks import ANSWERS_ALONE, ONE_TEACHER, PIXELS, RANDOM, RANDOM_READ, all_teachers
from methods.metalearners.base import Metalearner
from methods.metalearners.learner import Learner, LearnerSpec
from methods.metalearners.protonet import ProtoNet
from methods.metalearners.readout import fit_readout
from methods.teachers.pool import TeacherPool
from methods.teachers.views import SHOWN_AT_ONCE, side_by_side, view_of
from utils import seed
from utils.images import to_float
from utils.kept import Kept
from utils.metrics import Score
from utils.progress import Progress


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
    for teacher_id in Progress(range(len(pool)), desc="frozen teachers", unit="teacher", leave=False):
        distances.append(distances_to_means(view_of(pool, teacher_id, view, images), exam.indices, exam.shape.way))
    return torch.stack(distances)


def ensemble_score(distances: Tensor, size: int, seed_value: int = 0) -> Score:
    """Nearest class mean in the concatenated views of `size` teachers, from their distances (T, E, N*Q, N).

    The squared distance in a concatenation is the sum of the teachers' own. The pool is dealt, by the seed, into as many
    ensembles without a common teacher as it yields; each episode counts with the mean over them.
    """
    ensembles = dealt(len(distances), size, seed_value).to(distances.device)
    return Score(torch.stack([accuracy_of(distances[members].sum(0)) for members in ensembles]).mean(0).tolist())


def dealt(teachers: int, size: int, seed_value: int) -> Tensor:
    """As many ensembles of `size` teachers without a common one as there are: (ensembles, size) of numbers below `teachers`."""
    order = torch.randperm(teachers, generator=seed.generator(seed_value, "ensembles"))
    return order[: teachers // size * size].view(-1, size)


@torch.no_grad()
def read_out_score(pool: TeacherPool, exam: Exam, view: str, words: Sequence[str], size: int, seed_value: int = 0) -> Score:
    """As `ensemble_score`, with the concatenated views of an ensemble read as a learner is (`fit_readout`)."""
    images, scores = exam.split.images, []
    for members in dealt(len(pool), size, seed_value).tolist():
        embed = partial(side_by_side, pool, members, view)
        readout = fit_readout(words, embed, exam.image_size, pool.device, pool.mirrors([exam.spec]))
        pieces = Progress(
            images.split(SHOWN_AT_ONCE), desc="frozen teachers", unit="images", unit_scale=SHOWN_AT_ONCE, leave=False
        )
        embeddings = F.normalize(torch.cat([readout(embed, some) for some in pieces]))
        scores.append(accuracy_of(distances_to_means(embeddings, exam.indices, exam.shape.way)))
    return Score(torch.stack(scores).mean(0).tolist())


@dataclass(frozen=True)
class Reading:
    """How a learner sits an exam: what adapts it, in how many steps, how it is read (`READOUTS`), and whether mirrored, too."""

    spec: LearnerSpec
    metalearner: Metalearner
    steps: int
    words: Sequence[str] = ("plain",)
    mirrors: bool = True

    def key(self) -> list[Any]:
        """What an untrained learner's score hangs on."""
        how = self.metalearner
        return [
            asdict(self.spec),
            [type(how).__name__, how.inner_lr, self.steps, how.inductive, list(self.words)],
            self.mirrors,
        ]


def floors(
    exams: Sequence[Exam], reading: Reading, pool: TeacherPool, inside: bool, seed_value: int, folder: Path
) -> dict[str, dict[str, Score]]:
    """Every floor, by what it is and by image set; computed once for a pool, split and set of episodes, and kept in `folder`.

    An untrained learner stands beside the trained one, read as that is. inside: whether the teachers' features may be seen, or
    their answers alone.
    """
    lines: dict[str, dict[str, Score]] = {}
    kept, how = Kept(folder), reading.metalearner
    for exam in exams:

        def compute(exam: Exam = exam) -> dict[str, list[float]]:
            untrained = Learner(reading.spec, pool.device)
            scores = {PIXELS: pixel_floor(exam, pool.device)}
            scores[RANDOM] = examine(untrained, how, exam, reading.steps)
            if isinstance(how, ProtoNet) and list(reading.words) != ["plain"]:
                untrained.readout = how.fit_readout(reading.words, untrained, reading.mirrors)
                scores[RANDOM_READ] = examine(untrained, how, exam, reading.steps)
            return {label: list(score.values) for label, score in (scores | _frozen(exam, pool, inside)).items()}

        key = [exam.digest, *reading.key(), pool.fingerprint(), inside, vars(pool.api)]
        for label, values in kept(".floors", key, seed_value, compute).items():
            lines.setdefault(label, {})[exam.spec.name] = Score(values)
    return lines


def _frozen(exam: Exam, pool: TeacherPool, inside: bool) -> dict[str, Score]:
    """Nearest class mean in what one frozen teacher makes of an image, and all of them; nothing without teachers."""
    if not len(pool) or pool.servers:  # servers are asked for what a run learns, not for a yardstick
        return {}
    distances = teacher_distances(pool, exam, "features" if inside else "answers")
    how = "" if inside else ANSWERS_ALONE
    return {
        ONE_TEACHER + how: ensemble_score(distances, 1),
        all_teachers(len(pool)) + how: ensemble_score(distances, len(pool)),
    }
