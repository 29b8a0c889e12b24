"""The mean of the teachers' parameters."""

import torch

from methods.metalearners.base import Params
from methods.teachers.pool import TeacherPool
from utils.errors import UserError


@torch.no_grad()
def average_into(params: Params, arch: str, pool: TeacherPool) -> None:
    """Set `params`, in place, to the mean over the teachers of architecture `arch`.

    A head of another shape than the learner's is left as it is. Raises `UserError` where the pool has no such teacher.
    """
    alike = [index for index, row in enumerate(pool.rows) if row.arch == arch]
    if not alike:
        raise UserError(f"the mean needs teachers of the learner's architecture, {arch}; the pool has none")
    weights = [dict(pool[index].network.named_parameters()) for index in alike]
    for name, value in params.items():
        if all(teacher[name].shape == value.shape for teacher in weights):
            value.copy_(torch.stack([teacher[name] for teacher in weights]).mean(0))
