"""Models of inference servers as teachers: whatever speaks the Open Inference Protocol (KServe v2).

NVIDIA Triton, KServe, MLServer, OpenVINO Model Server and this project's own `serve` do.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from threading import Lock
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from methods.services.answer_store import AnswerStore
from methods.services.black_box import Listed, Metered, check_probabilities
from methods.services.client import IN_FLIGHT, Client, Credential, TooLarge
from methods.services.meter import Meter
from methods.services.protocol import BINARY, TEXT, Named, decode, encode
from utils.errors import UserError
from utils.images import normalise, to_uint8

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
SAME = 1e-3  # by which two answers of one model to one question may differ


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


@dataclass(frozen=True)
class Asking:
    """How services are asked: requests at once, and where answers are kept (None: nowhere)."""

    in_flight: int = IN_FLIGHT
    store: AnswerStore | None = None
    _clients: dict[tuple, Client] = field(default_factory=dict, repr=False, compare=False)

    def client(self, url: str, credential: Credential = Credential()) -> Client:  # noqa: B008 (it is never changed)
        """The one client of a server: its models share the requests at once."""
        return self._clients.setdefault((url, credential), Client(url, credential, self.in_flight))


class RemoteModel(Metered):
    """A model of a server: `ask(images, meter)`. The server is looked at when it is first needed."""

    def __init__(self, client: Client, form: ModelForm, num_classes: int, image_size: int, store: AnswerStore | None) -> None:
        self.client, self.num_classes, self.image_size, self.store = client, num_classes, image_size, store
        self._form, self._largest = form, 0
        self.path = f"/v2/models/{quote(form.model, safe='')}" + (f"/versions/{quote(form.version)}" if form.version else "")
        self.name = form.model + (f"/{form.version}" if form.version else "")
        self._same, self._one_at_a_time = False, Lock()

    @property
    def place(self) -> str:
        """Server and model, for people."""
        return f"{self.client.url.partition('://')[2]}/{self.name}"

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What the server says of the model; it may be nothing. Raises `UserError` where it does not have it."""
        found = self.client.look("GET", self.path)
        if found is None:
            raise UserError(f"{self.client.url} has no model {self.name!r}{_models_there(self.client)}")
        return found if isinstance(found, dict) else {}

    @cached_property
    def form(self) -> ModelForm:
        """The whole form: the list's word, else the server's, else the usual."""
        own, said = self._form, self.metadata
        given = _first(said, "inputs", own.input)
        shape = given.get("shape")
        fixed = _whole(shape[0]) if isinstance(shape, list) and shape else 0  # a batch of one size alone
        if own.std and not own.dtype and given.get("datatype") == "UINT8":
            raise UserError(f"{self.name} at {self.client.url} takes UINT8, where mean and std would be lost: list it as FP32")
        return replace(
            own,
            layout=own.layout or _layout_of(shape, self.image_size),
            dtype=own.dtype or (str(given.get("datatype")) if given.get("datatype") in DTYPES else "FP32"),
            input=own.input or str(given.get("name") or "images"),
            batch=own.batch or fixed or _whole(_parameters(said).get("max_batch")) or BATCH,
            answers=own.answers or "probabilities",
            binary=own.binary or ("yes" if BINARY in extensions(self.client) else "no"),
        )

    @property
    def takes_bytes(self) -> bool:
        return self.form.dtype == "UINT8"

    @property
    def at_once(self) -> int:
        return self.client.in_flight * self.batch

    @property
    def fingerprint(self) -> str:
        """What changes when the model does, as far as somebody says so; else nothing."""
        said = self._form.fingerprint or _parameters(self.metadata).get("fingerprint") or ""
        versions = _list(self.metadata.get("versions")) or [self._form.version]
        word = said or ",".join(map(str, versions))
        return f"{self.client.url}{self.path}@{word}" if word else ""

    def contact(self) -> str:
        form = self.form
        kind = "bytes behind JSON" if form.binary == "yes" else "JSON"
        return f"{form.dtype} {form.layout} in {form.input!r}, {form.answers} back, up to {form.batch} images as {kind}"

    def ask(self, images: Tensor, meter: Meter) -> Tensor:
        """Probabilities (B, N) of images (B, C, S, S) in [0, 1], several requests at once.

        An answer that was paid for before is taken from the store. Raises `BudgetSpent`, and `UserError` naming the model.
        """
        parts = images.detach().cpu().split(self.batch)
        return torch.cat(self.client.together([partial(self._answer, part, meter) for part in parts]))

    def _answer(self, images: Tensor, meter: Meter) -> Tensor:
        try:
            found = self._request(images, meter)
        except TooLarge as error:
            return self._in_halves(images, meter, error)
        return self._probabilities(found, len(images))

    def _in_halves(self, images: Tensor, meter: Meter, error: TooLarge) -> Tensor:
        """Halve the batch, once; the server may take no more."""
        half = -(-self.form.batch // 2)
        if len(images) <= half:
            raise UserError(f"{self.name} at {self.client.url} {error}") from error
        try:
            answers = [self._probabilities(self._request(part, meter), len(part)) for part in images.split(half)]
        except TooLarge as again:
            raise UserError(f"{self.name} at {self.client.url} {again}") from again
        if not self._largest:
            tqdm.write(f"note: {self.name} {error}; it is asked for {half} images at once from now on (column batch)")
            self._largest = half
            if self.store is not None:
                self.store.put(self._batch_key, np.array([half]))
        return torch.cat(answers)

    def _request(self, images: Tensor, meter: Meter) -> np.ndarray:
        """The numbers (B, N), or texts, that answer a request; asked only where they are not kept."""
        key = self._key(images)
        kept = self.store.get(key) if self.store is not None else None
        if kept is not None:
            if not self.fingerprint:
                self._check_same(images, key, kept, meter)
            return kept
        answer = self._send(images, key, meter)
        self._probabilities(answer, len(images))  # nothing is kept that is no answer
        if self.store is not None:
            self.store.put(key, answer)
        return answer

    def _send(self, images: Tensor, key: bytes, meter: Meter, limited: bool = True) -> np.ndarray:
        form, about = self.form, f"{self.name} {key.hex()[:12]}"
        outer: dict[str, Any] = {}
        if form.output or form.answers == "classification":
            extra = {"classification": self.num_classes} if form.answers == "classification" else {}
            binary = {"binary_data": True} if form.binary == "yes" else {}
            name = form.output or str(_first(self.metadata, "outputs", "").get("name") or "")
            outer["outputs"] = [{"name": name, "parameters": extra | binary} if extra | binary else {"name": name}]
        elif form.binary == "yes":
            outer["parameters"] = {"binary_data_output": True}
        body, headers = encode("inputs", [Named(form.input, form.dtype, self._prepared(images))], form.binary == "yes", outer)

        def charge() -> None:
            meter.send(len(images), about, limited)

        data, said = self.client.post(f"{self.path}/infer", body, headers, self.name, charge)
        try:
            return self._numbers(decode("outputs", data, said)[1])
        except ValueError as error:
            raise UserError(f"{self.name} at {self.client.url} gave no answer of the protocol: {error}") from error

    def _numbers(self, outputs: list[Named]) -> np.ndarray:
        """The output that is meant."""
        names = [output.name for output in outputs]
        if self.form.output:
            outputs = [output for output in outputs if output.name == self.form.output]
        if len(outputs) != 1:
            raise ValueError(f"it answers {', '.join(names)}; say in the column output which of them is meant")
        (output,) = outputs
        if output.datatype == TEXT and self.form.answers == "classification":
            return _from_classification(output.values, self.num_classes)
        if output.datatype not in ("FP16", "FP32", "FP64"):
            raise ValueError(
                f"its output {output.name!r} is of {output.datatype}, which are labels; name the one of probabilities in the "
                "column output (scikit-learn's: predict_proba)"
            )
        return output.values.astype(np.float64 if output.datatype == "FP64" else np.float32)

    def _probabilities(self, numbers: np.ndarray, count: int) -> Tensor:
        answer = torch.from_numpy(numbers).to(torch.get_default_dtype())
        if tuple(answer.shape) != (count, self.num_classes):
            raise UserError(
                f"{self.name} at {self.client.url} answered {tuple(answer.shape)} to {count} images; expected "
                f"{(count, self.num_classes)}"
            )
        found = F.softmax(answer, 1) if self.form.answers == "logits" else answer
        try:
            check_probabilities(found)
        except ValueError as error:
            raise UserError(f"{self.name} at {self.client.url} answered {error}") from error
        return found

    def _prepared(self, images: Tensor) -> np.ndarray:
        form = self.form
        if form.dtype == "UINT8":
            return LAYOUTS[form.layout](to_uint8(images)).contiguous().numpy()
        pixels = normalise(images, form.mean, form.std) if form.std else images
        return LAYOUTS[form.layout](pixels).float().contiguous().numpy()

    def _key(self, images: Tensor) -> bytes:
        """What a request is kept under: the model, how it is asked, and every byte that is sent."""
        about = [self.client.url, self.path, self.fingerprint, vars(replace(self.form, batch=0, binary="")), images.shape]
        sent = self._prepared(images)
        return hashlib.sha256(json.dumps(about, default=str).encode() + sent.tobytes()).digest()

    def _check_same(self, images: Tensor, key: bytes, kept: np.ndarray, meter: Meter) -> None:
        """Ask again what was answered before, once, of a model that names no version.

        Raises `UserError` where the answer is another one: then kept answers are another model's.
        """
        with self._one_at_a_time:
            if self._same:
                return
            now = self._send(images, key, meter, limited=False)
            if kept.shape != now.shape or not np.allclose(kept, now, rtol=SAME, atol=SAME):
                raise UserError(
                    f"{self.name} at {self.client.url} answers otherwise than before, and names no version: if it is another "
                    "model now, list it with a word of yours in the column fingerprint"
                )
            self._same = True

    @property
    def batch(self) -> int:
        if not self._largest and self.store is not None and (kept := self.store.get(self._batch_key)) is not None:
            self._largest = int(kept[0])
        return min(self._largest or self.form.batch, self.form.batch)

    @property
    def _batch_key(self) -> bytes:
        """What an earlier run has learnt of the model's batch is kept under."""
        return hashlib.sha256(f"batch {self.client.url}{self.path}".encode()).digest()


def extensions(client: Client) -> list[str]:
    """What the server can do beside the protocol."""
    said = client.look("GET", "/v2")
    return list(map(str, _list(said.get("extensions")))) if isinstance(said, dict) else []


def models_of(url: str, asking: Asking) -> list[Listed]:
    """The models of a server that says itself what their classes are called, as this project's does.

    Raises `UserError` for another: its models are listed in a manifest.
    """
    check_url(url)
    client = asking.client(url)
    if client.look("GET", "/v2") is None:
        raise UserError(f"{url} is no server of the Open Inference Protocol: it has no /v2")
    names = _index(client)
    if names is None:
        raise UserError(f"{url} does not list its models; list them yourself in a teachers.csv (docs/services.md)")
    listed = []
    for name in names:
        model = RemoteModel(client, ModelForm(name), 0, 0, asking.store)
        said = _parameters(model.metadata)
        try:
            classes, size = tuple(map(str, _list(said["class_names"]))), int(said["image_size"])
            if not classes or len(set(classes)) < len(classes) or size < 1:
                raise ValueError("no classes, or one that stands twice, or no size")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{url} has {', '.join(names)}, and does not say what their classes are called: list them in a teachers.csv "
                "(docs/services.md)"
            ) from error
        model.num_classes, model.image_size = len(classes), size
        listed.append(Listed(model, model.place, classes, size, str(said.get("dataset") or "service")))
    return listed


