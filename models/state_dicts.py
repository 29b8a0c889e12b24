"""Other people's checkpoint files: what they hold, what they say of themselves, and their names for our tensors."""

import re
from collections.abc import Iterator, Mapping, Sequence
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
NUMBER_FIRST = ("idx_to_class", "index_to_class", "id2label")  # dicts of {number: name}, as their name says
CLASS_LISTS = (  # where files name their classes
    "class_names", "classes", "CLASSES", "names", "label_names", "target_names", "categories", "labels", "vocab",
    "class_to_idx", "class_to_index", "label2id", *NUMBER_FIRST,
)  # fmt: skip
SAID = ("mean", "std", "image_size", "arch")
ABOUT = (  # dicts in which files say such things
    "hyper_parameters", "datamodule_hyper_parameters", "hparams", "meta", "dataset_meta", "config", "args", "model_args",
)  # fmt: skip
AVERAGE = re.compile(r"ema|shadow|swa|averag", re.IGNORECASE)  # how keys of running averages are called
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, Lightning and others
DEPTH = 3  # of dicts in which weights and words are looked for


@dataclass(frozen=True)
class Content:
    """What a checkpoint file holds: weights, in its own names, and what it says.

    class_ids and accuracy (0..1): of the papers' teachers; class_names: first output first; class_numbers: the same, where a
    file has whole numbers in their place, which may be names or not; about: mean, std, image_size, arch.
    """

    state: State
    class_ids: list[int] | None = None
    accuracy: float | None = None
    class_names: list[str] | None = None
    class_numbers: list[str] | None = None
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
        raise UserError(
            f"{source} has weights under {shown(found)}: say which are meant, in the list's column `weights`, or save one alone"
        )
    if not found:
        raise UserError(f"{source} is no checkpoint this program knows: no state_dict in its keys {shown(map(str, content))}")
    ((place, state),) = found.items()
    if not which and (average := next(_nameless_averages(content), None)):
        raise UserError(
            f"{source} has weights, and a running average of them without names under {average}: say that the former are meant "
            f"in a column `weights` of the list ({place or 'save them alone'}), or save the average as a state_dict"
        )
    said = list(_said(content))
    about = {key: value for one in reversed(said) for key, value in one.items() if key in SAID}
    ids, accuracy = content.get("specific"), content.get("acc")
    try:
        return Content(
            state,
            None if ids is None else [int(label) for label in ids],
            None if ids is None or accuracy is None else float(accuracy) / 100,
            next(class_names_in(said), None),
            next(_class_numbers(said), None),
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
        if isinstance(value, Mapping) and place.count(".") < DEPTH and not str(key).startswith("optim"):
            yield from _states(value, f"{place}.{key}".lstrip("."))


def _nameless_averages(content: Mapping, place: str = "", averages: bool = False) -> Iterator[str]:
    """Where a list of tensors lies under the name of an average."""
    for key, value in content.items():
        below, named = f"{place}.{key}".lstrip("."), averages or bool(AVERAGE.search(str(key)))
        if isinstance(value, Mapping) and place.count(".") < DEPTH:
            yield from _nameless_averages(value, below, named)
        if named and isinstance(value, (list, tuple)) and len(value) > 1 and all(isinstance(v, torch.Tensor) for v in value):
            yield below


def _said(content: Mapping, depth: int = DEPTH) -> Iterator[Mapping[str, Any]]:
    """The dicts in which a file may say something of itself: those called so, and those around weights."""
    yield content
    for key, value in content.items():
        if depth and isinstance(value, Mapping) and (key in ABOUT or any(place for place, _ in _states(value))):
            yield from _said(value, depth - 1)


def class_names_in(said: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The classes that a file names, first output first. Raises `ValueError` where their numbers are not 0 to n - 1."""
    for place in said:
        for key in CLASS_LISTS:
            names = place.get(key)
            if (
                isinstance(names, Mapping) and names and not any(map(_is_weight, names.values()))
            ):  # weights may be called so, too
                yield _in_order(names, key)
            if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
                yield list(names)


def _class_numbers(said: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The same, of whole numbers."""
    for place in said:
        for key in CLASS_LISTS:
            names = place.get(key)
            names = names.tolist() if isinstance(names, torch.Tensor) and names.ndim == 1 else names
            if isinstance(names, (list, tuple)) and names and all(type(name) is int for name in names):
                yield [str(name) for name in names]


def _in_order(numbered: Mapping[Any, Any], key: str) -> list[str]:
    """The names of {name: number} or {number: name}; where both could be either, `key` says what stands first."""
    firsts, seconds = (any(_is_word(one) for one in some) for some in (numbered, numbered.values()))
    by_name = firsts or (not seconds and key not in NUMBER_FIRST and not all(isinstance(one, int) for one in numbered))
    items = numbered.items() if by_name else [(_last(name), number) for number, name in numbered.items()]
    pairs = sorted((int(number), str(name)) for name, number in items)
    if [number for number, _ in pairs] != list(range(len(pairs))):
        raise ValueError(f"classes are numbered {shown(str(number) for number, _ in pairs)}; expected 0 to {len(pairs) - 1}")
    return [name for _, name in pairs]


def _is_weight(one: Any) -> bool:
    """Whether something is more than a number."""
    return isinstance(one, torch.Tensor) and one.numel() > 1


def _is_word(one: Any) -> bool:
    """Whether something can only be a name."""
    one = _last(one)
    return isinstance(one, str) and not one.isdigit()


def _last(name: Any) -> Any:
    """Of a number's several words (a WordNet id and a name) the last."""
    return name[-1] if isinstance(name, (list, tuple)) and name else name


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
