import math
from dataclasses import replace

import pytest
import torch

from methods.inversion.bn_statistics import distance, record_statistics
from methods.metalearners import METALEARNERS
from methods.metalearners.icfil import ICFIL, IcfilSettings, supervised_contrastive
from methods.metalearners.learner import Learner, LearnerSpec
from methods.metalearners.readout import Readout
from models.norm import BatchStatsNorm2d

pytestmark = pytest.mark.usefixtures("float64")
SETTINGS = IcfilSettings(images=2, inversion_steps=15, rate=0.1, calibration_steps=2, bn=0.1)


def test_supervised_contrastive_against_a_loop() -> None:
    torch.manual_seed(0)
    features, labels, t = torch.randn(7, 4), torch.tensor([0, 1, 0, 2, 1, 0, 3]), 0.5
    unit = features / features.norm(dim=1, keepdim=True)
    terms = []
    for i in range(7):
        positives = [p for p in range(7) if p != i and labels[p] == labels[i]]
        if not positives:
            continue  # classes 2 and 3 have one image each
        others = sum(math.exp(float(unit[i] @ unit[a]) / t) for a in range(7) if a != i)
        terms.append(-sum(math.log(math.exp(float(unit[i] @ unit[p]) / t) / others) for p in positives) / len(positives))
    assert float(supervised_contrastive(features, labels, t)) == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_supervised_contrastive_has_the_gradient_of_its_value() -> None:
    features = torch.randn(5, 3, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda x: supervised_contrastive(x, labels, 0.3), features)


def make(name: str) -> tuple[Learner, ICFIL, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    learner = Learner(LearnerSpec("conv4", 3, 16, (0.5,) * 3, (0.25,) * 3), torch.device("cpu"))
    inner = METALEARNERS[name](learner.network, 0.05)
    smooth = torch.nn.functional.interpolate(torch.randn(6, 3, 2, 2), (16, 16), mode="bilinear")
    return learner, ICFIL(inner, SETTINGS), smooth, torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("name", METALEARNERS)
def test_inversion_recovers_what_the_adapted_learner_sees(name: str) -> None:
    """The pseudo images are of their classes, nearer to the support's statistics than noise, and always the same."""
    learner, icfil, support, labels = make(name)
    fast = icfil.inner.adapt(learner.params, support, labels, 5, create_graph=False)
    fast = {key: value.detach() for key, value in fast.items()}
    pseudo, wanted = icfil.invert(fast, support, labels, 3)
    assert pseudo.shape == (6, 3, 16, 16)
    assert wanted.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(pseudo, icfil.invert(fast, support, labels, 3)[0])
    logits = icfil.classify(fast, support, labels, pseudo, 3)
    assert float((logits.argmax(1) == wanted).float().mean()) == 1.0

    def from_support(images: torch.Tensor) -> float:
        with record_statistics(learner.network, BatchStatsNorm2d) as both:
            icfil.features(fast, support)
            icfil.features(fast, images)
        return float(sum(distance(one, other) for one, other in zip(both[:4], both[4:], strict=True)))

    assert from_support(pseudo) < from_support(torch.randn(6, 3, 16, 16))
    assert not any(module._forward_pre_hooks for module in learner.network.modules())


@pytest.mark.parametrize("name", METALEARNERS)
def test_calibration_lowers_its_loss_and_leaves_the_learner_alone(name: str) -> None:
    learner, icfil, support, labels = make(name)
    before = {key: value.detach().clone() for key, value in learner.params.items()}
    fast = icfil.inner.adapt(learner.params, support, labels, 1, create_graph=False)

    def loss(params: dict[str, torch.Tensor]) -> float:
        contrast = supervised_contrastive(icfil.features(params, support), labels, SETTINGS.temperature)
        logits = icfil.classify(params, support, labels, support, 3)
        return float(contrast + torch.nn.functional.cross_entropy(logits, labels))

    with torch.no_grad():
        calibrated = icfil.adapt(learner.params, support, labels, 1, create_graph=False)
    only_real = icfil.calibrate(fast, support, labels, support, labels)
    assert loss(only_real) < loss(fast)
    assert any(not torch.equal(calibrated[key], fast[key]) for key in fast)
    assert all(torch.equal(before[key], value) for key, value in learner.params.items())


@pytest.mark.parametrize("name", METALEARNERS)
def test_calibration_is_the_same_around_a_batched_metalearner(name: str) -> None:
    """As on a GPU, where the metalearner within is made for vmap."""
    learner, icfil, support, labels = make(name)
    icfil.settings = replace(SETTINGS, inversion_steps=5)
    batched = ICFIL(METALEARNERS[name](learner.network, 0.05, execution="vmap"), icfil.settings)
    one, other = (some.adapt(learner.params, support, labels, 2, create_graph=False) for some in (icfil, batched))
    assert batched.execution == "loop"
    moved = sum(float((one[key] - learner.params[key]).square().sum()) for key in one)
    assert moved > 1e-6
    assert all(torch.allclose(one[key], other[key], rtol=0, atol=1e-9) for key in one)


def test_a_read_out_reaches_the_metalearner_within() -> None:
    """As every evaluation hands it over; what ICFIL predicts is then read so."""
    learner, icfil, support, labels = make("protonet")
    reading = icfil.reading(Readout(mirror=True))
    assert isinstance(reading, ICFIL)
    assert reading.inner.readout.mirror
    assert not icfil.inner.readout.mirror
    logits = reading.classify(learner.params, support, labels, support, 3)
    assert torch.equal(logits, reading.inner.classify(learner.params, support, labels, support, 3))
    assert not torch.allclose(logits, icfil.classify(learner.params, support, labels, support, 3))