def _index(client: Client) -> list[str] | None:
    """The names of the models that are ready, by the repository's index; None where the server has none."""
    found = client.look("POST", "/v2/repository/index", b"{}")
    if not isinstance(found, list):
        return None
    there = [one for one in found if isinstance(one, dict) and one.get("name") and one.get("state") != "UNAVAILABLE"]
    return list(dict.fromkeys(str(one["name"]) for one in there))  # a model may be listed once for each version


def check_url(url: str) -> None:
    """Raise `UserError` for a URL with more in it than a server's place."""
    if any(sign in url for sign in "@?#"):
        raise UserError("a server's URL must hold no user, password, query or fragment: a token goes into the environment")


def _whole(value: Any) -> int:
    """A number from 1, or 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _models_there(client: Client) -> str:
    names = _index(client)
    return f"; it has {', '.join(names)}" if names else ""


def _parameters(metadata: Mapping[str, Any]) -> dict[str, Any]:
    said = metadata.get("parameters")
    return said if isinstance(said, dict) else {}


def _first(metadata: Mapping[str, Any], side: str, name: str) -> dict[str, Any]:
    """What is said of the input or output `name`, or of the first."""
    said = [one for one in _list(metadata.get(side)) if isinstance(one, dict)]
    return next((one for one in said if name in ("", one.get("name"))), {})


def _layout_of(shape: Any, size: int) -> str:
    if isinstance(shape, list) and len(shape) == 2 and shape[1] == 3 * size**2:
        return "flat"
    return "nhwc" if isinstance(shape, list) and len(shape) == 4 and shape[-1] == 3 and shape[1] != 3 else "nchw"


def _from_classification(words: np.ndarray, num_classes: int) -> np.ndarray:
    """Triton's classification extension, texts "value:index:label", as probabilities; what is not named shares the rest."""
    if words.ndim < 1:
        raise ValueError("its classification has no rows")
    rows = words.reshape(len(words), -1)
    answer = np.full((len(rows), num_classes), np.nan)
    try:
        for row, said in zip(answer, rows, strict=True):
            for word in said:
                value, index = str(word).split(":")[:2]
                row[int(index)] = float(value)
    except (ValueError, IndexError) as error:
        raise ValueError(f"its classification says {str(word)[:40]!r}; expected value:index:label of {num_classes}") from error
    named = ~np.isnan(answer)
    rest = (1 - np.where(named, answer, 0).sum(1)).clip(0) / (~named).sum(1).clip(1)
    return np.where(named, answer, rest[:, None])
