"""What all metalearners share: an episode in, loss and accuracy out, for many episodes at once."""

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from datasets.episodes import Episodes
from methods.metalearners.readout import PLAIN, Readout
from models.backbone import Backbone
from models.norm import statistics_from, written_out
from utils.compiler import Compiled

Params = Mapping[str, Tensor]
Execution = Literal["loop", "vmap"]
Result = TypeVar("Result")
COMPILER = "inductor"  # of `torch.compile`'s backends, PyTorch's own


class Metalearner:
    """Adapts a network to the support set of an episode and classifies its query set.

    The network's own parameters are never used: all functions take `params`, a mapping of names to tensors.
    `execution` is "loop" (one episode after another, fastest on a CPU) or "vmap" (all together, for a GPU, where small
    episodes are bound by kernel launches); both compute the same. With `inductive`, the query is normalised by the
    statistics of the support set instead of its own. `compiler` (a backend of `torch.compile`) makes one piece of the mapped
    outer gradient.
    """

    ADAPTS = True  # whether a head of fixed width is adapted, which must have an episode's number of classes

    def __init__(
        self,
        network: Backbone,
        inner_lr: float = 0.01,
        execution: Execution = "loop",
        inductive: bool = False,
        compiler: str | None = None,
    ) -> None:
        self.network = network if execution == "loop" else written_out(network)
        self._features = _Features(self.network)
        self.inner_lr = inner_lr
        self.execution = execution
        self.at_once: int | None = None  # episodes that fit into memory together; unknown until some did not
        self.inductive = inductive
        self.readout = PLAIN
        self._piece = (
            Compiled(type(self)._mapped_gradient, compiler, "the outer step (--compile off does without)")
            if compiler
            else type(self)._mapped_gradient
        )

    @property
    def compiled(self) -> bool:
        """Whether the outer gradient runs as one piece; no longer, once a compiler has failed."""
        return isinstance(self._piece, Compiled) and self._piece.works

    def reading(self, readout: Readout) -> "Metalearner":
        """Itself with a read-out; where a head decides, and not class means, that changes nothing."""
        if readout is self.readout:
            return self
        other = copy.copy(self)
        other.readout = readout
        return other

    def adapt(self, params: Params, support: Tensor, labels: Tensor, steps: int, create_graph: bool) -> Params:
        """The inner loop: parameters after `steps` steps on support (N*K, C, H, W) with labels (N*K,)."""
        raise NotImplementedError

    def classify(self, fast: Params, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Logits (B, N) of query (B, C, H, W) under adapted parameters: here, the network's own."""
        return self.together(self.call, fast, support, query)

    def answer(
        self,
        params: Params,
        support: Tensor,
        labels: Tensor,
        query: Tensor,
        way: int,
        steps: int,
        create_graph: bool = False,
    ) -> Tensor:
        """Logits (B, N) of query (B, C, H, W) after `steps` inner steps on support (M, C, H, W) with labels (M,)."""
        start = self.starting_point(params, support, labels, way)
        fast = self.adapt(start, support, labels, steps, create_graph)
        return self.classify(fast, support, labels, query, way)

    def outer_loss(self, params: Params, episodes: Episodes, steps: int, create_graph: bool) -> tuple[Tensor, Tensor]:
        """Loss (E,) and accuracy (E,) on the query sets after `steps` inner steps.

        With `create_graph` the loss can be differentiated through the inner loop (second order); without, the inner
        gradients count as constants (first order). Where the head's width is not the episodes' way, each episode
        starts from a head made of its class means (`head_of_means`).
        """
        way = episodes.way

        def task(support: Tensor, labels: Tensor, query: Tensor, query_labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.answer(params, support, labels, query, way, steps, create_graph)
            hits = logits.detach().argmax(1) == query_labels
            return F.cross_entropy(logits, query_labels), hits.to(logits.dtype).mean()

        tensors = (episodes.support, episodes.support_labels, episodes.query, episodes.query_labels)
        if self.execution == "vmap":
            return torch.func.vmap(task)(*tensors)
        losses, accuracies = zip(*[task(*episode) for episode in zip(*tensors, strict=True)], strict=True)
        return torch.stack(losses), torch.stack(accuracies)

    def outer_gradient(
        self, params: Params, episodes: Episodes, steps: int, create_graph: bool, of: int
    ) -> tuple[Params, Tensor, Tensor]:
        """Gradient with respect to `params` of the summed loss divided by `of`, the loss (E,) and the accuracy (E,).

        The loss is that of `outer_loss`; mapped, all of it is one function of tensors, which may be compiled.
        """
        if self.execution == "vmap":
            tensors = (episodes.support, episodes.support_labels, episodes.query, episodes.query_labels)
            frozen = {name: value.detach() for name, value in params.items()}
            return self._piece(self, frozen, *tensors, episodes.way, steps, create_graph, of)
        loss, accuracy = self.outer_loss(params, episodes, steps, create_graph)
        return gradient_at(params, loss.sum() / of), loss.detach(), accuracy

    def _mapped_gradient(
        self,
        params: dict[str, Tensor],
        support: Tensor,
        support_labels: Tensor,
        query: Tensor,
        query_labels: Tensor,
        way: int,
        steps: int,
        create_graph: bool,
        of: int,
    ) -> tuple[Params, Tensor, Tensor]:
        episodes = Episodes(support, support_labels, query, query_labels, way)

        def summed(at: Params) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            loss, accuracy = self.outer_loss(at, episodes, steps, create_graph)
            return loss.sum() / of, (loss, accuracy)

        gradient, (loss, accuracy) = torch.func.grad(summed, has_aux=True)(params)
        return gradient, loss, accuracy

    def in_chunks(self, episodes: Episodes, work: Callable[[Episodes], Result]) -> list[Result]:
        """`work` on pieces of the episodes, in order, whose graphs are built and freed one after another.

        Single episodes in the loop, all together in vmap; a piece for which a GPU's memory does not suffice is halved, and
        so are all after it, in this call and in later ones.
        """
        results, start = [], 0
        while start < len(episodes):
            size = 1 if self.execution == "loop" else min(self.at_once or len(episodes), len(episodes) - start)
            try:
                results.append(work(episodes[start : start + size]))
                start += size
                continue
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            self.at_once = size // 2  # behind the block, which holds what failed in memory
            print(f"note: {size} episodes do not fit into memory together; going on with {self.at_once}", file=sys.stderr)
            torch.cuda.empty_cache()
        return results

    def call(self, params: Params, x: Tensor) -> Tensor:
        """Logits (B, way) of x (B, C, H, W) under `params`."""
        return functional_call(self.network, dict(params), (x,))

    def features(self, params: Params, x: Tensor) -> Tensor:
        """Features (B, D) under `params`."""
        return functional_call(self._features, {f"network.{name}": value for name, value in params.items()}, (x,))

    def starting_point(self, params: Params, support: Tensor, labels: Tensor, way: int) -> Params:
        """Where adaptation begins: `params`, with a head of class means where the head's width is not `way`."""
        other_way = self.ADAPTS and len(params["head.bias"]) != way
        return self.head_of_means(params, support, labels, way) if other_way else params

    def head_of_means(self, params: Params, support: Tensor, labels: Tensor, way: int) -> Params:
        """`params` with a head that classifies by the nearest class mean c of the support: weight 2c, bias -|c|^2."""
        means = class_means(self.features(params, support), labels, way)  # (N, D)
        return {**params, "head.weight": 2 * means, "head.bias": -means.square().sum(1)}

    def together(self, call: Callable[[Params, Tensor], Tensor], params: Params, support: Tensor, query: Tensor) -> Tensor:
        """`call` on the query, normalised by the query's statistics, or by the support's when inductive."""
        if not self.inductive:
            return call(params, query)
        with statistics_from(self.network, len(support)):
            return call(params, torch.cat([support, query]))[len(support) :]

    def adapted_by(self, loss: Callable[[Params], Tensor], params: Params, steps: int, create_graph: bool) -> Params:
        """`params` adapted inside an episode by a loss of somebody's own, in place of the support's cross entropy."""
        return self.inner_loop(loss, params, steps, create_graph)

    def inner_loop(self, loss: Callable[[Params], Tensor], params: Params, steps: int, create_graph: bool) -> Params:
        """`params` after `steps` gradient steps of rate `inner_lr` on `loss`."""
        for _ in range(steps):
            gradient = self.inner_gradient(loss, params, create_graph)
            params = {name: value - self.inner_lr * gradient[name] for name, value in params.items()}
        return params

    def inner_gradient(self, loss: Callable[[Params], Tensor], params: Params, create_graph: bool) -> dict[str, Tensor]:
        """The gradient of `loss` at `params`, by the mechanism that the execution needs."""
        if self.execution == "vmap":
            gradient = torch.func.grad(loss)(dict(params))
            return gradient if create_graph else {name: value.detach() for name, value in gradient.items()}
        with torch.enable_grad():
            if not create_graph:
                params = {name: value.detach().requires_grad_() for name, value in params.items()}
            gradients = torch.autograd.grad(loss(params), list(params.values()), create_graph=create_graph)
        return dict(zip(params, gradients, strict=True))


class _Features(nn.Module):
    """Lets `functional_call` reach a network's `features`."""

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)


def gradient_at(params: Params, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of a scalar with respect to each of `params`: zeros for those on which it does not depend."""
    found = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(params, found, strict=True))


def class_means(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """Mean feature of each class: features (M, D), labels (M,) to (way, D)."""
    members = (labels[:, None] == torch.arange(way, device=labels.device)).to(features.dtype)  # (M, way)
    return (members.T @ features) / members.sum(0)[:, None]
