"""The methods, and the building blocks they are made of."""

import importlib
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    from methods.experiments.method import Method

# (task, name) -> module:class, imported only when chosen
REGISTRY = {
    ("few_shot", "free"): "methods.free:FREE",
    ("few_shot", "tgr"): "methods.tgr:TGR",
    ("few_shot", "purer"): "methods.purer:PURER",
    ("few_shot", "chorus"): "methods.chorus:Chorus",
    ("few_shot", "bidf_mkd"): "methods.bidf_mkd:BiDfMKD",
    ("few_shot", "real"): "methods.baselines:Real",
    ("few_shot", "random"): "methods.baselines:Random",
    ("few_shot", "average"): "methods.baselines:Average",
    ("few_shot", "ota"): "methods.baselines:OTA",
    ("few_shot", "teacher_ncm"): "methods.baselines:TeacherNCM",
    ("classification", "fast_meta"): "methods.fast:FastMeta",
    ("classification", "fast"): "methods.fast:Fast",
    ("classification", "dafl"): "methods.dfkd:DAFL",
    ("classification", "zskt"): "methods.dfkd:ZSKT",
    ("classification", "dfad"): "methods.dfkd:DFAD",
    ("classification", "dfq"): "methods.dfkd:DFQ",
    ("classification", "deepinv"): "methods.dfkd:DeepInversion",
    ("classification", "cmi"): "methods.dfkd:CMI",
    ("classification", "vanilla_kd"): "methods.supervised:VanillaKD",
    ("classification", "scratch"): "methods.supervised:Scratch",
}
METHODS = tuple(name for _, name in REGISTRY)


def methods_of(task: str) -> tuple[str, ...]:
    """The methods of a task: "few_shot" or "classification"."""
    return tuple(name for known, name in REGISTRY if known == task)


def get_method(name: str) -> "type[Method]":
    """The class of a method; hyphens and underscores are the same. Raises `UserError` listing the names."""
    spelled = name.replace("-", "_")
    for (_, known), target in REGISTRY.items():
        if known == spelled:
            module, attribute = target.split(":")
            return getattr(importlib.import_module(module), attribute)
    raise UserError(f"unknown method {name!r}: choose from {', '.join(METHODS)}")
