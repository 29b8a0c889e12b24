"""What a file says of itself beside its weights: its classes, its images' size, mean and std, its architecture."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from utils.errors import UserError
from utils.names import check_same_order, shown, tidy

# Keys are compared without capitals, underscores and hyphens, and `2` is `to`: class2idx, class_to_idx and classToIdx are one.
NUMBER_OF_NAME = re.compile(r"(class(es|name)?|cls|labels?|names?|categor(y|ies)|s|str)to(idx|index|id|int|num|i)")
NAME_OF_NUMBER = re.compile(r"(idx|index|id|int|num|i)to(class(es|name)?|cls|labels?|names?|categor(y|ies)|s|str)")
LISTS = {"classnames", "classes", "classlabels", "labelnames", "targetnames", "categories", "categorynames", "labelmap"}
MAYBE = {"names", "labels", "vocab"}  # lists of these names may be of something else
LIKELY = re.compile(r"class|cls|label|categor|cat|target|name|species|vocab|itos|stoi|idx|index")  # below which classes may lie
RANKED = re.compile(r"count|acc|rank|worst|best|alphabet|sort|weight|freq|hist|loss|score|err|precision|recall|super|coarse")
PLACEHOLDER = re.compile(r"(label|class|cls|#)[_\s]*\d+", re.IGNORECASE)  # what is written where nobody gave a name
MEAN = "mean means imagemean normmean pixelmean normalizemean imgmean datasetmean inputmean rgbmean".split()
STD = "std stds stdev stddev imagestd normstd pixelstd normalizestd imgstd datasetstd inputstd rgbstd".split()
SIZE = "imagesize imgsize imgsz inputsize inputshape inputresolution resolution cropsize imsize".split()
NUMBER = re.compile(r"[-+]?\d*\.?\d+(e[-+]?\d+)?")
LEAST_SIDE, MOST_SIDE = 8, 4096  # of images, in pixels
SCALE = 1e-3  # by which a mean or std may differ that means the same
DEPTH = 4  # of dicts and lists in which classes are looked for
LONGEST = 1 << 16  # of a text that may hold classes


@dataclass(frozen=True)
class Said:
    """What a file says, each as often as it does.

    class_names: under a key that means classes, first output first; maybe: lists of names under other keys, and of whole
    numbers, which are meant where they are the listed names; forms: mean and std; sizes: of images; archs: architectures.
    """

    class_names: list[list[str]] = field(default_factory=list)
    maybe: list[list[str]] = field(default_factory=list)
    forms: list[tuple[Any, Any]] = field(default_factory=list)
    sizes: list[Any] = field(default_factory=list)
    archs: list[Any] = field(default_factory=list)


def said_in(places: Iterable[Mapping[Any, Any]], elsewhere: Iterable[Mapping[Any, Any]] = ()) -> Said:
    """What dicts of a file say, and texts in them that are dicts as JSON writes them; of those `elsewhere` lists that may be
    of classes alone: the rest of what they say may be of something else.

    Raises `ValueError` for classes that are misnumbered.
    """
    found, waiting = Said(), list(places)
    for whole in elsewhere:
        found.maybe.extend(_maybe_names(_with_plain_keys(whole)))
    for whole in waiting:
        waiting += [inner for value in whole.values() for inner in _json_of(value) if isinstance(inner, Mapping)]
        place = _with_plain_keys(whole)
        means, stds = ([place[key] for key in keys if key in place] for keys in (MEAN, STD))
        if means and stds:  # one alone may be of anything: a metric's, say
            found.forms.append((means[0], stds[0]))
        several = len(_numbers(place.get("inputsize"))) > 1  # one number is of features, as likely
        found.sizes.extend(place[key] for key in SIZE if key in place and (key != "inputsize" or several))
        found.archs.extend([place["arch"]] if "arch" in place else [])
        found.class_names.extend(_class_names(place))
        found.maybe.extend(_maybe_names(place))
    return found


def dicts_in(value: Any) -> Iterator[Mapping[Any, Any]]:
    """Every dict in nested dicts and lists."""
    if isinstance(value, Mapping):
        yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from dicts_in(inner)


def check_said(
    said: Said, class_names: Sequence[str], size: int, mean: Sequence[float], std: Sequence[float], arch: str, source: str
) -> None:
    """Raise `UserError` where what a file says of itself contradicts what it is listed as; `arch` may be empty.

    Of what is said several times in several ways, one that agrees is enough, but for classes under keys that mean them.
    """
    listed = [tidy(name) for name in class_names]
    for names in said.class_names if listed else []:
        check_same_order(names, class_names, source, "what it is listed with")
    if listed and not said.class_names:
        meant = [names for names in said.maybe if sorted(map(tidy, names)) == sorted(listed)]
        if meant and not any([tidy(name) for name in names] == listed for names in meant):
            check_same_order(meant[0], class_names, source, "what it is listed with")
    sizes = [sides for value in said.sizes if (sides := _sides(value))]
    if size and sizes and not any(set(sides) == {float(size)} for sides in sizes):
        raise UserError(f"{source} says that its images have {sizes[0][0]:g} pixels; it is listed with {size}")
    forms = [form for own in said.forms if (form := _form(*own, len(mean)))]
    if forms and not any(_near(own_mean, mean) and _near(own_std, std) for own_mean, own_std in forms):
        name, own, listed_as = next(
            (name, own, listed_as)
            for name, own, listed_as in (("mean", forms[0][0], mean), ("std", forms[0][1], std))
            if not _near(own, listed_as)
        )
        rounded = tuple(round(number, 4) for number in own)
        raise UserError(f"{source} says that its {name} is {rounded}; it is listed with {tuple(listed_as)}")
    for own_arch in said.archs:
        if isinstance(own_arch, str) and arch and ":" not in arch and _another_arch(own_arch, arch):
            raise UserError(f"{source} says that it is a {own_arch}; it is listed as {arch}")


def _with_plain_keys(place: Mapping[Any, Any]) -> dict[str, Any]:
    texts = {key: value for key, value in place.items() if isinstance(key, str)}
    return {re.sub(r"[_\-\s]", "", key).lower().replace("2", "to"): value for key, value in texts.items()}


def _class_names(place: Mapping[str, Any]) -> Iterator[list[str]]:
    """The classes that a file names under keys that mean them, first output first."""
    for key, value in place.items():
        by_name, by_number = bool(NUMBER_OF_NAME.fullmatch(key)), bool(NAME_OF_NUMBER.fullmatch(key))
        if not by_name and not by_number and key not in LISTS:
            continue
        names = _unpacked(value)
        if isinstance(names, Mapping):
            names = _in_order(names, by_name, by_number) if _is_numbered(names) else []
        elif _is_list_of(names, (str, bytes)):
            names = [_text(name) for name in names]
        else:
            names = _of_records(names)
        if names and not all(PLACEHOLDER.fullmatch(name) for name in names):
            yield names


def _maybe_names(place: Mapping[str, Any]) -> Iterator[list[str]]:
    """Lists of names that may be classes, below any key that sounds so, and of whole numbers below those that mean classes."""
    for key, value in place.items():
        if key in LISTS | MAYBE or key == "classorder":
            numbers = value.tolist() if isinstance(value, torch.Tensor) and value.ndim == 1 else value
            if _is_list_of(numbers, int):
                yield [str(name) for name in numbers]
        if LIKELY.search(key) and not RANKED.search(key):
            yield from _names_below(value)


def _names_below(value: Any, depth: int = DEPTH) -> Iterator[list[str]]:
    if isinstance(value, (str, bytes)) and len(value) < LONGEST:
        for found in _readings(_text(value).strip()):
            yield from _names_below(found, depth - 1) if depth else ()
    elif _is_list_of(value, (str, bytes)):
        yield [_text(name) for name in value]
    elif isinstance(value, (list, tuple)):
        yield from [names] if (names := _of_records(value)) else []
    elif isinstance(value, Mapping):
        if _is_numbered(value):
            with suppress(ValueError):  # numbers of something else
                yield _in_order(value, by_name=False, by_number=False)
        for inner in value.values() if depth else ():
            if isinstance(inner, (list, tuple, Mapping)):
                yield from _names_below(inner, depth - 1)


def _readings(text: str) -> Iterator[Any]:
    """Several names in one text: as JSON, or between each of the signs that may stand between them."""
    if text[:1] in ("[", "{"):
        yield from _json_of(text)
    elif sign := next((sign for sign in "\n;,|" if sign in text), " " if " " in text else ""):
        yield [part.strip() for part in text.split(sign) if part.strip()]


def _json_of(value: Any) -> Iterator[Any]:
    if isinstance(value, (str, bytes)) and value[:1] in ("[", "{", b"[", b"{"):
        with suppress(ValueError, RecursionError):
            yield json.loads(value)


def _unpacked(value: Any) -> Any:
    """Several names in one text, but for blanks between them, which names may have; anything else as it is."""
    if not isinstance(value, (str, bytes)):
        return value
    text = _text(value).strip()
    return next(_readings(text), None) if re.search(r"^[\[{]|[\n;,|]", text) else None


def _of_records(value: Any) -> list[str]:
    """The names of [{"id": number, "name": name}, ...] in the order of their numbers; nothing of anything else."""
    records = value if isinstance(value, (list, tuple)) else []
    if not records or not all(isinstance(one, Mapping) and {"id", "name"} <= one.keys() for one in records):
        return []
    try:
        return [_text(one["name"]) for one in sorted(records, key=lambda one: int(one["id"]))]
    except (TypeError, ValueError):
        return []


def _in_order(numbered: Mapping[Any, Any], by_name: bool, by_number: bool) -> list[str]:
    """The names of {name: number} or {number: name}, as words or else the key say. Raises `ValueError` for other numbers."""
    firsts, seconds = (any(_is_word(one) for one in some) for some in (numbered, numbered.values()))
    if firsts != seconds:
        name_first = firsts
    elif by_name or by_number:
        name_first = by_name
    else:
        name_first = firsts or not all(isinstance(one, int) for one in numbered)
    items = numbered.items() if name_first else [(_last(name), number) for number, name in numbered.items()]
    pairs = sorted((int(number), _text(name)) for name, number in items)
    if [number for number, _ in pairs] != list(range(len(pairs))):
        raise ValueError(f"classes are numbered {shown(str(number) for number, _ in pairs)}; expected 0 to {len(pairs) - 1}")
    return [name for _, name in pairs]


def _is_numbered(names: Mapping[Any, Any]) -> bool:
    """Whether a dict may be {name: number} or {number: name}; weights and settings may be called like classes, too."""
    firsts, seconds = ([_is_number(one) for one in some] for some in (names, names.values()))
    lists = [isinstance(one, (list, tuple)) for one in names.values()]  # a number's several words
    return bool(names) and (all(seconds) or (all(firsts) and (all(lists) or all(map(_is_word, names.values())))))


def _is_number(one: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.numel() == 1 and not one.is_floating_point()
    return (isinstance(one, int) and not isinstance(one, bool)) or (isinstance(one, (str, bytes)) and _text(one).isdigit())


def _is_list_of(names: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether something is a list of different names; one with repeats is of something else, labels of images, say."""
    several = isinstance(names, (list, tuple)) and len(names) > 0 and all(isinstance(name, kind) for name in names)
    return several and len(set(names)) == len(names) and not any(isinstance(name, bool) for name in names)


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _is_word(one: Any) -> bool:
    """Whether something can only be a name."""
    one = _last(one)
    return isinstance(one, (str, bytes)) and not _text(one).isdigit()


