"""Prototypical networks (Snell et al., NeurIPS 2017): a query belongs to the class with the nearest mean embedding."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from methods.metalearners.base import Metalearner, Params, class_means


class ProtoNet(Metalearner):
    """Logits are negative squared Euclidean distances to the class means; nothing is adapted, `steps` is unused."""

    ADAPTS = False
    SCALE: ClassVar[float] = 1.0  # of the logits

    def adapt(self, params: Params, support: Tensor, labels: Tensor, steps: int, create_graph: bool) -> Params:
        return params

    def embed(self, params: Params, x: Tensor) -> Tensor:
        """The space of the means, (B, D): the network's features."""
        return self.features(params, x)

    def classify(self, fast: Params, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        means = class_means(self.embed(fast, support), labels, way)  # (N, D)
        queries = self.together(self.embed, fast, support, query)  # (B, D)
        return -self.SCALE * (queries[:, None] - means[None]).square().sum(2)


class OutputNCM(ProtoNet):
    """The same in the l2-normalised outputs of the whole network, for learners whose outputs were distilled."""

    SCALE = 10.0  # unit vectors lie at most 2 apart

    def embed(self, params: Params, x: Tensor) -> Tensor:
        return F.normalize(self.call(params, x))
