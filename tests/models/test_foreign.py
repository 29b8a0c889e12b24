"""Other people's networks: what they answer is found out before they are trusted."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import create_model
from models.foreign import Foreign
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float64")


class Net(nn.Module):
    """A network of four features and three classes, whose head was made first and whose projector only training used."""

    def __init__(self, end: Callable[[Tensor], Any] = lambda logits: logits, channels: int = 3) -> None:
        super().__init__()
        self.classifier, self.end = nn.Linear(4, 3), end
        self.conv, self.norm = nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6)
        self.embed, self.projector = nn.Linear(6, 4), nn.Linear(4, 2)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.embed(torch.relu(self.norm(self.conv(x))).mean((2, 3))))

    def forward(self, x: Tensor) -> Any:
        return self.end(self.classifier(self.features(x)))


class Convolutional(nn.Module):
    """No linear layer gives its answer."""

    def __init__(self, end: Callable[[Tensor], Tensor] = lambda logits: logits) -> None:
        super().__init__()
        self.conv, self.end = nn.Conv2d(3, 3, 3), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.conv(x).mean((2, 3)))


def made(network: nn.Module) -> tuple[Foreign, Tensor]:
    torch.manual_seed(0)
    for parameter in network.double().parameters():
        nn.init.normal_(parameter)
    return Foreign(network, 3).eval(), torch.rand(8, 3, 9, 9)


ENDS: dict[str, Callable[[Tensor], Any]] = {
    "logits": lambda logits: logits,
    "log-softmax": lambda logits: logits.log_softmax(1),
    "softmax": lambda logits: logits.softmax(1),
    "dict": lambda logits: {"loss": None, "logits": logits},
    "object": lambda logits: SimpleNamespace(logits=logits, hidden=None),
    "tuple": lambda logits: (logits, None),
    "loss first": lambda logits: (logits.mean(), logits, logits.repeat(1, 2)),
    "nested": lambda logits: ((logits,), {"hidden": logits[:, :2]}),
    "half": lambda logits: logits.float(),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_head_is_the_layer_that_feeds_the_answer(end: str) -> None:
    foreign, x = made(Net(ENDS[end]))
    notes = foreign.settle(x)
    features, logits = foreign.features_and_logits(x)
    assert torch.equal(features, foreign.network.features(x))
    assert torch.equal(logits, foreign.network.classifier(features))
    assert torch.equal(foreign.head(features), logits)
    assert torch.equal(foreign.head(foreign.features(x)), foreign(x))
    assert foreign.feature_dim == 4
    assert bool(notes) == (end not in ("logits", "log-softmax", "half"))
    assert not foreign.network.classifier._forward_hooks


@pytest.mark.parametrize("end", ["logits", "softmax"])
def test_without_a_linear_layer_logits_serve_as_features(end: str) -> None:
    foreign, x = made(Convolutional(ENDS[end]))
    notes = foreign.settle(x)
    features, logits = foreign.features_and_logits(x)
    assert torch.equal(foreign.head(features), logits)
    assert torch.allclose(
        logits.softmax(1), foreign.network(x).softmax(1) if end == "logits" else foreign.network(x), rtol=1e-9
    )
    assert any("probabilities" in note for note in notes) == (end == "softmax")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Net(lambda logits: torch.cat([logits, logits[:, :1]], 1)), r"answered \(8, 4\) for 3 classes; expected \(8, 3\)"),
        (Net(lambda logits: logits[:, :, None, None]), r"answered \(8, 3, 1, 1\)"),
        (Net(torch.sigmoid), "take the sigmoid at its end off"),
        (Convolutional(torch.sigmoid), "take the sigmoid at its end off"),
        (Net(lambda logits: {"a": logits, "b": logits}), "several of them may be the logits"),
        (Net(lambda logits: [None]), "answers a list of no tensors"),
        (Net(lambda logits: [logits[:, :2], logits.flatten()]), "none of them is"),
        (Net(lambda logits: [logits, 2 * logits]), "several of them may be the logits"),
        (Convolutional(lambda logits: 100 * logits.softmax(1)), "answers shares that sum to 100"),
        (Convolutional(lambda logits: 1.0 * (logits == logits.amax(1, keepdim=True))), "answers only 0 and 1"),
        (Net(lambda logits: logits.argmax(1)), "expected floating-point logits"),
        (Net(channels=4), "images of 4 channels"),
    ],
)
def test_answers_that_cannot_be_used_are_refused(network: nn.Module, words: str) -> None:
    foreign, x = made(network)
    with pytest.raises(UserError, match=words):
        foreign.settle(x)


def test_small_logits_are_not_taken_for_a_sigmoid() -> None:
    """Between 0 and 1 on every image, but by chance."""
    foreign, x = made(Convolutional(lambda logits: 0.5 + 1e-3 * logits))
    foreign.settle(x)
    assert torch.equal(foreign(x), foreign.network(x))


def test_a_grey_network_sees_colours_in_grey() -> None:
    foreign, x = made(Net(channels=1))
    assert foreign.settle(x) == ["takes grey images: colours are turned grey"]
    grey = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    assert torch.allclose(foreign(x), foreign.network(grey), rtol=1e-9)


def test_it_is_found_out_by_itself_and_looking_changes_nothing() -> None:
    foreign, x = made(Net(ENDS["softmax"]))
    before = foreign.network.norm.running_mean.clone()
    foreign.train().settle(x)
    assert foreign.training
    assert torch.equal(foreign.network.norm.running_mean, before)
    foreign.settled = False
    assert torch.equal(foreign.eval()(x), foreign.network.classifier(foreign.network.features(x)))
    assert foreign.settled


class Twice(Net):
    """Calls its head once more, on something else."""

    def forward(self, x: Tensor) -> Tensor:
        answer = self.classifier(self.features(x))
        self.other = self.classifier(self.features(x.flip(0) * 0.3)).detach()
        return answer


class Changed(Net):
    """Changes in place what its head gave."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).mul_(16)


