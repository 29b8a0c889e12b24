"""Model-agnostic meta-learning (Finn et al., ICML 2017): all parameters take gradient steps on the support set."""

import torch.nn.functional as F
from torch import Tensor

from methods.metalearners.base import Metalearner, Params


class MAML(Metalearner):
    """theta' = theta - inner_lr * gradient of the support loss, `steps` times; the query is classified by theta'."""

    def adapt(self, params: Params, support: Tensor, labels: Tensor, steps: int, create_graph: bool) -> Params:
        for _ in range(steps):
            gradient = self.inner_gradient(lambda fast: F.cross_entropy(self.call(fast, support), labels), params, create_graph)
            params = {name: value - self.inner_lr * gradient[name] for name, value in params.items()}
        return params
