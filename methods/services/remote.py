"""A model of an inference server as a teacher: whatever speaks the Open Inference Protocol (KServe v2).

NVIDIA Triton, KServe, MLServer, OpenVINO Model Server and this project's own `serve` do.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
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
from methods.services.black_box import RemoteService, check_probabilities
from methods.services.client import Client, TooLarge
from methods.services.form import (
    LAYOUTS,
    ModelForm,
    as_list,
    check_size,
    completed,
    first_of,
    from_classification,
    parameters_of,
    what_is_said,
)
from methods.services.meter import Meter
from methods.services.protocol import TEXT, Named, decode, encode
from models.answers import refuse_other_logarithms
from models.said import check_said, said_in
from utils.errors import UserError
from utils.images import normalise, to_uint8

SUM = 1e-3  # by which the sum of probabilities may differ from 1
SAME = 1e-3  # by which two answers of one model to one question may differ


class RemoteModel(RemoteService):
    """A model of a server: `ask(images, meter)`. The server is looked at when it is first needed."""

    def __init__(
        self,
        client: Client,
        form: ModelForm,
        num_classes: int,
        image_size: int,
        store: AnswerStore | None,
        class_names: Sequence[str] = (),
    ) -> None:
        self.client, self.num_classes, self.image_size, self.store = client, num_classes, image_size, store
        self.class_names = class_names  # as it is listed, which the server may contradict
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
            there = self.client.model_names()
            said = f"; it has {', '.join(there)}" if there else ""
            raise UserError(f"{self.client.url} has no model {self.name!r}{said}")
        return found if isinstance(found, dict) else {}

    @cached_property
    def form(self) -> ModelForm:
        """The whole form: the list's word, else the server's, else the usual."""
        try:
            said = said_in(what_is_said(self.metadata, self._form.output))
            check_said(said, self.class_names, self.image_size, self._form.mean, self._form.std, "", self.place)
            check_size(self.metadata, self._form.input, self.image_size)
            return completed(self._form, self.metadata, self.image_size, self.client.speaks_bytes)
        except ValueError as error:
            raise UserError(f"{self.name} at {self.client.url} {error}") from error

    @property
    def takes_bytes(self) -> bool:
        return self.form.dtype == "UINT8"

    @property
    def at_once(self) -> int:
        return self.client.in_flight * self.batch

    @property
    def fingerprint(self) -> str:
        """What changes when the model does, as far as somebody says so; else nothing."""
        said = self._form.fingerprint or parameters_of(self.metadata).get("fingerprint") or ""
        versions = as_list(self.metadata.get("versions")) or [self._form.version]
        word = said or ",".join(map(str, versions))
        return f"{self.client.url}{self.path}@{word}" if word else ""

    @property
    def asked_as(self) -> dict[str, Any]:
        """What its list says of how images go there and answers come back."""
        return vars(replace(self._form, batch=0, binary=""))

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
            return self._request(images, meter)
        except TooLarge as error:
            return self._in_halves(images, meter, error)

    def _in_halves(self, images: Tensor, meter: Meter, error: TooLarge) -> Tensor:
        """Halve the batch, once; the server may take no more."""
        half = -(-self.form.batch // 2)
        if len(images) <= half:
            raise UserError(f"{self.name} at {self.client.url} {error}") from error
        try:
            answers = [self._request(part, meter) for part in images.split(half)]
        except TooLarge as again:
            raise UserError(f"{self.name} at {self.client.url} {again}") from again
        if not self._largest:
            tqdm.write(f"note: {self.name} {error}; it is asked for {half} images at once from now on (column batch)")
            self._largest = half
            if self.store is not None:
                self.store.put(self._batch_key, np.array([half]))
        return torch.cat(answers)

    def _request(self, images: Tensor, meter: Meter) -> Tensor:
        """Probabilities (B, N); asked only where they are not kept, and kept only where they are some."""
        sent = self._prepared(images)
        key = self._key(sent)
        kept = self.store.get(key) if self.store is not None else None
        if kept is not None:
            if not self.fingerprint:
                self._check_same(sent, key, kept, meter)
            return self._probabilities(kept, len(sent))
        numbers = self._send(sent, key, meter)
        answer = self._probabilities(numbers, len(sent))
        if self.store is not None:
            self.store.put(key, numbers)
        return answer

    def _send(self, sent: np.ndarray, key: bytes, meter: Meter, limited: bool = True) -> np.ndarray:
        """The numbers (B, N) that the model answers."""
        form, about = self.form, f"{self.name} {key.hex()[:12]}"
        outer: dict[str, Any] = {}
        if form.output or form.answers == "classification":
            extra = {"classification": self.num_classes} if form.answers == "classification" else {}
            binary = {"binary_data": True} if form.binary == "yes" else {}
            name = form.output or str(first_of(self.metadata, "outputs", "").get("name") or "")
            outer["outputs"] = [{"name": name, "parameters": extra | binary} if extra | binary else {"name": name}]
        elif form.binary == "yes":
            outer["parameters"] = {"binary_data_output": True}
        body, headers = encode("inputs", [Named(form.input, form.dtype, sent)], form.binary == "yes", outer)

        def charge() -> None:
            meter.send(len(sent), about, limited)

        data, said = self.client.post(f"{self.path}/infer", body, headers, self.name, charge)
        try:
            told, outputs = decode("outputs", data, said)
            if form.version and str(told.get("model_version") or form.version) != form.version:
                raise ValueError(f"version {told['model_version']} answered where {form.version} was asked")
            return self._numbers(outputs)
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
            return from_classification(output.values, self.num_classes, self.class_names)
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
        if self.form.answers == "logits" and bool(((answer >= 0).all(1) & ((answer.sum(1) - 1).abs() < SUM)).all()):
            raise UserError(
                f"{self.name} at {self.client.url} answers probabilities: write so in the column answers of its list"
            )
        if self.form.answers == "logits" and bool(((answer >= 0).all(1) & ((answer.sum(1) - 100).abs() < 100 * SUM)).all()):
            raise UserError(f"{self.name} at {self.client.url} answers percentages, of which no logits come back")
        found = F.softmax(answer, 1) if self.form.answers == "logits" else answer
        try:
            check_probabilities(found)
            if self.form.answers == "logits":
                refuse_other_logarithms(answer)
        except UserError as error:
            raise UserError(f"{self.name} at {self.client.url} {error}") from error
        except ValueError as error:
            raise UserError(f"{self.name} at {self.client.url} answered {error}") from error
        return found

    def _prepared(self, images: Tensor) -> np.ndarray:
        form = self.form
        if form.dtype == "UINT8":
            return LAYOUTS[form.layout](to_uint8(images)).contiguous().numpy()
        pixels = normalise(images, form.mean, form.std) if form.std else images
        return LAYOUTS[form.layout](pixels).float().contiguous().numpy()

    def _key(self, sent: np.ndarray) -> bytes:
        """What a request is kept under: the model, how it is asked, and every byte that is sent."""
        about = [self.client.url, self.path, self.fingerprint, vars(replace(self.form, batch=0, binary="")), sent.shape]
        return hashlib.sha256(json.dumps(about, default=str).encode() + sent.tobytes()).digest()

    def _check_same(self, sent: np.ndarray, key: bytes, kept: np.ndarray, meter: Meter) -> None:
        """Ask again what was answered before, once, of a model that names no version.

        Raises `UserError` where the answer is another one: then kept answers are another model's.
        """
        with self._one_at_a_time:
            if self._same:
                return
            now = self._send(sent, key, meter, limited=False)
            if kept.shape != now.shape or not np.allclose(kept, now, rtol=SAME, atol=SAME):
                raise UserError(
                    f"{self.name} at {self.client.url} answers otherwise than before, and names no version: if it is another "
                    "model now, list it with a word of yours in the column fingerprint"
                )
            self._same = True

    @property
    def batch(self) -> int:
        return min(self._largest or self._remembered or self.form.batch, self.form.batch)

    @cached_property
    def _remembered(self) -> int:
        """The batch that an earlier run has come to; 0 where there was none."""
        kept = self.store.get(self._batch_key) if self.store is not None else None
        return 0 if kept is None else int(kept[0])

    @property
    def _batch_key(self) -> bytes:
        """What a run has learnt of the model's batch is kept under."""
        return hashlib.sha256(f"batch {self.client.url}{self.path}".encode()).digest()
