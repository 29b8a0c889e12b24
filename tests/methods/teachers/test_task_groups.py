from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from methods.teachers import task_groups
from methods.teachers.manifest import TeacherRow
from methods.teachers.task_groups import GROUPINGS, dissimilarity, mean_between, show_groups

pytestmark = pytest.mark.usefixtures("float64")


def test_dissimilarity_by_hand() -> None:
    """Two layers of two filters; eps is a thousandth of a layer's mean."""
    a, b = [torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])], [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0])]
    matrix = dissimilarity([a, b])
    e = 0.002  # the mean of both layers is 2
    share_a, share_b = torch.tensor([1, 3]) / (4 + e), torch.tensor([3, 1]) / (4 + e)
    cosine = float(share_a @ share_b / (share_a.norm() * share_b.norm()))  # 6 / 10
    assert float(matrix[0, 1]) == pytest.approx(1 - (cosine + 1) / 2, abs=1e-9)
    assert torch.equal(matrix, matrix.T)
    assert matrix.diagonal().tolist() == [0, 0]


def test_layers_that_one_of_a_pair_lacks_are_left_out() -> None:
    torch.manual_seed(0)
    full = [[torch.rand(4), torch.rand(4)] for _ in range(3)]
    lacking = [[layers[0], torch.full((4,), torch.nan)] if i == 0 else layers for i, layers in enumerate(full)]
    matrix, first = dissimilarity(lacking), dissimilarity([[layers[0]] for layers in full])
    assert torch.allclose(matrix[0], first[0], atol=1e-9)
    assert float((matrix[1, 2] - first[1, 2]).abs()) > 1e-4
    assert not matrix.isnan().any()


def test_a_large_pool_is_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    places = [[torch.rand(4), torch.rand(6)] for _ in range(5)]
    whole = dissimilarity(places)
    monkeypatch.setattr(task_groups, "NUMBERS_AT_ONCE", 50)  # two rows at a time of one layer, one of the other
    assert torch.allclose(dissimilarity(places), whole, rtol=1e-12)


def two_kinds() -> torch.Tensor:
    """Eight teachers, even ones of one kind, odd ones of another: unlike across kinds, alike within."""
    kind = torch.arange(8) % 2
    noise = 0.02 * torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    matrix = 0.1 + 0.7 * (kind[:, None] != kind).float() + noise + noise.T
    return matrix.fill_diagonal_(0)


def test_alike_groups_are_the_kinds_and_unlike_groups_mix_them() -> None:
    matrix = two_kinds()
    assert GROUPINGS["alike"](matrix, 2, 0) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    unlike = GROUPINGS["unlike"](matrix, 2, 0)
    assert sorted(teacher for group in unlike for teacher in group) == list(range(8))
    assert all({teacher % 2 for teacher in group} == {0, 1} for group in unlike)
    whole = mean_between(matrix, range(8), range(8))
    assert max(mean_between(matrix, group, group) for group in GROUPINGS["alike"](matrix, 2, 0)) < whole
    assert min(mean_between(matrix, group, group) for group in unlike) > whole


def test_random_groups_are_even_and_depend_on_the_seed_alone() -> None:
    matrix = two_kinds()
    groups = GROUPINGS["random"](matrix, 3, 5)
    assert sorted(len(group) for group in groups) == [2, 3, 3]
    assert sorted(teacher for group in groups for teacher in group) == list(range(8))
    assert groups == GROUPINGS["random"](1 - matrix, 3, 5)
    assert any(groups != GROUPINGS["random"](matrix, 3, other) for other in (6, 7, 8))


@pytest.mark.parametrize("name", GROUPINGS)
def test_one_group_is_everybody(name: str) -> None:
    assert GROUPINGS[name](two_kinds(), 1, 0) == [list(range(8))]


def test_groups_are_shown_as_table_and_picture(tmp_path: Path) -> None:
    names = [f"teacher_{i:03d}.pth" for i in range(4)]
    rows = [TeacherRow(tmp_path / name, "conv4", (0, 1), ("a", "b"), 16, (0.5,), (0.2,), "cub") for name in names]
    rows[1] = replace(rows[1], dataset="flower")
    matrix = two_kinds()[:4, :4]
    text = show_groups(rows, matrix, [[0, 1, 3], [2]], "unlike", tmp_path)
    table = pd.read_csv(tmp_path / "groups.csv")
    assert table.teacher.tolist() == ["teacher_000", "teacher_001", "teacher_003", "teacher_002"]
    assert table.group.tolist() == [1, 1, 1, 2]
    assert "2 cub/conv4, 1 flower/conv4" in text
    between = (matrix[1, 0] + matrix[1, 2] + matrix[1, 3]) / 3
    assert f"{float(between):.3f}" in text.split("dissimilarity of kinds")[1]
    assert text.endswith("nan")  # one flower teacher has no like
    assert (tmp_path / "images" / "dissimilarity.png").stat().st_size > 1000
