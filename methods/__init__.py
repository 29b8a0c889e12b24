"""The methods, and the building blocks they are made of."""

import importlib
from typing import TYPE_CHECKING

from utils.code import import_function, is_code
from utils.errors import UserError, in_words
from utils.names import meant

if TYPE_CHECKING:
    from methods.experiments.method import Method

# (task, name) -> module:class, imported only when chosen
REGISTRY = {
    ("few_shot", "free"): "methods.free:FREE",
    ("few_shot", "tgr"): "methods.tgr:TGR",
    ("few_shot", "purer"): "methods.purer:PURER",
    ("few_shot", "chorus"): "methods.chorus:Chorus",
    ("few_shot", "bidf_mkd"): "methods.bidf_mkd:BiDfMKD",
    ("few_shot", "teapot"): "methods.teapot:TEAPOT",
    ("few_shot", "real"): "methods.baselines:Real",
    ("few_shot", "real_classifier"): "methods.baselines:RealClassifier",
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


def spelled(name: str) -> str:
    """A method's name as the registry has it: hyphens and underscores are the same."""
    return name if is_code(name) else name.replace("-", "_")


def short_name(name: str) -> str:
    """What a run is called after a method: its name, or that of the user's class."""
    return name.rpartition(":")[2].lower()


def get_method(name: str) -> "type[Method]":
    """The class of a method of the registry, or of the user's own. Raises `UserError` listing the names."""
    if is_code(name):
        return _own_method(name)
    for (_, known), target in REGISTRY.items():
        if known == spelled(name):
            module, attribute = target.split(":")
            return getattr(importlib.import_module(module), attribute)
    raise UserError(
        f"unknown method {name!r}: choose from {', '.join(METHODS)}, or FILE.py:CLASS of your own{meant(name, METHODS)}"
    )


def _own_method(place: str) -> "type[Method]":
    from methods.experiments.method import Method

    try:
        found = import_function(place)
    except Exception as error:  # somebody's code may raise anything
        raise UserError(f"--method {place}: {in_words(error)}; expected FILE.py:CLASS or MODULE:CLASS") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"--method {place} is no method: expected a class that inherits FewShotMethod (docs/extending.md)")
    return found
