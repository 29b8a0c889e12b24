"""The mean of the teachers' parameters, as they stand or with their neurons brought into one order first."""

import torch
from torch import Tensor

from methods.metalearners.base import Params
from methods.teachers.pool import TeacherPool
from models.backbone import Backbone, Channels
from utils.errors import UserError


@torch.no_grad()
def average_into(params: Params, arch: str, pool: TeacherPool, align: bool = False) -> None:
    """Set `params`, in place, to the mean over the teachers of architecture `arch`, with `align` to the first of them.

    Heads of another shape than the learner's are left out. Raises `UserError` where the pool has no such teacher.
    """
    alike = [index for index, row in enumerate(pool.rows) if row.arch == arch]
    if not alike:
        raise UserError(f"the mean needs teachers of the learner's architecture, {arch}; the pool has none")
    weights: list[Params] = [dict(pool[index].network.named_parameters()) for index in alike]
    if align:
        groups = _groups(pool[alike[0]].network, arch)
        weights = [weights[0], *[aligned(teacher, weights[0], groups) for teacher in weights[1:]]]
    for name, value in params.items():
        fitting = [teacher[name] for teacher in weights if teacher[name].shape == value.shape]
        if fitting:
            value.copy_(torch.stack(fitting).mean(0))


def _groups(network: Backbone, arch: str) -> list[Channels]:
    try:
        return network.channels()
    except NotImplementedError as error:
        raise UserError(f"the neurons of {arch} cannot be aligned: nobody has said which channels belong together") from error


@torch.no_grad()
def aligned(network: Params, reference: Params, groups: list[Channels]) -> dict[str, Tensor]:
    """`network` with its channels in the order of `reference`'s; it computes the same.

    Two networks that were trained apart do alike things with neurons in another order, and the mean of unlike neurons is
    neither. From the images up, the channels of each group are matched by the assignment of least squared distance
    between what makes them, incoming weights first of all: optimal transport between equal masses, which is a permutation
    (Singh and Jaggi, Model Fusion via Optimal Transport, NeurIPS 2020).
    """
    moved = dict(network)
    for group in groups:
        order = _matching(*[_makings(state, group.writers[: group.compared]) for state in (reference, moved)])
        for writer in group.writers:
            for part in ("weight", "bias"):
                if f"{writer}.{part}" in moved:
                    moved[f"{writer}.{part}"] = moved[f"{writer}.{part}"][order]
        for reader in group.readers:
            weight = moved[f"{reader}.weight"]
            # a linear layer may read several pixels of each channel, side by side: (outputs, channels * pixels)
            by_channel = weight if weight.dim() == 4 else weight.unflatten(1, (len(order), -1))
            moved[f"{reader}.weight"] = by_channel[:, order].reshape(weight.shape)
    return moved


def _makings(state: Params, writers: list[str]) -> Tensor:
    """What makes each channel: filters, biases, scales and shifts of the modules that write it, (channels, numbers)."""
    parts = [state[name] for writer in writers for part in ("weight", "bias") if (name := f"{writer}.{part}") in state]
    return torch.cat([part.reshape(len(part), -1) for part in parts], 1)


def _matching(reference: Tensor, other: Tensor) -> Tensor:
    """Which of `other`'s rows (N, D) belongs to each of `reference`'s: (N,) indices."""
    cost = torch.cdist(reference, other).square()
    from scipy.optimize import linear_sum_assignment  # slow to import

    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(reference.device)
