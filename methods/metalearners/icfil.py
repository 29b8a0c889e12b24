"""ICFIL, inversion calibration following the inner loop (PURER; Hu et al., CVPR 2023): a second adaptation at test time.

From the paper: after the inner loop the adapted learner is inverted into a pseudo support set, and calibrated with the
supervised contrastive loss over the features of real and pseudo images and the cross entropy, before it predicts.
No released code has it. Our choices, all of them settings: the inversion takes 50 Adam steps on pixels that start from
the same noise in every episode, on CE + 0.01 BN + 1e-4 TV, where BN compares the pseudo images' layer statistics with
those of the real support; then 5 gradient steps at the inner loop's rate; temperature 0.1 on l2-normalised features.
"""

from argparse import Namespace, _ArgumentGroup
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.inversion.bn_statistics import distance, record_statistics
from methods.inversion.terms import total_variation
from methods.metalearners.base import Metalearner, Params, gradient_at
from methods.metalearners.readout import Readout
from models.norm import BatchStatsNorm2d
from utils import cli, seed
from utils.images import channels_last


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean over images of -1/|P(i)| sum_{p in P(i)} log( exp(f_i.f_p / t) / sum_{a != i} exp(f_i.f_a / t) ).

    f are the l2-normalised `features` (B, D), P(i) the other images of i's class; images without any are left out
    (Khosla et al., NeurIPS 2020, the form with the sum outside the logarithm).
    """
    f = F.normalize(features)
    itself = torch.eye(len(f), dtype=torch.bool, device=f.device)
    log_share = F.log_softmax((f @ f.T / temperature).masked_fill(itself, -torch.inf), 1)  # (B, B)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(1)  # (B,)
    each = -log_share.masked_fill(~positive, 0.0).sum(1) / count.clamp(min=1)
    return each[count > 0].mean()


@dataclass(frozen=True)
class IcfilSettings:
    """How much to invert and to calibrate; `images` of each class, `rate` of Adam in the normalisation of the learner."""

    images: int = 5
    inversion_steps: int = 50
    rate: float = 0.25
    calibration_steps: int = 5
    temperature: float = 0.1
    bn: float = 0.01
    tv: float = 1e-4


def add_icfil_flags(group: _ArgumentGroup) -> None:
    """They concern evaluation alone, and so may be added with --evaluate."""
    default, add = IcfilSettings(), group.add_argument
    cli.may_change(
        "evaluate",
        add("--icfil", action="store_true", help="calibrate the adapted learner by its own inversion on meta_test"),
        add("--icfil_images", type=cli.count, default=default.images, help="ICFIL: pseudo images of a class"),
        add("--icfil_steps", type=cli.count, default=default.inversion_steps, help="ICFIL: inversion steps"),
        add("--icfil_lr", type=cli.rate, default=default.rate, help="ICFIL: Adam's rate on the pixels"),
        add("--icfil_calibration", type=cli.whole(0), default=default.calibration_steps, help="ICFIL: calibration steps"),
        add("--icfil_tau", type=cli.rate, default=default.temperature, help="ICFIL: contrastive temperature"),
    )


def icfil_settings(args: Namespace) -> IcfilSettings:
    """The settings that the flags ask for."""
    return IcfilSettings(args.icfil_images, args.icfil_steps, args.icfil_lr, args.icfil_calibration, args.icfil_tau)


class ICFIL(Metalearner):
    """A metalearner whose inner loop is followed by inversion and calibration; one episode after another."""

    def __init__(self, inner: Metalearner, settings: IcfilSettings) -> None:
        super().__init__(inner.network, inner.inner_lr, "loop", inner.inductive)
        self.inner = inner
        self.ADAPTS = inner.ADAPTS
        self.settings = settings

    def reading(self, readout: Readout) -> "ICFIL":
        """It is the metalearner within that reads."""
        return ICFIL(self.inner.reading(readout), self.settings)

    def adapt(self, params: Params, support: Tensor, labels: Tensor, steps: int, create_graph: bool) -> Params:
        """As the metalearner within, then `invert` and `calibrate`; no gradient flows back into `params`."""
        fast = self.inner.adapt(params, support, labels, steps, create_graph=False)
        fast = {name: value.detach() for name, value in fast.items()}
        way = int(labels.max()) + 1
        with torch.enable_grad():
            pseudo, pseudo_labels = self.invert(fast, support, labels, way)
            return self.calibrate(fast, support, labels, torch.cat([support, pseudo]), torch.cat([labels, pseudo_labels]))

    def classify(self, fast: Params, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        return self.inner.classify(fast, support, labels, query, way)

    def invert(self, fast: Params, support: Tensor, labels: Tensor, way: int) -> tuple[Tensor, Tensor]:
        """Pseudo images (way * images, C, S, S) of the adapted learner, in its normalisation, and their labels."""
        settings = self.settings
        with torch.no_grad(), record_statistics(self.network, BatchStatsNorm2d) as targets:
            self.features(fast, support)
        wanted = torch.arange(way, device=support.device).repeat_interleave(settings.images)
        noise = torch.randn(len(wanted), *support.shape[1:], generator=seed.generator(0, "ICFIL"))
        x = channels_last(noise.to(support.device)).requires_grad_()
        optimizer = torch.optim.Adam([x], lr=settings.rate)
        for _ in range(settings.inversion_steps):
            logits = self.inner.classify(fast, support, labels, x, way)
            with record_statistics(self.network, BatchStatsNorm2d) as own:  # of these images alone
                self.features(fast, x)
            bn = torch.stack([distance(one, other) for one, other in zip(own, targets, strict=True)]).sum()
            loss = F.cross_entropy(logits, wanted) + settings.bn * bn + settings.tv * total_variation(x)
            (x.grad,) = torch.autograd.grad(loss, x)
            optimizer.step()
        return x.detach(), wanted

    def calibrate(self, fast: Params, support: Tensor, labels: Tensor, images: Tensor, image_labels: Tensor) -> Params:
        """Gradient steps on the supervised contrastive loss and the cross entropy of real and pseudo images together."""
        way = int(labels.max()) + 1
        for _ in range(self.settings.calibration_steps):
            fast = {name: value.detach().requires_grad_() for name, value in fast.items()}
            loss = supervised_contrastive(self.features(fast, images), image_labels, self.settings.temperature)
            loss = loss + F.cross_entropy(self.inner.classify(fast, support, labels, images, way), image_labels)
            gradient = gradient_at(fast, loss)
            fast = {name: value.detach() - self.inner_lr * gradient[name] for name, value in fast.items()}
        return fast
