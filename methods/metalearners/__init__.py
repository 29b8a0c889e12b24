"""Metalearners: from episodes to a learner. One functional implementation, run by a loop or by `torch.func.vmap`."""

from methods.metalearners.anil import ANIL
from methods.metalearners.base import Metalearner
from methods.metalearners.maml import MAML
from methods.metalearners.protonet import OutputNCM, ProtoNet
from utils.errors import UserError
from utils.names import meant

METALEARNERS: dict[str, type[Metalearner]] = {"maml": MAML, "anil": ANIL, "protonet": ProtoNet, "ncm": OutputNCM}


def get_metalearner(name: str) -> type[Metalearner]:
    """The class of a metalearner. Raises `UserError` listing the names."""
    if name not in METALEARNERS:
        raise UserError(f"unknown metalearner {name!r}: choose from {', '.join(METALEARNERS)}{meant(name, METALEARNERS)}")
    return METALEARNERS[name]