def _last(name: Any) -> Any:
    """Of a number's several words (a WordNet id and a name) the last."""
    return name[-1] if isinstance(name, (list, tuple)) and name else name


def _sides(said: Any) -> list[float]:
    """Height and width in pixels, of S, (S, S), (3, S, S), (S, S, 3), (B, 3, S, S) or named ones; nothing of other numbers."""
    if isinstance(said, Mapping):
        said = [said[side] for side in ("height", "width") if side in said]
    numbers = _numbers(said)
    numbers = numbers[-3:] if len(numbers) == 4 else numbers
    if len(numbers) == 3:
        numbers = [number for number in numbers if number not in (1.0, 3.0)]
    return numbers if len(numbers) in (1, 2) and all(LEAST_SIDE <= number <= MOST_SIDE for number in numbers) else []


def _form(mean: Any, std: Any, channels: int) -> tuple[list[float], list[float]] | None:
    """A mean and std of pixels in [0, 1]; None of anything else: two bare numbers may be an accuracy's over seeds."""
    own_mean, own_std = _numbers(mean), _numbers(std)
    if isinstance(mean, (int, float)) or not {len(own_mean), len(own_std)} <= {1, channels} - {0}:
        return None
    scale = 255 if max(*own_mean, *own_std) > 1 else 1
    of_channel = [[number / scale for number in numbers] * (channels // len(numbers)) for numbers in (own_mean, own_std)]
    return of_channel[0], of_channel[1]


def _near(own: Sequence[float], listed: Sequence[float]) -> bool:
    return all(abs(number - other) <= SCALE for number, other in zip(own, listed, strict=True))


def _numbers(said: Any) -> list[float]:
    """A number, or several in a list, a tensor of any shape or a text; nothing where it is something else."""
    if isinstance(said, str):
        parts = re.split(r"[\s,;x×()\[\]]+", said.strip(" ()[]"))
        said = [float(part) for part in parts] if all(map(NUMBER.fullmatch, parts)) else None
    try:
        return torch.as_tensor(said).flatten().to(torch.float64).tolist()
    except (TypeError, ValueError, RuntimeError):
        return []


def _another_arch(said: str, listed: str) -> bool:
    """Whether a name of this project's, or one of the listed one's family with another number, is another network's."""
    from models import BACKBONES  # which stand above this

    (own, own_number), (other, number) = _family(said), _family(listed)
    if said in BACKBONES and listed in BACKBONES:
        return said != listed
    return own == other and own_number != number and "" not in (own_number, number)


def _family(name: str) -> tuple[str, str]:
    """A network's family and the first number of its name, whatever package stands before and whatever tag behind."""
    last = name.rpartition("/")[2]
    last = last.rpartition(".")[2] if "models." in last else last.partition(".")[0]
    letters, digits, _ = re.split(r"(\d+|$)", re.sub("[_-]", "", last).lower(), maxsplit=1)
    return letters, digits
