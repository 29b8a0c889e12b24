"""Prototypical networks (Snell et al., NeurIPS 2017): a query belongs to the class with the nearest mean feature."""

from torch import Tensor

from methods.metalearners.base import Metalearner, Params, class_means


class ProtoNet(Metalearner):
    """Logits are negative squared Euclidean distances to the class means; nothing is adapted, `steps` is unused."""

    ADAPTS = False

    def adapt(self, params: Params, support: Tensor, labels: Tensor, steps: int, create_graph: bool) -> Params:
        return params

    def classify(self, fast: Params, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        means = class_means(self.features(fast, support), labels, way)  # (N, D)
        queries = self.together(self.features, fast, support, query)  # (B, D)
        return -(queries[:, None] - means[None]).square().sum(2)
