"""One outer step of the learner: a meta-gradient, or any other, given to one lasting Adam."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from datasets.episodes import Episodes
from methods.metalearners.base import Metalearner, Params
from methods.metalearners.gradients import meta_gradient, set_gradient
from methods.metalearners.learner import Learner


class OuterStep:
    """Moves the learner's parameters by Adam(`lr`); `inner_steps` of the metalearner in each episode.

    sums: the outer loss is the sum over a batch's episodes, as in the papers' code, and not their mean. Adam ignores
    such a factor, unless gradients of another loss pass through the same optimizer, too (TGR, BiDf-MKD).
    """

    def __init__(
        self,
        learner: Learner,
        metalearner: Metalearner,
        lr: float,
        inner_steps: int,
        first_order: bool = False,
        sums: bool = False,
    ) -> None:
        self.learner, self.metalearner = learner, metalearner
        self.inner_steps, self.first_order, self.sums = inner_steps, first_order, sums
        self.optimizer = torch.optim.Adam(learner.params.values(), lr=lr)

    def step(self, episodes: Episodes) -> tuple[float, float]:
        """One meta-update on a batch of episodes; returns query loss and accuracy before it."""
        gradient, loss, accuracy = self.gradient(episodes)
        self.follow(gradient)
        return loss, accuracy

    def gradient(self, episodes: Episodes) -> tuple[Params, float, float]:
        """The meta-gradient of a batch of episodes, their mean query loss and accuracy."""
        gradient, loss, accuracy = meta_gradient(
            self.metalearner, self.learner.params, episodes, self.inner_steps, self.first_order
        )
        if self.sums:
            gradient = {name: len(episodes) * value for name, value in gradient.items()}
        mean_loss, mean_accuracy = torch.stack((loss, accuracy)).tolist()  # a card is waited for once
        return gradient, mean_loss, mean_accuracy

    def follow(self, gradient: Params) -> None:
        """A step along a gradient that was found elsewhere."""
        set_gradient(self.learner.params, gradient)
        self.optimizer.step()

    def loss(self, episodes: Episodes) -> Tensor:
        """Mean query loss after the inner loop, whose gradient reaches the episodes' images."""
        losses, _ = self.metalearner.outer_loss(
            self.learner.params, episodes, self.inner_steps, create_graph=not self.first_order
        )
        return losses.mean()

    def state_dict(self) -> dict[str, Any]:
        return {"learner": self.learner.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
