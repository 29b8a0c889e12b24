"""How a model of an inference server wants its images and gives its answers: a list's word, completed by the server's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from utils.names import tidy

Layout = Callable[[Tensor], Tensor]  # images (B, C, S, S) as the model wants them

LAYOUTS: dict[str, Layout] = {
    "nchw": lambda images: images,
    "nhwc": lambda images: images.permute(0, 2, 3, 1),
    "flat": lambda images: images.flatten(1),  # channel after channel
    "flat_nhwc": lambda images: images.permute(0, 2, 3, 1).flatten(1),  # pixel after pixel
}
DTYPES = ("FP32", "UINT8")
ANSWERS = ("probabilities", "logits", "classification")
BATCH = 32  # images of a request, where nothing is said


@dataclass(frozen=True)
class ModelForm:
    """How a model wants its images and gives its answers. What is empty is what the server says, or the usual.

    mean, std: of pixels in [0, 1], where the images are to be normalised before they are sent. fingerprint: a word of the
    person who lists it, to be changed when the model changes.
    """

    model: str
    version: str = ""
    layout: str = ""
    dtype: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    input: str = ""
    output: str = ""
    batch: int = 0
    answers: str = ""
    binary: str = ""  # yes or no: tensors as bytes behind the JSON
    fingerprint: str = ""


def check_form(form: ModelForm) -> None:
    """Raise `ValueError`, naming the column of a list, for what cannot be meant."""
    choices = {"layout": (*LAYOUTS, ""), "dtype": (*DTYPES, ""), "answers": (*ANSWERS, ""), "binary": ("yes", "no", "")}
    for column, known in choices.items():
        if getattr(form, column) not in known:
            raise ValueError(f"column {column}: {getattr(form, column)!r}; expected one of {', '.join(known[:-1])}, or nothing")
    if not form.model:
        raise ValueError("column model is empty: expected the model's name on the server")
    if form.batch < 0:
        raise ValueError(f"column batch: {form.batch}; expected a number of images from 1, or nothing")
    if bool(form.mean) != bool(form.std):
        raise ValueError("columns mean and std: expected both, or neither")
    if form.dtype == "UINT8" and form.std:
        raise ValueError("columns mean and std: bytes are sent as they are; leave them empty, or send FP32")


def completed(form: ModelForm, metadata: Mapping[str, Any], image_size: int, speaks_bytes: bool) -> ModelForm:
    """The form with what was left open as the server says, or as is usual. Raises `ValueError` where both cannot be."""
    given = first_of(metadata, "inputs", form.input)
    shape, dtype = given.get("shape"), given.get("datatype")
    fixed = whole(shape[0]) if isinstance(shape, list) and shape else 0  # a batch of one size alone
    if form.std and not form.dtype and dtype == "UINT8":
        raise ValueError("takes UINT8, where mean and std would be lost: list it as FP32")
    return replace(
        form,
        layout=form.layout or _layout_of(shape, image_size),
        dtype=form.dtype or (str(dtype) if dtype in DTYPES else "FP32"),
        input=form.input or str(given.get("name") or "images"),
        batch=form.batch or fixed or whole(parameters_of(metadata).get("max_batch")) or BATCH,
        answers=form.answers or "probabilities",
        binary=form.binary or ("yes" if speaks_bytes else "no"),
    )


def check_size(metadata: Mapping[str, Any], name: str, image_size: int) -> None:
    """Raise `ValueError` where a server says of its input `name` that images have another size than they are listed with."""
    shape = as_list(first_of(metadata, "inputs", name).get("shape"))
    sides = [side for side in map(whole, shape[1:]) if side > 3] if len(shape) == 4 else []
    for side in sides:
        if side != image_size and image_size:
            raise ValueError(f"says that its images have {side} pixels; it is listed with {image_size}")


def what_is_said(metadata: Mapping[str, Any], output: str) -> list[dict[str, Any]]:
    """The dicts in which a server may say something of a model, and of its output of that name, or the first."""
    places = [parameters_of(metadata), parameters_of(first_of(metadata, "outputs", output))]
    return [{name: _bare(value) for name, value in place.items()} for place in places]


def _bare(value: Any) -> Any:
    """A parameter's value, which some servers write as {"string_value": value}."""
    return next(iter(value.values())) if isinstance(value, dict) and [*value][:1] == ["string_value"] else value


def whole(value: Any) -> int:
    """A number from 1, also as a text; 0 for anything else."""
    if isinstance(value, str) and value.isdigit():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def as_list(value: Any) -> list[Any]:
    """A value that should be a list, as one: empty where it is something else."""
    return value if isinstance(value, list) else []


def parameters_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    said = metadata.get("parameters")
    return said if isinstance(said, dict) else {}


def first_of(metadata: Mapping[str, Any], side: str, name: str) -> dict[str, Any]:
    """What is said of the input or output `name`, or of the first."""
    said = [one for one in as_list(metadata.get(side)) if isinstance(one, dict)]
    return next((one for one in said if name in ("", one.get("name"))), {})


def _layout_of(shape: Any, size: int) -> str:
    if isinstance(shape, list) and len(shape) == 2 and shape[1] == 3 * size**2:
        return "flat"
    return "nhwc" if isinstance(shape, list) and len(shape) == 4 and shape[-1] == 3 and shape[1] != 3 else "nchw"


def from_classification(words: np.ndarray, num_classes: int, class_names: Sequence[str] = ()) -> np.ndarray:
    """Triton's classification extension, texts "value:index:label", as probabilities; what is not named shares the rest.

    Raises `ValueError` for other texts, and for a label that `class_names` has in another place.
    """
    if words.ndim < 1:
        raise ValueError("its classification has no rows")
    rows = words.reshape(len(words), -1)
    answer = np.full((len(rows), num_classes), np.nan)
    listed, labels = {tidy(name): place for place, name in enumerate(class_names)}, dict[str, set[int]]()
    for row, said in zip(answer, rows, strict=True):
        for word in said:
            value, index, label = _value_index_label(str(word), num_classes)
            row[index] = value
            labels.setdefault(tidy(label), set()).add(index)
    for label, (index, *more) in labels.items():
        if not more and listed.get(label, index) != index:  # a label of several classes says nothing
            raise ValueError(f"says that {label!r} is its class {index}; it is listed as class {listed[label]}")
    named = ~np.isnan(answer)
    rest = (1 - np.where(named, answer, 0).sum(1)).clip(0) / (~named).sum(1).clip(1)
    return np.where(named, answer, rest[:, None])


def _value_index_label(word: str, num_classes: int) -> tuple[float, int, str]:
    try:
        value, index, label = [*word.split(":", 2), ""][:3]
        if not 0 <= int(index) < num_classes:
            raise ValueError(index)
        return float(value), int(index), label
    except ValueError as error:
        raise ValueError(f"its classification says {word[:40]!r}; expected value:index:label of {num_classes}") from error
