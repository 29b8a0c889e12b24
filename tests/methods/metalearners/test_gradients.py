"""Meta-gradients against references that share no code with ours."""

import copy
import importlib
import os
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datasets.episodes import Episodes, make_episodes
from methods.metalearners import ANIL, MAML, METALEARNERS, ProtoNet
from methods.metalearners.base import Metalearner
from methods.metalearners.gradients import aligned_gradient, meta_gradient, reptile_step
from models import create_model
from models.backbone import Backbone
from models.norm import BatchStatsNorm2d
from utils.vision import import_torchvision

pytestmark = pytest.mark.usefixtures("float64")
STEPS, INNER_LR = 3, 0.4  # a large rate makes second-order terms show


class Smooth(Backbone):
    """Small and without kinks, so that finite differences can be trusted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = BatchStatsNorm2d(4)
        self.head = nn.Linear(4, 3)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(torch.tanh(self.norm(self.conv(x))), x.shape[-1]).flatten(1)


def make(network: Backbone, size: int = 8) -> tuple[Backbone, dict[str, torch.Tensor], Episodes]:
    params = {name: value.detach().clone().requires_grad_() for name, value in network.named_parameters()}
    images = torch.randn(2, 3 * (1 + 2), 3, size, size)
    return network, params, make_episodes(images[:, :3], images[:, 3:], way=3)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def mean_loss(metalearner: Metalearner, params: dict[str, torch.Tensor], episodes: Episodes) -> float:
    return float(metalearner.outer_loss(params, episodes, STEPS, create_graph=False)[0].mean())


@pytest.mark.parametrize("kind", METALEARNERS.values(), ids=METALEARNERS)
@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_second_order_equals_finite_differences(kind: type[Metalearner], execution: str) -> None:
    network, params, episodes = make(Smooth())
    metalearner = kind(network, INNER_LR, execution)
    gradient, loss, _ = meta_gradient(metalearner, params, episodes, STEPS)
    assert float(loss) == pytest.approx(mean_loss(metalearner, params, episodes), rel=1e-9)
    for name, value in params.items():
        direction = torch.randn_like(value)
        shifted = [{**params, name: (value + sign * 1e-5 * direction).detach()} for sign in (1, -1)]
        slope = (mean_loss(metalearner, shifted[0], episodes) - mean_loss(metalearner, shifted[1], episodes)) / 2e-5
        assert float((gradient[name] * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8), name  # of differences


@pytest.mark.parametrize("kind", METALEARNERS.values(), ids=METALEARNERS)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("arch", ["conv4", pytest.param("resnet10", marks=pytest.mark.slow)])
def test_loop_and_vmap_agree(kind: type[Metalearner], first_order: bool, arch: str) -> None:
    network, params, episodes = make(create_model(arch, 3, 16, norm="batch"), size=16)
    results = [meta_gradient(kind(network, 0.05, how), params, episodes, STEPS, first_order) for how in ("loop", "vmap")]
    for name in params:
        assert torch.allclose(results[0][0][name], results[1][0][name], rtol=1e-9, atol=1e-12), name
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-9)
    assert torch.equal(results[0][2], results[1][2])


@pytest.mark.parametrize(
    ("kind", "first_order"),
    [
        (ANIL, False),
        *[pytest.param(*row, marks=pytest.mark.slow) for row in ((MAML, False), (MAML, True), (ANIL, True), (ProtoNet, False))],
    ],
)
def test_the_outer_gradient_is_one_piece_for_a_compiler(kind: type[Metalearner], first_order: bool) -> None:
    """A function that cannot be traced whole would run as it stands, with a note."""
    network, params, episodes = make(create_model("conv4", 3, 16, norm="batch"), size=16)
    plain = kind(network, 0.05, "vmap")
    compiled = kind(network, 0.05, "vmap", compiler="eager")
    for _ in range(2):
        wanted, found = (meta_gradient(one, params, episodes, STEPS, first_order) for one in (plain, compiled))
        for name, value in params.items():
            assert torch.allclose(wanted[0][name], found[0][name], rtol=1e-9, atol=1e-12), name
            with torch.no_grad():
                value -= 0.1 * found[0][name]  # as an optimizer does, in place
        assert torch.allclose(wanted[1], found[1], rtol=1e-9)
        assert torch.equal(wanted[2], found[2])
    assert compiled.compiled, "it gave up"


@pytest.fixture(scope="module")
def learn2learn() -> ModuleType:
    import_torchvision()  # learn2learn imports it by the front door
    if "CI" in os.environ:
        return importlib.import_module("learn2learn")
    return pytest.importorskip("learn2learn", reason="optional: bash scripts/install_learn2learn.sh")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("execution", ["loop", "vmap"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("arch", ["conv4", pytest.param("resnet10", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [MAML, ANIL])
def test_equal_to_learn2learn(
    learn2learn: ModuleType, kind: type[Metalearner], arch: str, first_order: bool, execution: str
) -> None:
    network, params, episodes = make(create_model(arch, 3, 16, norm="batch"), size=16)
    model = copy.deepcopy(network).requires_grad_()
    model.load_state_dict(params)
    total = 0.0
    for support, labels, query, query_labels in zip(
        episodes.support, episodes.support_labels, episodes.query, episodes.query_labels, strict=True
    ):
        if kind is MAML:
            learner = learn2learn.algorithms.MAML(model, lr=0.05, first_order=first_order).clone()
            inputs = (support, query)
        else:
            head = learn2learn.algorithms.MAML(model.head, lr=0.05, first_order=first_order)
            learner = head.clone()
            inputs = (model.features(support), model.features(query))
        inner = inputs[0].detach() if first_order else inputs[0]
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(learner(inner), labels))
        total = total + F.cross_entropy(learner(inputs[1]), query_labels) / len(episodes)
    wanted = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)
    gradient, loss, _ = meta_gradient(kind(network, 0.05, execution), params, episodes, STEPS, first_order)
    assert float(loss) == pytest.approx(float(total), rel=1e-9)
    for (name, _), reference in zip(model.named_parameters(), wanted, strict=True):
        assert torch.allclose(gradient[name], reference, rtol=1e-9, atol=1e-12), name


def test_first_order_differs_from_second_order() -> None:
    network, params, episodes = make(Smooth())
    second = meta_gradient(MAML(network, INNER_LR), params, episodes, STEPS)[0]
    first = meta_gradient(MAML(network, INNER_LR), params, episodes, STEPS, first_order=True)[0]
    assert not torch.allclose(first["conv.weight"], second["conv.weight"], rtol=1e-2)


def test_reptile_goes_the_given_part_of_the_way() -> None:
    params, adapted = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    reptile_step(params, adapted, 0.25)
    assert params["w"].tolist() == [1.5, 1.5]


def test_protonet_by_hand() -> None:
    """Features are the head's input; with an identity body the nearest mean is easy to see."""

    class Identity(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def features(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    network = Identity()
    support = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 4, 0], [0, 6, 0]]]).view(1, 4, 3, 1, 1)
    query = torch.tensor([[[1.0, 1, 0], [0, 4, 0]]]).view(1, 2, 3, 1, 1)
    labels = torch.tensor([0, 0, 1, 1])
    logits = ProtoNet(network).classify(dict(network.named_parameters()), support[0], labels, query[0], 2)
    assert logits.tolist() == [[-1.0, -17.0], [-17.0, -1.0]]


