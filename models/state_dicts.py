"""Other people's checkpoint files: what they hold, what they say of themselves, and their names for our tensors."""

import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from models.backbone import Backbone
from models.foreign import Foreign
from models.published import to_our_names
from models.said import Said, said_in
from utils import checkpoint
from utils.errors import UserError
from utils.names import shown

State = dict[str, Tensor]
COUNTER = "num_batches_tracked"  # of batch normalisation, which files from before PyTorch 0.4.1 lack and nothing here reads
ABOUT = (  # dicts in which files say such things
    "hyper_parameters", "datamodule_hyper_parameters", "hparams", "meta", "metadata", "dataset_meta", "config", "cfg", "opt",
    "info", "args", "train_args", "model_args", "model_config", "settings", "params", "extra", "dataset", "data", "datamodule",
    "data_config", "transform", "transforms", "preprocess", "preprocessing", "normalize", "normalization", "label_encoder",
    "vocab",
)  # fmt: skip
# How running averages of weights are called: not those of gradients and losses
AVERAGE = re.compile(r"(^|[_./-])(ema|swa|avg|polyak|slow)|model_?(ema|avg)|averag|shadow|mean_param", re.IGNORECASE)
NO_AVERAGE = re.compile(r"exp_|grad|squ|update|loss|acc|metric|decay|(^|_)lr", re.IGNORECASE)
KEPT_AVERAGES = {"ax", "slow_buffer", "slow_param", "slow_weights", "swa_buffer", "ema", "shadow"}  # by optimizers
OPTIMIZER = re.compile(r"optim(?!al|um)")  # how keys of optimizers begin
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, Lightning and others
INSIDE = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # of parts that were wrapped
NUMBERED = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=\d)")  # as torchvision's own files of DenseNets call norm1, conv1
HELPER = re.compile(r"(aux\d|AuxLogits)\.")  # heads of GoogLeNet and Inception that only training uses
PROFILED = ("total_ops", "total_params")  # which thop counts
DEPTH = 3  # of dicts in which weights and words are looked for
SAY_WHICH = "name the prefix of those that are meant in the list's column `weights`, or save them alone"


@dataclass(frozen=True)
class Content:
    """What a checkpoint file holds: weights, in its own names, and what it says.

    class_ids and accuracy (0..1): of the papers' teachers; said: what else it says of itself; whole: the dict that the weights
    lie in, with what is no tensor.
    """

    state: State
    class_ids: list[int] | None = None
    accuracy: float | None = None
    said: Said = field(default_factory=Said)
    whole: Mapping[str, Any] = field(default_factory=dict)


def read_content(content: Any, source: str, which: str = "") -> Content:
    """What the loaded `content` of a checkpoint file holds.

    A state_dict, or dicts with one at any depth; where there are several (the weights and their running average), `which` names
    the place, `a` or `a.b`. Raises `UserError` naming `source` where there is none, and where it must be told which.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{source} holds a {type(content).__name__}; expected a state_dict, or a dict with one")
    states = dict(_states(content))
    everywhere = found = _large(states)
    if which:
        meant = "" if which == "." else which
        found = {place: whole for place, whole in states.items() if place == meant or (meant and place.startswith(f"{meant}."))}
        found = _large(found)
        found = found or dict(_below_names(states, which))
        if len(found) != 1:
            places = shown(place or "." for place in everywhere)
            raise UserError(f"{source} has no weights under {which!r} alone; they are under {places}")
    if len(found) > 1:
        raise UserError(
            f"{source} has weights under {shown(place or '.' for place in found)}: say which are meant, in the list's column "
            "`weights`, or save one alone"
        )
    if not found:
        raise UserError(f"{source} is no checkpoint this program knows: no state_dict in its keys {shown(map(str, content))}")
    ((place, whole),) = found.items()
    numbers = sum(tensor.numel() for tensor in _tensors(whole).values())
    if not which and (average := next(_nameless_averages(content, numbers), None)):
        raise UserError(
            f"{source} has weights, and a running average of them without names under {average}: say that the former are meant "
            f"in a column `weights` of the list ({place or 'save them alone'}), or save the average as a state_dict"
        )
    ids, accuracy = content.get("specific"), content.get("acc")
    try:
        return Content(
            _tensors(whole),
            None if ids is None else [int(label) for label in ids],
            None if ids is None or accuracy is None else float(accuracy) / (100 if float(accuracy) > 1 else 1),  # or a share
            said_in(*_near_and_far(_about(content, place, everywhere.keys() - {place}))),
            whole,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{source} says something of its classes that cannot be read: {error}") from error


def _states(content: Mapping, place: str = "") -> Iterator[tuple[str, Mapping]]:
    """Every dict with at least two named tensors, and where it lies: "" for the content itself."""
    if len(_tensors(content)) > 1:
        yield place, content
    for key, value in content.items():
        if isinstance(value, Mapping) and place.count(".") < DEPTH and not OPTIMIZER.match(str(key)):
            yield from _states(value, f"{place}.{key}".lstrip("."))


def _large(found: dict[str, Mapping]) -> dict[str, Mapping]:
    """Those that may be a network's weights: metrics and random states are small, and have other names."""
    states = {place: _tensors(whole) for place, whole in found.items()}
    largest = max(states.values(), key=len, default={})

    def counts(state: State) -> bool:
        return 2 * len(state) > len(largest) or 2 * len(state.keys() & largest.keys()) > len(state) > 3

    return {place: found[place] for place, state in states.items() if counts(state)}


