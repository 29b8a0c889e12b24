"""Groups of teachers by how unlike they are (Task Groupings Regularization; Wei et al., ICML 2024)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.cluster import SpectralClustering
from torch import Tensor

from methods.teachers.manifest import TeacherRow
from methods.teachers.probes import Embedding
from utils import report, seed
from utils.files import write_text
from utils.plots import draw_matrix


def dissimilarity(embeddings: Sequence[Embedding]) -> Tensor:
    """1 - mean over layers of cos( a / (a + b + eps), b / (a + b + eps) ) of each pair (a, b): (T, T) in [0, 1].

    Each filter counts relative to how much the two teachers use it; eps is 1e-3 of the layer's mean. Layers that are nan
    in one of the two are left out of the pair's mean (0 where none is left).
    """
    similar = []
    for layer in zip(*embeddings, strict=True):
        f = torch.stack(layer)  # (T, filters)
        share = f[:, None] / (f[:, None] + f[None] + 1e-3 * f.nanmean())  # (T, T, filters), a's part of each pair
        similar.append(F.cosine_similarity(share, share.transpose(0, 1), dim=2))
    mean = torch.stack(similar).nanmean(0)
    return (1 - (mean + mean.T) / 2).nan_to_num(0).clamp(0, 1).fill_diagonal_(0)


def group_by(affinity: Tensor, count: int, seed_value: int) -> list[list[int]]:
    """Spectral clustering by an affinity matrix (T, T): the teachers of each group, the largest group first."""
    if count == 1:
        return [list(range(len(affinity)))]
    model = SpectralClustering(count, affinity="precomputed", assign_labels="cluster_qr", random_state=seed_value)
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


def mean_within(matrix: Tensor, groups: Sequence[Sequence[int]]) -> list[float]:
    """Mean dissimilarity between the teachers of each group; nan for a group of one."""
    parts = [matrix[list(group)][:, list(group)] for group in groups]
    return [float(part.sum()) / (len(part) * (len(part) - 1)) if len(part) > 1 else float("nan") for part in parts]


def show_groups(rows: Sequence[TeacherRow], matrix: Tensor, groups: Sequence[Sequence[int]], title: str, folder: Path) -> str:
    """Write groups.csv, and the matrix ordered by group as images/dissimilarity.png; return a table of the groups."""
    order = [teacher_id for group in groups for teacher_id in group]
    table = pd.DataFrame(
        {
            "group": [number for number, group in enumerate(groups, start=1) for _ in group],
            "kind": [f"{rows[teacher_id].dataset}/{rows[teacher_id].arch}" for teacher_id in order],
            "teacher": [rows[teacher_id].path.stem for teacher_id in order],
            "classes": [" ".join(rows[teacher_id].class_names) for teacher_id in order],
        }
    )
    write_text(folder / "groups.csv", table.to_csv(index=False, lineterminator="\n"))
    labels = (table.kind + " " + table.teacher).tolist()
    sizes = [len(group) for group in groups]
    draw_matrix(matrix[order][:, order].tolist(), sizes, labels, title, folder / "images" / "dissimilarity.png")
    lines: list[list[str]] = []
    for group, within in zip([*groups, order], mean_within(matrix, [*groups, order]), strict=True):
        kinds = pd.Series([f"{rows[teacher_id].dataset}/{rows[teacher_id].arch}" for teacher_id in group]).value_counts()
        name = str(len(lines) + 1) if len(lines) < len(groups) else "all"
        lines.append([name, ", ".join(f"{count} {kind}" for kind, count in kinds.items()), f"{within:.3f}"])
    return report.table(["group", "teachers", "dissimilarity"], lines)