def test_of_several_calls_of_the_head_that_of_the_answer_counts() -> None:
    foreign, x = made(Twice())
    foreign.settle(x)
    features, logits = foreign.features_and_logits(x)
    assert torch.equal(logits, foreign.network(x))
    assert torch.equal(features, foreign.network.features(x))


def test_what_is_done_to_the_answer_of_the_head_makes_it_no_head() -> None:
    foreign, x = made(Changed())
    assert foreign.settle(x) == ["no linear layer gives its answer: logits serve as features"]
    features, logits = foreign.features_and_logits(x)
    assert torch.equal(logits, foreign.network(x))
    assert torch.equal(foreign.head(features), logits)


class ByName(Net):
    """Calls its head by the name of what it is given, and changes the images it is given."""

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(0.5)
        return self.classifier(input=self.features(x))


def test_images_and_head_are_given_anyhow() -> None:
    network, images = made(ByName())
    assert network.settle(images.clone()) == []
    features, logits = network.features_and_logits(images.clone())
    torch.testing.assert_close(logits, network.network.classifier(features))
    torch.testing.assert_close(features, network.network.features((images - 0.5) / 0.5))


class InHalf(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_a_network_that_computes_in_half() -> None:
    network = Foreign(InHalf().eval(), 3)
    images = torch.rand(8, 3, 9, 9, dtype=torch.float32)
    network.float().settle(images)
    features, logits = network.features_and_logits(images)
    assert (features.dtype, logits.dtype, features.shape) == (torch.float32, torch.float32, (8, 4))


def test_answers_that_are_not_finite_are_said_first() -> None:
    network, images = made(Net())
    network.network.norm.running_var.fill_(-1.0)
    with pytest.raises(UserError, match="not finite"):
        network.settle(images)


@pytest.mark.parametrize(
    ("end", "what"),
    [
        (lambda logits: -logits.log_softmax(1), "with the other sign"),
        (lambda logits: (logits / 9).softmax(1).log10(), "to the base of 10"),
        (lambda logits: (logits / 9).softmax(1).log2(), "to the base of 2"),
    ],
    ids=["minus", "log10", "log2"],
)
def test_logarithms_that_are_no_logits(end: Callable[[Tensor], Tensor], what: str) -> None:
    network, images = made(Net(end))
    with pytest.raises(UserError, match=what):
        network.settle(images)


@pytest.mark.parametrize("name", ["fcn_resnet50", "fasterrcnn_resnet50_fpn", "resnet81"])
def test_what_is_no_classifier_of_torchvision_is_said_before_anything_is_fetched(name: str) -> None:
    with pytest.raises(UserError, match="has no classifier of that name"):
        create_model(f"torchvision/{name}", 3, 32)