def _below_names(states: Mapping[str, Mapping], which: str) -> Iterator[tuple[str, Mapping]]:
    """What lies in one of the states below a prefix of its names, where `which` is its place and the prefix, or the prefix."""
    for place, whole in states.items():
        prefix = which.removeprefix(f"{place}.") + "."
        below = {name.removeprefix(prefix): tensor for name, tensor in _tensors(whole).items() if name.startswith(prefix)}
        if len(below) > 1:
            yield f"{place}.{prefix}".strip("."), below


def _tensors(content: Mapping) -> State:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _nameless_averages(content: Mapping, numbers: int, place: str = "", averages: bool = False) -> Iterator[str]:
    """Where tensors lie under the name of an average and not as a state_dict: in a list, under numbers, in an optimizer's, or
    half as many `numbers` as the weights have, or more, in one.
    """
    for key, value in content.items():
        below, named = f"{place}.{key}".lstrip("."), averages or _is_average(str(key))
        if isinstance(value, Mapping) and _names_of_moments(value) & KEPT_AVERAGES:
            yield below
        elif isinstance(value, Mapping) and place.count(".") < DEPTH:
            yield from _nameless_averages(value, numbers, below, named)
        if not named:
            continue
        if isinstance(value, Tensor) and place.count(".") == 0 and 2 * value.numel() >= numbers > 0 and value.ndim == 1:
            yield below
        if isinstance(value, Mapping):
            numbered = [one for name, one in value.items() if not isinstance(name, str) or below.startswith("optim")]
        else:
            numbered = list(value) if isinstance(value, (list, tuple)) else []
        tensors = [one[-1] if isinstance(one, tuple) and one else one for one in numbered]  # or pairs of name and tensor
        if len(tensors) > 1 and all(isinstance(one, Tensor) for one in tensors):
            yield below


def _is_average(name: str) -> bool:
    return bool(AVERAGE.search(name)) and not NO_AVERAGE.search(name)


def _names_of_moments(numbered: Mapping) -> set[str]:
    """What an optimizer's state keeps of more than one parameter."""
    kept = [_tensors(one).keys() for number, one in numbered.items() if isinstance(number, int) and isinstance(one, Mapping)]
    return {name for names in kept for name in names if sum(name in others for others in kept) > 1}


def _about(
    content: Mapping, chosen: str, others: Set[str], place: str = "", near: bool = True
) -> Iterator[tuple[bool, Mapping[str, Any]]]:
    """The dicts in which a file may say something of itself: not optimizers', nor those around weights at `others` alone.

    Near are those around the `chosen` weights, and those that are called so; of weights, what is no tensor, whatever its name.
    """
    yield near, {key: value for key, value in content.items() if not (place == chosen and isinstance(value, Tensor))}
    for key, value in content.items():
        inner, below = vars(value) if isinstance(value, Namespace) else value, f"{place}.{key}".lstrip(".")
        if not isinstance(inner, Mapping) or place.count(".") >= DEPTH or OPTIMIZER.match(str(key)):
            continue
        leads = f"{chosen}.".startswith(f"{below}.")
        if leads or not any(f"{other}.".startswith(f"{below}.") for other in others):
            yield from _about(inner, chosen, others, below, near and (leads or key in ABOUT))


def _near_and_far(places: Iterable[tuple[bool, Mapping[str, Any]]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    both = list(places)
    return [place for near, place in both if near], [place for near, place in both if not near]


def load_into(network: Backbone, content: Content, source: str) -> list[str]:
    """Load somebody's weights into a network; returns what a person should know of it.

    What the network takes as it is, by its own rules, is taken so. Where names do not fit, a prefix is taken off (`module.`,
    `_orig_mod.`, `model.`, several), and for our own architectures the papers' names are translated. Raises `UserError` naming
    what does not fit.
    """
    target, state = network.loadable, _unwrapped(content.state)
    notes: list[str] = []
    own = target.state_dict()
    if not any(map(HELPER.match, own)):
        state = {name: tensor for name, tensor in state.items() if not HELPER.match(name)}
    fitting = _fit(state, own)
    if fitting is None and isinstance(network, Foreign) and checkpoint.takes(target, content.whole, source):
        return notes
    if fitting is None and not isinstance(network, Foreign):
        fitting = _fit(in_our_names(state), own)
    if fitting is None:
        inner = {prefix: _fit(below, own) for prefix, below in _prefixes(state).items()}
        whole = {prefix: below for prefix, below in inner.items() if below is not None}
        plain = _fit({name: tensor for name, tensor in state.items() if name in own}, own) is not None
        if whole and len(whole) + plain > 1:
            places = shown([*whole, *(["no prefix"] if plain else [])])
            raise UserError(f"{source} has weights that fit under {places}: {SAY_WHICH}")
        for prefix, below in whole.items():
            fitting, spare = below, [name for name in state if not name.startswith(prefix)]
            averages = [name for name in spare if _is_average(name.split(".")[0])]
            if 2 * len(averages) >= len(own):
                raise UserError(f"{source} has weights under {prefix} and a running average, {averages[0]}: {SAY_WHICH}")
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


def _unwrapped(state: State) -> State:
    """The state without what wrappers and profilers put into it; DenseNet's names as torchvision reads them."""
    kept = {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in PROFILED}
    return {NUMBERED.sub(r"\1", INSIDE.sub("", name)): tensor for name, tensor in kept.items()}


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
