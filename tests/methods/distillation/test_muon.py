import pytest
import torch
from torch import nn

from methods.distillation.muon import Muon, orthogonalised

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (1, 9), (8, 8)])
def test_all_directions_become_about_equally_long_and_stay_where_they_were(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(1, 0.05, len(v))) @ v
    inside = u.T @ orthogonalised(matrix) @ v.T  # diagonal, where u and v are its singular vectors, too
    assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-9)
    assert inside.diagonal().min() > 0.6
    assert inside.diagonal().max() < 1.3
    assert torch.allclose(orthogonalised(3 * matrix), orthogonalised(matrix), atol=1e-4)  # however long it is


def test_what_is_rounding_moves_nothing() -> None:
    assert orthogonalised(torch.zeros(2, 3)).abs().max() == 0
    assert orthogonalised(torch.full((1, 4), 1e-12)).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (5, 30), (7,)])
def test_a_step_is_as_long_as_its_rate_says(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape))
    before = parameter.detach().clone()
    optimizer = Muon([parameter], 0.01)
    parameter.square().sum().backward()
    optimizer.step()
    moved = before - parameter.detach()
    assert 0.006 < float(moved.square().mean().sqrt()) < 0.013
    assert float((moved * before).sum()) > 0  # downhill


def test_steps_follow_the_momentum() -> None:
    """Two steps by hand: .05 of a gradient is taken into the momentum, and a step looks as far ahead (Nesterov)."""
    torch.manual_seed(0)
    parameter, still = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.ones(2))
    optimizer = Muon([parameter, still], 0.1)
    first, second = torch.randn(3, 4), torch.randn(3, 4)
    for gradient in (first, second):
        parameter.grad = gradient.clone()
        optimizer.step()
    momentum = 0.05 * first
    wanted = -0.1 * 2 * orthogonalised(0.05 * first + 0.95 * momentum)
    momentum = 0.95 * momentum + 0.05 * second
    wanted -= 0.1 * 2 * orthogonalised(0.05 * second + 0.95 * momentum)
    assert torch.allclose(parameter.detach(), wanted, atol=1e-12)
    assert torch.equal(still.detach(), torch.ones(2))  # it has no gradient


def test_badly_scaled_directions_are_learnt_alike() -> None:
    """Least squares whose inputs differ a hundredfold in size, where plain descent would crawl."""
    torch.manual_seed(0)
    x, truth = torch.randn(200, 4) * torch.tensor([1.0, 0.3, 0.1, 0.03]), torch.randn(3, 4)
    layer = nn.Linear(4, 3, bias=False)
    optimizer = Muon(layer.parameters(), 0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, total_iters=300)
    for _ in range(300):
        optimizer.zero_grad()
        (layer(x) - x @ truth.T).square().mean().backward()
        optimizer.step()
        schedule.step()
    assert (layer.weight.detach() - truth).abs().max() < 0.1
