"""What may be seen of a teacher when it looks at an image: features and logits of a white box, answers of a black one."""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.metalearners.readout import half_whitening
from methods.services.black_box import centred_answers
from methods.services.meter import Meter
from methods.teachers.pool import TeacherPool
from utils import distributed
from utils.images import fitting_count, to_float
from utils.kept import Kept
from utils.progress import Progress

SHOWN_AT_ONCE = 500  # images of up to 84 pixels
DIRECTIONS = 64  # that are told of a wide teacher

View = Callable[[TeacherPool, int, Tensor, Meter], Tensor]  # images (B, C, S, S) in [0, 1] -> (B, D)


def _answers(pool: TeacherPool, teacher_id: int, images: Tensor, meter: Meter) -> Tensor:
    return pool.black_box(teacher_id, meter).query(images)


def _centred(pool: TeacherPool, teacher_id: int, images: Tensor, meter: Meter) -> Tensor:
    return centred_answers(_answers(pool, teacher_id, images, meter))


def shown_at_once(pool: TeacherPool, teacher_id: int) -> int:
    """Images that a teacher sees together: what its layers make of them must fit into memory; a server knows itself."""
    server, size = pool.server_of(teacher_id), pool.rows[teacher_id].image_size
    return server.at_once if server else fitting_count(SHOWN_AT_ONCE, size)


def calls_for(pool: TeacherPool, teacher_id: int, images: int) -> int:
    """How often a black box is asked for so many answers."""
    server = pool.server_of(teacher_id)
    return -(-images // (server.batch if server else shown_at_once(pool, teacher_id)))


VIEWS: dict[str, View] = {
    "features": lambda pool, teacher_id, images, meter: pool[teacher_id].features(images),
    "logits": lambda pool, teacher_id, images, meter: pool[teacher_id](images),
    "probabilities": _answers,
    "answers": _centred,
}
BLACK_BOX_VIEWS = ("probabilities", "answers")  # which services can be had by


@torch.no_grad()
def view_of(
    pool: TeacherPool,
    teacher_id: int,
    view: str,
    images: Tensor,
    meter: Meter | None = None,
    told: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """The `view` of a teacher on uint8 images (M, C, S, S), each at length 1: (M, D).

    `meter` counts what services are asked; `told` hears of the images that have been answered.
    """
    meter, look, parts = meter or pool.meter, VIEWS[view], []
    for some in images.split(shown_at_once(pool, teacher_id)):
        parts.append(look(pool, teacher_id, to_float(some.to(pool.device)), meter))
        told(len(some))
    return F.normalize(torch.cat(parts))


def side_by_side(
    pool: TeacherPool,
    teacher_ids: Iterable[int],
    view: str,
    images: Tensor,
) -> Tensor:
    """The `view` of several teachers on uint8 images (M, C, S, S), each at length 1: (M, D)."""
    return torch.cat([view_of(pool, teacher_id, view, images) for teacher_id in teacher_ids], 1)


def ask_everybody(pool: TeacherPool, view: str, images: Tensor, said: Tensor, kept: Kept, number: int, meter: Meter) -> None:
    """Fill `said` (M, D), in half precision, with the `view` of all teachers on uint8 images (M, C, S, S), side by side.

    Of each one as many numbers as `widths_of` says. Everybody is asked about the same images only once, ever: each one's
    answers are kept. Several processes share the teachers.
    """
    digest = hashlib.sha256(images.cpu().contiguous().numpy()).hexdigest()  # type: ignore[arg-type]
    mine = list(range(len(pool)))[distributed.share()]
    columns = said.split(widths_of(pool, view), 1)
    parts: list[Tensor] = []
    with Progress(total=len(mine) * len(images), desc="asking", unit=" images", unit_scale=True, leave=False) as progress:

        def ask(teacher_id: int) -> Tensor:
            return view_of(pool, teacher_id, view, images, meter, progress.update).half()

        for done, teacher_id in enumerate(mine, start=1):
            key: list[Any] = [digest, pool.fingerprint_of(teacher_id), view, vars(pool.api)]
            views = in_directions(
                kept(".asked", key, number, partial(ask, teacher_id)).to(pool.device), columns[teacher_id].shape[1]
            )
            if distributed.size() > 1:
                parts.append(views)  # for the others, too
            else:
                columns[teacher_id].copy_(views)
            progress.update(done * len(images) - progress.n)  # what was kept needs no asking
    if distributed.size() > 1:
        for column, views in zip(columns, distributed.gathered(parts), strict=True):
            column.copy_(views)


def widths_of(pool: TeacherPool, view: str) -> list[int]:
    """How many numbers `ask_everybody` has of each teacher: its classes, at most `DIRECTIONS`; of features always so many."""
    return [DIRECTIONS if view == "features" else min(len(row.class_ids), DIRECTIONS) for row in pool.rows]


def in_directions(views: Tensor, width: int) -> Tensor:
    """Views (M, D) as they are where D is `width`; wider ones along the `width` directions in which they differ most.

    Their mean is left out, the directions are half whitened, and each image's numbers have length 1 again: (M, width).
    Narrower ones are filled up with zeros.
    """
    if views.shape[1] <= width:
        return F.pad(views, (0, width - views.shape[1]))
    centred = views.float() - views.float().mean(0)
    leading = half_whitening(centred)[:, -width:]  # the last are those with the largest singular values
    return F.pad(F.normalize(centred @ leading), (0, width - leading.shape[1])).half()
