"""The learner: the small network that is meta-trained, its parameters, how it wants its images, and how it is read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from methods.metalearners.readout import PLAIN, Readout
from models import create_model
from models.backbone import Backbone
from utils import checkpoint
from utils.images import ImageForm, channels_last, normalise, resize, to_float


@dataclass(frozen=True)
class LearnerSpec:
    """All that is needed to build a learner again and to feed it. `way` is the number of its outputs."""

    arch: str
    way: int
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    global_pool: bool = False
    norm: str = "batch"  # or "fixed"

    @property
    def form(self) -> ImageForm:
        """How it wants its images."""
        return ImageForm(self.image_size, tuple(self.mean), tuple(self.std))


class Learner:
    """A network whose parameters live outside of it, in `params`: a dict of leaf tensors that an optimizer can own."""

    def __init__(self, spec: LearnerSpec, device: torch.device) -> None:
        network = create_model(spec.arch, spec.way, spec.image_size, norm=spec.norm, global_pool=spec.global_pool)
        self._own(spec, network.to(device).requires_grad_(False))

    def _own(self, spec: LearnerSpec, network: Backbone) -> None:
        self.spec, self.network, self.readout = spec, network, PLAIN
        self.params = {name: value.clone().requires_grad_() for name, value in network.named_parameters()}

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    @property
    def frozen(self) -> dict[str, Tensor]:
        """The parameters as they are now, without a gradient."""
        return {name: value.detach() for name, value in self.params.items()}

    def prepare(self, images: Tensor) -> Tensor:
        """uint8, or float in [0, 1], (..., C, H, W) of any size, to the learner's size and normalisation."""
        flat = images.flatten(0, -4)  # (B, C, H, W)
        if flat.shape[-2:] != (self.spec.image_size,) * 2:
            flat = resize(to_float(flat) if flat.dtype == torch.uint8 else flat, self.spec.image_size)
        flat = normalise(channels_last(flat), self.spec.mean, self.spec.std)
        return flat.unflatten(0, images.shape[:-3])

    def logits(self, images: Tensor, params: Mapping[str, Tensor] | None = None) -> Tensor:
        """Class scores (B, way) of images (B, C, H, W) in [0, 1], under `params` (default: its own)."""
        return functional_call(self.network, dict(params or self.params), (self.prepare(images),))

    def state_dict(self) -> dict[str, Any]:
        spec = asdict(self.spec) | {"mean": list(self.spec.mean), "std": list(self.spec.std)}
        params = {name: value.detach().clone() for name, value in self.params.items()}
        return {"spec": spec, "params": params, "readout": self.readout.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `UserError` if the parameters do not fit."""
        checkpoint.load_weights(self.network, state["params"], "the saved learner")
        self._take(state)

    @torch.no_grad()
    def _take(self, state: dict[str, Any]) -> None:
        for name, value in self.params.items():
            value.copy_(state["params"][name])
        self.readout = Readout(**state.get("readout", {}))
