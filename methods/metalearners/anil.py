"""Almost no inner loop (Raghu et al., ICLR 2020): only the head takes gradient steps on the support set."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from methods.metalearners.base import Metalearner, Params

HEAD = ("head.weight", "head.bias")


class ANIL(Metalearner):
    """As MAML with the body fixed inside an episode, so the body's features are computed once for all inner steps."""

    def adapt(self, params: Params, support: Tensor, labels: Tensor, steps: int, create_graph: bool) -> Params:
        features = self.features(params, support)  # (N*K, D)
        inputs = features if create_graph else features.detach()
        head = self.inner_loop(
            lambda fast: F.cross_entropy(F.linear(inputs, *(fast[name] for name in HEAD)), labels),
            {name: params[name] for name in HEAD},
            steps,
            create_graph,
        )
        return {**params, **head}

    def adapted_by(self, loss: Callable[[Params], Tensor], params: Params, steps: int, create_graph: bool) -> Params:
        head = {name: params[name] for name in HEAD}
        return {**params, **self.inner_loop(lambda fast: loss({**params, **fast}), head, steps, create_graph)}
