"""Groups of teachers by how unlike they are (Task Groupings Regularization; Wei et al., ICML 2024)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.teachers.manifest import TeacherRow
from methods.teachers.probes import Embedding
from utils import seed, tables
from utils.files import write_text
from utils.plots import draw_matrix

NUMBERS_AT_ONCE = 1 << 22  # of the pairs of a thousand teachers there are billions


def dissimilarity(embeddings: Sequence[Embedding]) -> Tensor:
    """1 - mean over layers of cos( a / (a + b + eps), b / (a + b + eps) ) of each pair (a, b): (T, T) in [0, 1].

    Each filter counts relative to how much the two teachers use it; eps is 1e-3 of the layer's mean. Layers that are nan
    in one of the two are left out of the pair's mean; a pair where none is left is nan.
    """
    similar = []
    for layer in zip(*embeddings, strict=True):
        f = torch.stack(layer)  # (T, filters)
        eps = 1e-3 * f.nanmean()
        rows = []
        for some in f.split(max(1, NUMBERS_AT_ONCE // f.numel())):
            both = some[:, None] + f[None] + eps  # (rows, T, filters)
            rows.append(F.cosine_similarity(some[:, None] / both, f[None] / both, dim=2))
        similar.append(torch.cat(rows))
    mean = torch.stack(similar).nanmean(0)
    return (1 - (mean + mean.T) / 2).clamp(0, 1).fill_diagonal_(0)


def group_by(affinity: Tensor, count: int, seed_value: int) -> list[list[int]]:
    """Spectral clustering by an affinity matrix (T, T): the teachers of each group, the largest group first."""
    if count == 1:
        return [list(range(len(affinity)))]
    from sklearn.cluster import SpectralClustering  # slow to import

    model = SpectralClustering(count, affinity="precomputed", n_init=30, random_state=seed_value)
    labels = model.fit_predict(affinity.double().cpu().numpy())
    found = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    return sorted(found, key=lambda members: (-len(members), members))


def group_at_random(matrix: Tensor, count: int, seed_value: int) -> list[list[int]]:
    """Groups of equal size (to one), whatever the matrix says."""
    order = torch.randperm(len(matrix), generator=seed.generator(seed_value, "groups"))
    return [sorted(part.tolist()) for part in order.tensor_split(count)]


# dissimilarity (T, T), number of groups, seed -> teachers of each group
GROUPINGS: dict[str, Callable[[Tensor, int, int], list[list[int]]]] = {
    "unlike": group_by,
    "alike": lambda matrix, count, seed_value: group_by(1 - matrix, count, seed_value),
    "random": group_at_random,
}


def mean_between(matrix: Tensor, one: Sequence[int], other: Sequence[int]) -> float:
    """Mean dissimilarity of measured pairs with a teacher on each side, a teacher and itself left out; nan: none."""
    pairs = torch.stack([matrix[a, b] for a in one for b in other if a != b] or [torch.tensor(torch.nan)])
    return float(pairs.nanmean())


def show_groups(rows: Sequence[TeacherRow], matrix: Tensor, groups: Sequence[Sequence[int]], title: str, folder: Path) -> str:
    """Write groups.csv, and the matrix ordered by group as images/dissimilarity.png; return tables of groups and kinds."""
    order = [teacher_id for group in groups for teacher_id in group]
    kinds = pd.Series([f"{row.dataset}/{row.arch}" for row in rows])
    table = pd.DataFrame(
        {
            "group": [number for number, group in enumerate(groups, start=1) for _ in group],
            "kind": kinds[order].tolist(),
            "teacher": [rows[teacher_id].path.stem for teacher_id in order],
            "classes": [" ".join(rows[teacher_id].class_names) for teacher_id in order],
        }
    )
    write_text(folder / "groups.csv", table.to_csv(index=False, lineterminator="\n"))
    labels = (table.kind + " " + table.teacher).tolist()
    sizes = [len(group) for group in groups]
    draw_matrix(matrix[order][:, order].tolist(), sizes, labels, title, folder / "images" / "dissimilarity.png")
    lines = []
    for name, group in [*((str(number), group) for number, group in enumerate(groups, start=1)), ("all", order)]:
        members = ", ".join(f"{count} {kind}" for kind, count in kinds[list(group)].value_counts().items())
        lines.append([name, members, f"{mean_between(matrix, group, group):.3f}"])
    text = tables.table(["group", "teachers", "dissimilarity"], lines)
    if kinds.nunique() == 1:
        return text
    by_kind = {kind: kinds.index[kinds == kind].tolist() for kind in kinds.unique()}
    cells = [[one, *[f"{mean_between(matrix, by_kind[one], by_kind[other]):.3f}" for other in by_kind]] for one in by_kind]
    return f"{text}\n\n{tables.table(['dissimilarity of kinds', *by_kind], cells)}"
