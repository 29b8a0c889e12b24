"""Which teachers are asked next: chances that are learnt from how well their tasks served (TEAPOT's selection)."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FIRST_BASELINE = 0.40  # of the rewards, until a round has ended
STEP_EVERY = 4  # updates of the learner between two steps of the policy


def policy_gradient(weights: Tensor, candidates: Tensor, chosen: Tensor, advantage: float) -> Tensor:
    """The gradient on the weights (T,) of -advantage * sum over `chosen` of log softmax(weights of the candidates).

    The chance of drawing several without replacement is taken for that of drawing them with it.
    """
    gradient = torch.zeros_like(weights)
    gradient[candidates] = advantage * len(chosen) * F.softmax(weights[candidates], 0)
    gradient[chosen] -= advantage
    return gradient


class TeacherPolicy:
    """A weight for each teacher, moved by Adam(`lr`); the reward is an accuracy in 0..1.

    A round's choice is judged while the round lasts: by the mean accuracy since the last step, every `STEP_EVERY` updates and
    at its end, beside the mean of the earlier rounds' mean accuracies.
    """

    def __init__(self, teachers: int, candidates: int, lr: float) -> None:
        self.weights = torch.ones(teachers, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.weights], lr=lr)
        self.count = min(candidates, teachers)
        self.candidates = self.chosen = torch.arange(0)
        self.baseline, self.rounds = FIRST_BASELINE, 0
        self.since_step: list[float] = []
        self.of_round: list[float] = []

    def choose(self, count: int) -> list[int]:
        """So many different teachers, by the chances of some candidates; a round begins."""
        self.candidates = torch.randperm(len(self.weights))[: self.count]
        chances = F.softmax(self.weights.detach()[self.candidates], 0)
        self.chosen = self.candidates[torch.multinomial(chances, min(count, self.count))]
        return self.chosen.tolist()

    def note(self, accuracy: float, update: int, ends: bool) -> None:
        """Take in the accuracy after an update of the learner (counted from 1); `ends`: it is the last of the round."""
        self.since_step.append(accuracy)
        self.of_round.append(accuracy)
        if update % STEP_EVERY == 0 or ends:
            self.step(sum(self.since_step) / len(self.since_step))
            self.since_step = []
        if ends:
            mean = sum(self.of_round) / len(self.of_round)
            self.baseline = (self.baseline * self.rounds + mean) / (self.rounds + 1)
            self.rounds, self.of_round = self.rounds + 1, []

    def step(self, reward: float) -> None:
        advantage = 100 * (reward - self.baseline)  # in points, as the released code counts; Adam's steps do not depend on it
        self.weights.grad = policy_gradient(self.weights.detach(), self.candidates, self.chosen, advantage)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.weights.detach().clone(), "optimizer": self.optimizer.state_dict(), "baseline": self.baseline,
            "candidates": self.candidates, "chosen": self.chosen, "rounds": self.rounds, "since_step": self.since_step,
            "of_round": self.of_round,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.weights.copy_(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("candidates", "chosen", "baseline", "rounds", "since_step", "of_round"):
            setattr(self, name, state[name])
