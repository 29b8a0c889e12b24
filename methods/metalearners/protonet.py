"""Prototypical networks (Snell et al., NeurIPS 2017): a query belongs to the class with the nearest mean embedding."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from methods.metalearners.base import Metalearner, Params, class_means
from methods.metalearners.learner import Learner
from methods.metalearners.readout import Readout, fit_readout


class ProtoNet(Metalearner):
    """Logits are negative squared Euclidean distances to the class means; nothing is adapted, `steps` is unused."""

    ADAPTS = False
    UNIT: ClassVar[bool] = False  # whether embeddings count at length 1

    def adapt(self, params: Params, support: Tensor, labels: Tensor, steps: int, create_graph: bool) -> Params:
        return params

    def embed(self, params: Params, x: Tensor) -> Tensor:
        """The space of the means, (B, D): the network's features."""
        return self.features(params, x)

    def read(self, params: Params, x: Tensor) -> Tensor:
        """What is compared of an embedding: (B, D)."""
        read = self.readout(partial(self.embed, params), x)
        return F.normalize(read) if self.UNIT else read

    def fit_readout(self, words: Sequence[str], learner: Learner, flip: bool = True) -> Readout:
        """The read-out that `words` name, for the embeddings of `learner` as it now is."""
        params, spec = learner.frozen, learner.spec
        return fit_readout(words, lambda x: self.embed(params, learner.prepare(x)), spec.image_size, learner.device, flip)

    def classify(self, fast: Params, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        means = class_means(self.read(fast, support), labels, way)  # (N, D)
        queries = self.together(self.read, fast, support, query)  # (B, D)
        unit = self.UNIT or self.readout.matrix is not None
        scale = 10.0 if unit else 1.0  # unit vectors lie at most 2 apart
        return -scale * (queries[:, None] - means[None]).square().sum(2)


class OutputNCM(ProtoNet):
    """The same in the l2-normalised outputs of the whole network, for learners whose outputs were distilled."""

    UNIT = True

    def embed(self, params: Params, x: Tensor) -> Tensor:
        return self.call(params, x)
