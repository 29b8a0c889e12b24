"""What may be seen of a teacher when it looks at an image: features and logits of a white box, answers of a black one."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.services.black_box import ApiDtype, Meter, log_answers
from methods.teachers.pool import TeacherPool
from utils.images import to_float

SHOWN_AT_ONCE = 500  # images

View = Callable[[TeacherPool, int, Tensor, Meter, ApiDtype], Tensor]  # images (B, C, S, S) in [0, 1] -> (B, D)


def _answers(pool: TeacherPool, teacher_id: int, images: Tensor, meter: Meter, dtype: ApiDtype) -> Tensor:
    return pool.black_box(teacher_id, meter, dtype).query(images)


def _centred(pool: TeacherPool, teacher_id: int, images: Tensor, meter: Meter, dtype: ApiDtype) -> Tensor:
    """Log-probabilities without their mean: the logits, up to what softmax forgets."""
    logits = log_answers(_answers(pool, teacher_id, images, meter, dtype))
    return logits - logits.mean(1, keepdim=True)


VIEWS: dict[str, View] = {
    "features": lambda pool, teacher_id, images, meter, dtype: pool[teacher_id].features(images),
    "logits": lambda pool, teacher_id, images, meter, dtype: pool[teacher_id](images),
    "probabilities": _answers,
    "answers": _centred,
}
BLACK_BOX_VIEWS = ("probabilities", "answers")  # which services can be had by


@torch.no_grad()
def view_of(
    pool: TeacherPool, teacher_id: int, view: str, images: Tensor, meter: Meter | None = None, dtype: ApiDtype = "float32"
) -> Tensor:
    """The `view` of a teacher on uint8 images (M, C, S, S), each at length 1: (M, D).

    `meter` counts what services are asked.
    """
    meter, look = meter or Meter(), VIEWS[view]
    parts = [look(pool, teacher_id, to_float(some.to(pool.device)), meter, dtype) for some in images.split(SHOWN_AT_ONCE)]
    return F.normalize(torch.cat(parts))