@pytest.mark.parametrize("kind", [MAML, ANIL])
@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_another_way_starts_from_class_means(kind: type[Metalearner], execution: str) -> None:
    network, params, _ = make(Smooth())
    images = torch.randn(2, 5 * 3, 3, 8, 8)
    episodes = make_episodes(images[:, :5], images[:, 5:], way=5)
    metalearner = kind(network, 1e-9, execution)
    loss, accuracy = metalearner.outer_loss(params, episodes, 1, create_graph=False)
    near = ProtoNet(network, execution=execution).outer_loss(params, episodes, 0, create_graph=False)
    assert torch.allclose(loss, near[0], atol=1e-6)  # 2cx - |c|^2 and -|x - c|^2 differ by |x|^2, which softmax ignores
    assert torch.equal(accuracy, near[1])


def test_a_loss_of_somebodys_own_moves_what_the_metalearner_moves() -> None:
    network, params, episodes = make(Smooth())
    support = episodes.support[0]

    def loss(fast: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(network, fast, (support,)).square().sum()

    moved = {}
    for kind in (MAML, ANIL):
        fast = kind(network, INNER_LR).adapted_by(loss, params, STEPS, create_graph=False)
        assert fast.keys() == params.keys()
        moved[kind] = {name for name, value in fast.items() if not torch.equal(value, params[name])}
    assert moved[MAML] == set(params)
    assert moved[ANIL] == {"head.weight", "head.bias"}


@pytest.mark.parametrize("kind", METALEARNERS.values(), ids=METALEARNERS)
def test_inductive_answers_do_not_depend_on_the_other_queries(kind: type[Metalearner]) -> None:
    network, params, episodes = make(Smooth())
    support, labels, query = episodes.support[0], episodes.support_labels[0], episodes.query[0]
    for inductive in (True, False):
        metalearner = kind(network, INNER_LR, inductive=inductive)
        fast = metalearner.adapt(params, support, labels, STEPS, create_graph=False)
        whole, alone = (metalearner.classify(fast, support, labels, part, 3) for part in (query, query[:1]))
        assert torch.allclose(whole[:1], alone) == inductive


def tasks_of(network: nn.Module, count: int = 3) -> list:
    """Losses of a smooth network on batches of its own, as functions of its parameters."""
    torch.manual_seed(2)
    batches = [(torch.randn(6, 3, 8, 8), torch.randint(3, (6,))) for _ in range(count)]
    return [
        lambda params, x=x, y=y: F.cross_entropy(torch.func.functional_call(network, dict(params), (x,)), y) for x, y in batches
    ]


def test_aligned_gradient_is_to_first_order_that_of_the_regularised_loss() -> None:
    """mean_k L_k + displacement / 2 * mean_k |g_k - gbar|^2, whose gradient autograd takes through the gradients."""
    network, params, _ = make(Smooth())
    losses = tasks_of(network)
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    own = [torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True) for loss in losses]
    flat = torch.stack([torch.cat([g.flatten() for g in gradients]) for gradients in own])
    spread = (flat - flat.mean(0)).square().sum(1).mean()
    plain = torch.cat(
        [g.flatten() for g in torch.autograd.grad(sum(loss(leaves) for loss in losses) / 3, list(leaves.values()))]
    )
    penalty = torch.cat([g.flatten() for g in torch.autograd.grad(spread, list(leaves.values()))]) / 2

    def excess(displacement: float) -> torch.Tensor:
        gradient, loss, disagreement = aligned_gradient(losses, params, displacement)
        assert float(disagreement) == pytest.approx(float(spread.detach()), rel=1e-9)
        assert float(loss) == pytest.approx(float(sum(f(params) for f in losses).detach()) / 3, rel=1e-9)
        return (torch.cat([g.flatten() for g in gradient.values()]) - plain) / displacement

    errors = [float((excess(step) - penalty).norm() / penalty.norm()) for step in (1e-2, 1e-3, 1e-4)]
    assert errors[-1] < 1e-3
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 5


