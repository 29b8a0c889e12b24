"""Model-agnostic meta-learning (Finn et al., ICML 2017): all parameters take gradient steps on the support set."""

import torch.nn.functional as F
from torch import Tensor

from methods.metalearners.base import Metalearner, Params


class MAML(Metalearner):
    """theta' = theta - inner_lr * gradient of the support loss, `steps` times; the query is classified by theta'."""

    def adapt(self, params: Params, support: Tensor, labels: Tensor, steps: int, create_graph: bool) -> Params:
        return self.inner_loop(lambda fast: F.cross_entropy(self.call(fast, support), labels), params, steps, create_graph)
