"""Generators that last from call to call: meta-learned so that a few steps suffice, or simply trained on."""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from methods.inversion.generator import DEFAULTS, Descent, GeneratorInverter, InversionLoss, Settings
from methods.inversion.subjects import Subject
from models.generator import Generator


class MetaGenerator(GeneratorInverter):
    """Shared initialisation of a generator; each call adapts a copy to each teacher, then moves the initialisation.

    The outer gradient is first order: the sum over teachers of the inner gradients (of the last step, or of all steps:
    FOMAML), or of the ways the copies went (Reptile), given to one persistent Adam(.5, .999).
    """

    def __init__(
        self,
        generator: Generator,
        loss: InversionLoss,
        settings: Settings = DEFAULTS,
        lr_outer: float = 1e-3,
        together: int = 1,
    ) -> None:
        super().__init__(loss, settings, together)
        self.generator = generator
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=lr_outer, betas=(0.5, 0.999))

    def start(self, teacher: Subject) -> Generator:
        return copy.deepcopy(self.generator)

    def learn_from(self, descents: Sequence[Descent]) -> None:
        for index, parameter in enumerate(self.generator.parameters()):
            parameter.grad = torch.stack([descent.gradient[index] for descent in descents]).sum(0)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])


class LastingGenerator(GeneratorInverter):
    """One generator that every call trains on from where the last one left it, with a fresh Adam each time."""

    def __init__(self, generator: Generator, loss: InversionLoss, settings: Settings = DEFAULTS) -> None:
        super().__init__(loss, settings)
        self.generator = generator

    def start(self, teacher: Subject) -> Generator:
        return self.generator

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