def test_aligned_gradient_without_displacement_is_the_mean() -> None:
    network, params, _ = make(Smooth())
    losses = tasks_of(network)
    gradient, _, _ = aligned_gradient(losses, params, 0.0)
    wanted = torch.autograd.grad(sum(loss(params) for loss in losses) / 3, list(params.values()))
    for ours, theirs in zip(gradient.values(), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9)


def test_what_does_not_fit_into_memory_is_halved(capsys: pytest.CaptureFixture[str]) -> None:
    """A GPU that holds three episodes at most: the same gradient, and one note for each size that failed."""
    network, params, _ = make(Smooth())
    images = torch.randn(10, 9, 3, 8, 8)
    episodes = make_episodes(images[:, :3], images[:, 3:], way=3)
    metalearner = MAML(network, INNER_LR, "vmap")
    wanted = meta_gradient(metalearner, params, episodes, STEPS)
    outer_loss, sizes = metalearner.outer_loss, []

    def limited(params: dict, chunk: Episodes, *rest: object, **more: object) -> tuple:
        sizes.append(len(chunk))
        if len(chunk) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outer_loss(params, chunk, *rest, **more)

    metalearner.outer_loss = limited  # type: ignore[method-assign]
    for _ in range(2):
        found = meta_gradient(metalearner, params, episodes, STEPS)
        for name, value in wanted[0].items():
            assert torch.allclose(found[0][name], value, atol=1e-10)
        assert torch.allclose(found[1], wanted[1], rtol=1e-9)
    assert sizes == [10, 5, 2, 2, 2, 2, 2] + [2] * 5
    assert capsys.readouterr().err.count("do not fit") == 2
    metalearner.outer_loss = lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError())  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        meta_gradient(metalearner, params, episodes, STEPS)
