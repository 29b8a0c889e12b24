"""All teachers side by side as one learner, so that it can be kept, read and used like any other."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.metalearners.learner import Learner, LearnerSpec
from methods.services.black_box import centred_answers
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from models import create_model
from models.foreign import TORCHSCRIPT
from utils import checkpoint
from utils.code import is_code
from utils.errors import UserError
from utils.images import ImageForm

ENSEMBLE = "ensemble"  # the arch of its spec
AS_THEY_ARE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # teachers take images in [0, 1]


LOOKS = {  # as in `views`, of teachers in memory
    "features": Teacher.features,
    "logits": Teacher.forward,
    "probabilities": lambda teacher, images: teacher(images).softmax(1),
    "answers": lambda teacher, images: centred_answers(teacher(images).softmax(1)),
}


class Ensemble(nn.Module):
    """What frozen teachers make of an image (`view`), each at length 1, side by side."""

    def __init__(self, teachers: Sequence[Teacher], view: str) -> None:
        super().__init__()
        self.teachers, self.view = nn.ModuleList(teachers), view

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to (B, D)."""
        return torch.cat([F.normalize(LOOKS[self.view](teacher, images)) for teacher in self.teachers], 1)

    features = forward


class EnsembleLearner(Learner):
    """Frozen teachers as a learner of images of `size` pixels; its state holds their weights and how each is built."""

    def __init__(self, teachers: Sequence[Teacher], built: Sequence[dict[str, Any]], view: str, size: int) -> None:
        device = next(teachers[0].parameters()).device
        self.network = Ensemble(teachers, view).eval()  # type: ignore[assignment]
        self.built, self.view = list(built), view
        with torch.no_grad():
            width = self.network(torch.zeros(1, 3, size, size, device=device)).shape[1]
        super()._own(LearnerSpec(ENSEMBLE, width, size, *AS_THEY_ARE, norm="fixed"), self.network)

    @classmethod
    def of(cls, pool: TeacherPool, members: Sequence[int], view: str, size: int) -> "EnsembleLearner":
        """Of some teachers of a pool, none of which is a service."""
        teachers = [pool[teacher_id] for teacher_id in members]
        built = [
            {"arch": pool.rows[teacher_id].arch, "names": list(teacher.class_names), "size": teacher.form.size,
             "mean": list(teacher.form.mean), "std": list(teacher.form.std), "outputs": teacher.outputs,
             "heads": teacher.network.head.out_features}
            for teacher_id, teacher in zip(members, teachers, strict=True)
        ]  # fmt: skip
        return cls(teachers, built, view, size)

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> "EnsembleLearner":
        """What `state_dict` holds. Raises `UserError` for teachers that code of somebody's would have to build."""
        teachers = []
        for one in state["teachers"]:
            if is_code(one["arch"]) or one["arch"] == TORCHSCRIPT:
                raise UserError(f"these teachers were built by {one['arch']}, which is not run: use their list again")
            network = create_model(one["arch"], one["heads"], one["size"]).to(device)
            form = ImageForm(one["size"], tuple(one["mean"]), tuple(one["std"]))
            teachers.append(Teacher(network, one["names"], form, outputs=one["outputs"], arch=one["arch"]))
        learner = cls(teachers, state["teachers"], state["view"], state["spec"]["image_size"])
        learner.load_state_dict(state)
        return learner

    def state_dict(self) -> dict[str, Any]:
        weights = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        return super().state_dict() | {"params": weights, "teachers": self.built, "view": self.view}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network = copy.deepcopy(self.network)  # the pool's teachers stay as they are
        checkpoint.load_weights(self.network, state["params"], "the saved teachers")
        self._take(state)


class AskedTeachers(Learner):
    """Stands where teachers that can only be asked would: no run can keep them."""

    def state_dict(self) -> dict[str, Any]:
        return {"asked": True}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def learner_from(state: dict[str, Any], device: torch.device) -> Learner:
    """The learner of a state, whatever it is: one small network, or teachers side by side.

    Raises `UserError` for teachers that could only be asked.
    """
    if "asked" in state:
        raise UserError("this run's teachers are only asked, and not kept: --method teacher_ncm asks them again")
    if "teachers" in state:
        return EnsembleLearner.from_state(state, device)
    learner = Learner(LearnerSpec(**state["spec"]), device)
    learner.load_state_dict(state)
    return learner
