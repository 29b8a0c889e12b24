"""A teacher: a frozen classifier, what it calls its outputs, and how it wants its images."""

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from models import BACKBONES
from models.backbone import Backbone
from models.foreign import Foreign
from models.norm import merged
from utils.images import ImageForm


class Teacher(nn.Module):
    """A frozen classifier that takes images (B, C, H, W) in [0, 1] at any size: `Teacher(network, names, form)`.

    Output i is the class `class_names[i]`, and in a pool the class `class_ids[i]` of the pool's. Gradients reach the images,
    never the weights. arch: its architecture, where that is one of the project's table.
    """

    def __init__(
        self,
        network: Backbone,
        class_names: Sequence[str],
        form: ImageForm,
        class_ids: Sequence[int] | None = None,
        outputs: Sequence[int] | None = None,
        arch: str = "",
    ) -> None:
        super().__init__()
        self.network: Backbone = network.requires_grad_(False).eval()
        self.class_names, self.form, self.arch = tuple(class_names), form, arch
        self.class_ids = tuple(range(len(self.class_names)) if class_ids is None else class_ids)
        self.outputs = list(range(len(self.class_ids)) if outputs is None else outputs)  # a spare one carries no class

    @property
    def way(self) -> int:
        return len(self.class_ids)

    @property
    def image_size(self) -> int:
        return self.form.size

    @property
    def kind(self) -> Hashable:
        """What teachers share that differ in their numbers alone; a foreign network is of a kind of its own."""
        own = id(self.network) if isinstance(self.network, Foreign) else 0
        heads = self.network.head.out_features
        return self.arch or repr(self.network), own, heads, self.way, tuple(self.outputs), self.form

    def train(self, mode: bool = True) -> "Teacher":
        """Teachers stay in evaluation mode: their running statistics must not move."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return self._named(self.network(self.form.prepare(images)))

    def _named(self, logits: Tensor) -> Tensor:
        """Of the network's outputs those that carry a class; in their own order no copy, and no list for a card to wait for."""
        count = len(self.outputs)
        return logits[:, :count] if self.outputs == list(range(count)) else logits[:, self.outputs]

    @cached_property
    def answering(self) -> "Teacher":
        """A twin that answers alike and faster and knows no layers to look into: itself where its network is a foreign one."""
        return self if isinstance(self.network, Foreign) else self._with(cast(Backbone, merged(self.network)))

    @cached_property
    def unmasked(self) -> "Teacher":
        """The same teacher with its spare outputs, which carry no class, behind those that do; itself where it has none."""
        spare = [output for output in range(self.network.head.out_features) if output not in self.outputs]
        if self.arch not in BACKBONES or not spare:
            return self
        return Teacher(self.network, self.class_names, self.form, self.class_ids, [*self.outputs, *spare], self.arch)

    def narrowed(self, way: int) -> "Teacher":
        """The same teacher asked about `way` of its classes alone, drawn at random; itself where it has no more."""
        if self.way <= way:
            return self
        chosen = torch.randperm(self.way)[:way].tolist()
        return Teacher(
            self.network,
            [self.class_names[i] for i in chosen],
            self.form,
            [self.class_ids[i] for i in chosen],
            [self.outputs[i] for i in chosen],
            self.arch,
        )

    def features(self, images: Tensor) -> Tensor:
        """The input of the head, (B, feature_dim)."""
        return self.network.features(self.form.prepare(images))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one pass, (B, feature_dim) and (B, way)."""
        features, logits = self.network.features_and_logits(self.form.prepare(images))
        return features, self._named(logits)

    def _with(self, network: Backbone) -> "Teacher":
        return Teacher(network, self.class_names, self.form, self.class_ids, self.outputs, self.arch)
