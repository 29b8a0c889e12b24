import torch
import torch.nn.functional as F

from methods.evaluation.floors import accuracy_of, distances_to_means


def test_nearest_class_mean_by_hand() -> None:
    embeddings = torch.tensor([[0.0, 0], [2, 0], [0, 9], [0, 11], [1, 1], [1, 9]])
    indices = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[4, 5]])  # means (1, 0) and (0, 10)
    distances = distances_to_means(embeddings, indices, way=2)
    assert torch.allclose(distances, torch.tensor([[[1.0, 82.0], [81.0, 2.0]]]), atol=1e-4)
    assert accuracy_of(distances).tolist() == [1.0]
    assert accuracy_of(distances.flip(2)).tolist() == [0.0]


def test_distances_in_a_concatenation_add_up() -> None:
    torch.manual_seed(0)
    parts = [F.normalize(torch.randn(20, dim)) for dim in (3, 7)]
    indices = torch.arange(6).view(1, 6), torch.arange(6, 18).view(1, 12)
    together = distances_to_means(torch.cat(parts, 1), indices, way=3)
    assert torch.allclose(together, sum(distances_to_means(part, indices, way=3) for part in parts), atol=1e-4)
