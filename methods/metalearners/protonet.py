"""Prototypical networks (Snell et al., NeurIPS 2017): a query belongs to the class with the nearest mean feature."""

from torch import Tensor

from methods.metalearners.base import Metalearner, Params, class_means


class ProtoNet(Metalearner):
    """Logits are negative squared Euclidean distances to the class means; nothing is adapted, `steps` is unused."""

    ADAPTS = False

    def query_logits(
        self, params: Params, support: Tensor, labels: Tensor, query: Tensor, way: int, steps: int, create_graph: bool
    ) -> Tensor:
        features = self.features(params, support)  # (N*K, D)
        means = class_means(features, labels, way)  # (N, D)
        queries = self.together(self.features, params, support, query)  # (N*Q, D)
        return -(queries[:, None] - means[None]).square().sum(2)
