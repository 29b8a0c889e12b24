"""The training of teachers on the formula's inputs: two steps, and the rate over the epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference.comparison import SIDE, WAY, filled
from reference.formula import images
from tqdm import tqdm

import pretrain
from datasets.registry import SPECS
from methods.teachers import pretraining
from methods.teachers.pretraining import Recipe, make_optimizer, pretrain_pools, recipe_from, train_teacher
from models import create_model


def two_steps_of_a_teacher(patch: pytest.MonkeyPatch, tmp_path: Path) -> Mapping[str, Any]:
    """An epoch of two batches of ten images, in their order.

    The first layer's running mean is left out: it holds the bias of the convolution, whose gradient is rounding alone, and
    which Adam moves by as much as that is beside its eps.
    """
    losses: list[torch.Tensor] = []
    gradients: list[list[torch.Tensor]] = []
    cross_entropy, prepared = F.cross_entropy, make_optimizer

    def watched(*what: Any) -> Any:
        optimizer, schedule = prepared(*what)
        params = optimizer.param_groups[0]["params"]
        optimizer.register_step_pre_hook(lambda *_: gradients.append([value.grad.clone() for value in params]))
        return optimizer, schedule

    patch.setattr(F, "cross_entropy", lambda *what: (losses.append(found := cross_entropy(*what)), found)[1])
    patch.setattr(pretraining, "make_optimizer", watched)
    patch.setattr(pretraining, "to_float", lambda some: some)  # the case's images are no bytes
    patch.setattr(torch, "randperm", lambda count, generator: torch.arange(count))
    network = filled(create_model("conv4", WAY, SIDE), 100)
    train = torch.cat([images(520 + batch, 10, 3, SIDE, SIDE) for batch in range(2)]), torch.arange(WAY).repeat(4)
    recipe, stream = Recipe(epochs=1, batch_size=10), torch.Generator()
    state, _ = train_teacher(network, "conv4", train, train, SPECS["cifar100"], recipe, stream, tqdm(disable=True))
    return {
        "losses": [float(loss.detach()) for loss in losses],
        "gradient_first": gradients[0],
        "parameters_after": list(network.parameters()),
        "running_var_first_layer": state["blocks.0.norm.running_var"],
    }


def rates(
    patch: pytest.MonkeyPatch, tmp_path: Path, arch: str, dataset: str = "cifar100", flags: Sequence[str] = ()
) -> Mapping[str, Any]:
    """The epochs at which the rate of `pretrain.py` changes, with the rate."""
    recipes: list[tuple[int, Recipe]] = []

    def noted(args: Any, spec: Any, arch: str, recipe: Recipe, *rest: object) -> None:
        recipes.append((recipe.epochs or spec.pretrain_epochs, recipe))

    patch.setattr(pretraining, "_pretrain_pool", noted)
    args = pretrain.parse_args(["--dataset", dataset, "--pre_backbone", arch, *flags])
    pretrain_pools(args, recipe_from(args), torch.device("cpu"))
    ((epochs, recipe),) = recipes
    optimizer, schedule = make_optimizer([torch.zeros(1, requires_grad=True)], arch, recipe)
    found: list[list[float]] = []
    for epoch in range(epochs):
        (rate,) = schedule.get_last_lr()
        found += [[epoch, rate]] if not found or abs(found[-1][1] - rate) > 1e-12 else []
        optimizer.step()
        schedule.step()
    return {"rate": found}
