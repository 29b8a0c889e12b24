"""Other people's checkpoint files: what they hold, what they say of themselves, and their names for our tensors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from models.backbone import Backbone
from models.foreign import Foreign
from models.published import to_our_names
from utils import checkpoint
from utils.errors import UserError
from utils.names import shown

State = dict[str, torch.Tensor]
COUNTER = "num_batches_tracked"  # of batch normalisation, which files from before PyTorch 0.4.1 lack and nothing here reads
CLASS_LISTS = ("class_names", "class_to_idx", "classes", "CLASSES", "idx_to_class", "id2label", "labels", "vocab")
ABOUT = ("hyper_parameters", "meta", "config", "args")  # dicts in which files say such things
DEPTH = 3  # of dicts in which weights are looked for


@dataclass(frozen=True)
class Content:
    """What a checkpoint file holds: weights, in its own names, and what it says.

    class_ids and accuracy (0..1): of the papers' teachers; class_names: first output first; mean, std, image_size, arch.
    """

    state: State
    class_ids: list[int] | None = None
    accuracy: float | None = None
    class_names: list[str] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def read_content(content: Any, source: str, which: str = "") -> Content:
    """What the loaded `content` of a checkpoint file holds.

    A state_dict, or dicts with one at any depth; where there are several (the weights and their running average), `which` names
    the place, `a` or `a.b`. Raises `UserError` naming `source` where there is none, and where it must be told which.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{source} holds a {type(content).__name__}; expected a state_dict, or a dict with one")
    found = dict(_states(content))
    most = max(map(len, found.values()), default=0)
    found = {place: state for place, state in found.items() if 2 * len(state) > most}  # metrics and random states are small
    if which:
        found = {place: state for place, state in found.items() if place == which or place.startswith(f"{which}.")}
        if len(found) != 1:
            places = shown(place or "the file itself" for place, _ in _states(content))
            raise UserError(f"{source} has no weights under {which!r} alone; they are under {places}")
    if len(found) > 1:
        raise UserError(f"{source} has weights under {shown(found)}: say which are meant in a column `weights` of the list")
    if not found:
        raise UserError(f"{source} is no checkpoint this program knows: no state_dict in its keys {shown(map(str, content))}")
    (state,) = found.values()
    about = {key: value for key, value in content.items() if key in ("mean", "std", "image_size", "arch")}
    ids, accuracy = content.get("specific"), content.get("acc")
    try:
        return Content(
            state,
            None if ids is None else [int(label) for label in ids],
            None if ids is None or accuracy is None else float(accuracy) / 100,
            _class_names(content),
            about,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{source} says something of its classes that cannot be read: {error}") from error


def _states(content: Mapping, place: str = "") -> Iterator[tuple[str, State]]:
    """Every group of at least two tensors with names, and where it lies: "" for the content itself."""
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if len(state) > 1:
        yield place, state
    for key, value in content.items():
        if isinstance(value, Mapping) and place.count(".") < DEPTH:
            yield from _states(value, f"{place}.{key}".lstrip("."))


def _class_names(content: Mapping[str, Any]) -> list[str] | None:
    """The classes that a file names, first output first. Raises `ValueError` where their numbers are not 0 to n - 1."""
    for place in (content, *(content[key] for key in ABOUT if isinstance(content.get(key), Mapping))):
        for key in CLASS_LISTS:
            names = place.get(key)
            if isinstance(names, Mapping) and names:
                return _in_order(names)
            if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
                return list(names)
    return None


def _in_order(numbered: Mapping[Any, Any]) -> list[str]:
    """The names of {name: number} or {number: name}."""
    by_name = all(isinstance(key, str) and not key.isdigit() for key in numbered) or not all(
        isinstance(value, str) and not value.isdigit() for value in numbered.values()
    )
    items = numbered.items() if by_name else [(name, number) for number, name in numbered.items()]
    pairs = sorted((int(number), str(name)) for name, number in items)
    if [number for number, _ in pairs] != list(range(len(pairs))):
        raise ValueError(f"classes are numbered {shown(str(number) for number, _ in pairs)}; expected 0 to {len(pairs) - 1}")
    return [name for _, name in pairs]


def load_into(network: Backbone, state: State, source: str) -> list[str]:
    """Load somebody's weights into a network; returns what a person should know of it.

    Names that fit are taken as they are. Where they do not, a prefix is taken off (`module.`, `_orig_mod.`, `model.`, several),
    and for our own architectures the papers' names are translated. Raises `UserError` naming what does not fit.
    """
    target, notes = network.loadable, []
    own = target.state_dict()
    fitting = _fit(state, own)
    if fitting is None and not isinstance(network, Foreign):
        fitting = _fit(in_our_names(state), own)
    if fitting is None:
        inner = {prefix: _fit(below, own) for prefix, below in _prefixes(state).items()}
        whole = {prefix: below for prefix, below in inner.items() if below is not None}
        if len(whole) > 1:
            raise UserError(f"{source} has weights that fit under {shown(whole)}: save those that are meant alone")
        for prefix, below in whole.items():
            fitting, spare = below, [name for name in state if not name.startswith(prefix)]
            if spare:
                notes.append(f"{len(spare)} tensors outside of {prefix!r} were left out ({shown(spare)})")
    if any("pos_embed" in name and own[name].shape != tensor.shape for name, tensor in state.items() if name in own):
        raise UserError(f"{source} was made for images of another size than it is listed with: list it with its own image_size")
    renamed = state if isinstance(network, Foreign) else in_our_names(state)
    checkpoint.load_weights(target, fitting if fitting is not None else renamed, source)
    return notes


def in_our_names(state: State) -> State:
    """The papers' names translated to ours; what has ours already, or nobody's, stays as it is."""
    return to_our_names(_without_prefixes(state))


def _fit(state: State, own: State) -> State | None:
    """The state with the counters it may lack, where its names are those of `own`; else `None`."""
    filled = state | {name: tensor for name, tensor in own.items() if name not in state and name.endswith(COUNTER)}
    return filled if filled.keys() == own.keys() else None


def _prefixes(state: State) -> dict[str, State]:
    """What lies below each prefix of the names, `a.`, `a.b.`, and so on."""
    found: dict[str, State] = {}
    for name, tensor in state.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            prefix = ".".join(parts[:depth]) + "."
            found.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    return found


def _without_prefixes(state: State) -> State:
    """The state without what wrappers put before all of its names."""
    while True:
        prefix = next((wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in state)), None)
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}


WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, Lightning and others
