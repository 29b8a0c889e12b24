"""What a file says of itself beside its weights: its classes, its images' size, mean and std, its architecture."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
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
ALIASES = {  # what else files call it, by what it is
    "mean": ("mean", "imagemean", "normmean", "pixelmean", "normalizemean", "imgmean", "datasetmean"),
    "std": ("std", "imagestd", "normstd", "pixelstd", "normalizestd", "imgstd", "datasetstd"),
    "image_size": ("imagesize", "imgsize", "imgsz", "inputsize"),
    "arch": ("arch",),
}
NUMBER = re.compile(r"[-+]?\d*\.?\d+(e[-+]?\d+)?")
LEAST_SIDE, MOST_SIDE = 8, 4096  # of images, in pixels
SCALE = 1e-3  # by which a mean or std may differ that means the same


@dataclass(frozen=True)
class Said:
    """class_names: first output first; class_numbers: the same, where a file has whole numbers in their place, which may be
    names or not; about: mean, std, image_size, arch, as far as they are said.
    """

    class_names: list[str] | None = None
    class_numbers: list[str] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def said_in(places: Sequence[Mapping[Any, Any]]) -> Said:
    """What dicts of a file say; the first that says a thing counts. Raises `ValueError` for classes that are misnumbered."""
    named = [{_plain_key(key): value for key, value in place.items() if isinstance(key, str)} for place in places]
    about: dict[str, Any] = {}
    for place in reversed(named):
        if len(_numbers(place.get("inputsize"))) < 2:  # a number of features, as likely
            place = {key: value for key, value in place.items() if key != "inputsize"}
        found = {name: place[key] for name, keys in ALIASES.items() for key in keys if key in place}
        if not {"mean", "std"} <= found.keys():  # one alone may be of anything: a metric's, say
            found = {name: value for name, value in found.items() if name not in ("mean", "std")}
        about |= found
    return Said(next(_class_names(named), None), next(_class_numbers(named), None), about)


def check_said(
    said: Said, class_names: Sequence[str], size: int, mean: Sequence[float], std: Sequence[float], arch: str, source: str
) -> None:
    """Raise `UserError` where what a file says of itself contradicts what it is listed as; `arch` may be empty."""
    names = said.class_names
    if names is None and said.class_numbers and set(said.class_numbers) == {tidy(name) for name in class_names}:
        names = said.class_numbers
    if names and class_names:
        check_same_order(names, class_names, source, "what it is listed with")
    sizes = _sides(said.about.get("image_size"))
    if sizes and set(sizes) != {float(size)}:
        raise UserError(f"{source} says that its images have {sizes[0]:g} pixels; it is listed with {size}")
    own = {name: _numbers(said.about.get(name)) for name in ("mean", "std")}
    of_bytes = max([0.0, *own["mean"], *own["std"]]) > 1
    for name, listed in (("mean", mean), ("std", std)):
        numbers = own[name]
        if len(numbers) not in (1, len(listed)):
            continue
        numbers = numbers if len(numbers) > 1 else numbers * len(listed)
        numbers = [number / 255 for number in numbers] if of_bytes else numbers
        if any(abs(number - other) > SCALE for number, other in zip(numbers, listed, strict=True)):
            rounded = tuple(round(number, 4) for number in numbers)
            raise UserError(f"{source} says that its {name} is {rounded}; it is listed with {tuple(listed)}")
    own_arch = said.about.get("arch")
    if isinstance(own_arch, str) and arch and ":" not in arch and not _same_arch(own_arch, arch):
        raise UserError(f"{source} says that it is a {own_arch}; it is listed as {arch}")


def _plain_key(key: str) -> str:
    return re.sub(r"[_\-\s]", "", key).lower().replace("2", "to")


def _class_names(places: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The classes that a file names, first output first."""
    for place in places:
        for key, value in place.items():
            by_name, by_number = bool(NUMBER_OF_NAME.fullmatch(key)), bool(NAME_OF_NUMBER.fullmatch(key))
            certain = by_name or by_number or key in LISTS
            if not certain and key not in MAYBE:
                continue
            names = _unpacked(value) if certain else value
            if isinstance(names, Mapping):
                if names and not any(map(_is_weight, names.values())):  # weights may be called so, too
                    yield _in_order(names, by_name, by_number)
            elif _is_list_of(names, (str, bytes)):
                yield [_text(name) for name in names]


def _class_numbers(places: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The same, of whole numbers."""
    for place in places:
        for key, names in place.items():
            if key in LISTS | MAYBE:
                names = names.tolist() if isinstance(names, torch.Tensor) and names.ndim == 1 else names
                if _is_list_of(names, int):
                    yield [str(name) for name in names]


def _unpacked(value: Any) -> Any:
    """Several names in one text: as JSON, or between line ends, semicolons or commas; anything else as it is."""
    if not isinstance(value, (str, bytes)):
        return value
    text = _text(value).strip()
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return None
    sign = next((sign for sign in "\n;," if sign in text), None)
    return None if sign is None else [part.strip() for part in text.split(sign) if part.strip()]


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


def _is_list_of(names: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether something is a list of different names; one with repeats is of something else, labels of images, say."""
    several = isinstance(names, (list, tuple)) and len(names) > 0 and all(isinstance(name, kind) for name in names)
    return several and len(set(names)) == len(names) and not any(isinstance(name, bool) for name in names)


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _is_weight(one: Any) -> bool:
    """Whether something is more than a number."""
    return isinstance(one, torch.Tensor) and one.numel() > 1


def _is_word(one: Any) -> bool:
    """Whether something can only be a name."""
    one = _last(one)
    return isinstance(one, (str, bytes)) and not _text(one).isdigit()


def _last(name: Any) -> Any:
    """Of a number's several words (a WordNet id and a name) the last."""
    return name[-1] if isinstance(name, (list, tuple)) and name else name


def _sides(said: Any) -> list[float]:
    """Height and width in pixels, of S, (S, S), (3, S, S), (S, S, 3) or (B, 3, S, S); nothing of other numbers."""
    numbers = _numbers(said)
    numbers = numbers[-3:] if len(numbers) == 4 else numbers
    if len(numbers) == 3:
        numbers = [number for number in numbers if number not in (1.0, 3.0)]
    return numbers if len(numbers) in (1, 2) and all(LEAST_SIDE <= number <= MOST_SIDE for number in numbers) else []


def _numbers(said: Any) -> list[float]:
    """A number, or several in a list, a tensor of any shape or a text; nothing where it is something else."""
    if isinstance(said, str):
        parts = re.split(r"[\s,;x×()\[\]]+", said.strip(" ()[]"))
        said = [float(part) for part in parts] if all(map(NUMBER.fullmatch, parts)) else None
    try:
        return torch.as_tensor(said).flatten().to(torch.float64).tolist()
    except (TypeError, ValueError, RuntimeError):
        return []


def _same_arch(said: str, listed: str) -> bool:
    """Whether two names may mean one architecture: a package before it, a tag behind it, or its kind alone is no difference."""
    own = [re.sub("[_-]", "", part).lower() for part in (said, said.split(".")[0], said.split(".")[-1], said.split("/")[-1])]
    other = re.sub("[_-]", "", listed.rpartition("/")[2]).lower()
    return other in own or other.split(".")[0] in own or (own[0].isalpha() and other.startswith(own[0]))
