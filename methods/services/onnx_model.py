"""Classifiers in ONNX files as services: they answer, and nothing of them can be looked into."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.answers import refuse_sigmoid, squash_of
from models.said import check_said, dicts_in, said_in
from utils.checkpoint import plain_values
from utils.errors import UserError
from utils.files import digest, digest_of_all
from utils.images import grey, normalise

ONNX = "onnx"  # the arch of such a file in a list of teachers


def digest_of(path: Path) -> str:
    """SHA-256 of an ONNX file, and of the files beside or below it in which its weights are said to lie."""
    content, outside = path.read_bytes(), []
    if b"location" in content:  # which the entries of such weights begin with
        files = (file for file in sorted(path.parent.rglob("*")) if file.is_file() and file.suffix != path.suffix)
        outside = [file for file in files if len(file.name) > 3 and os.fsencode(file.name) in content]
    return digest_of_all([path, *outside]) if outside else digest(path)


class OnnxModel:
    """A file for float images (B, 3, S, S) or (B, S, S, 3), or of one channel, normalised by mean and std, as a `Service`.

    Whether it answers logits or probabilities is found out when it is first asked. It needs the package onnxruntime.
    """

    def __init__(
        self,
        path: Path,
        num_classes: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        class_names: Sequence[str] = (),
    ) -> None:
        self.path, self.num_classes, self.image_size, self.class_names = path, num_classes, image_size, class_names
        self.mean, self.std = mean, std
        self._squash: str | None = None  # what makes its answer of the logits, once it is known

    def query(self, images: Tensor) -> Tensor:
        """Probabilities (B, classes) of images (B, 3, S, S) in [0, 1]. Raises `UserError` for an answer that is none."""
        prepared = normalise(images.detach().cpu().float(), self.mean, self.std)
        if self._squash is None:
            self._squash = self._settle(prepared)
        answer = self._answer(prepared)
        return answer if self._squash == "softmax" else F.softmax(answer, 1)

    def _settle(self, prepared: Tensor) -> str:
        try:
            squash = squash_of(self._answer, prepared)
            refuse_sigmoid(squash)
            answer = self._answer(prepared)
            if len(prepared.unique(dim=0)) > 1 and len(answer.unique(dim=0)) == 1:
                raise UserError("answers every image alike: are its mean and std the right ones?")
        except UserError as error:
            raise UserError(f"{self.path} {str(error).removeprefix(f'{self.path} ')}") from error
        return squash

    @cached_property
    def _session(self) -> Any:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise UserError(f"{self.path} needs the package onnxruntime: pip install onnxruntime") from error
        try:
            session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no type
            raise UserError(f"{self.path} cannot be read as ONNX: {' '.join(str(error).split())}") from error
        self._check_said(session.get_modelmeta().custom_metadata_map)
        return session

    def _check_said(self, metadata: Mapping[str, str]) -> None:
        """Raise `UserError` where the file says of itself what its list does not."""
        try:
            said = said_in(dicts_in(dict(metadata) | plain_values(metadata)))
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.path} says something of its classes that cannot be read: {error}") from error
        check_said(said, self.class_names, self.image_size, self.mean, self.std, "", str(self.path))

    def _meant(self, outputs: Sequence[Any]) -> np.ndarray:
        """Of what the file answers, the logits: the only floats, or those called so, or that alone have a number a class."""
        floats = {
            output.name: found
            for output, found in zip(self._session.get_outputs(), outputs, strict=True)
            if isinstance(found, np.ndarray) and found.dtype.kind == "f"
        }
        fitting = {name: found for name, found in floats.items() if found.shape[1:] == (self.num_classes,)}
        for some in (floats, fitting):
            if len(some) == 1:
                return next(iter(some.values()))
        if "logits" in fitting:
            return fitting["logits"]
        named = ", ".join(f"{output.name} ({output.type})" for output in self._session.get_outputs())
        which = "several may be the logits" if fitting else "none can be the logits"
        raise UserError(f"{self.path} answers {named}, of which {which}: call one of them logits, or let it be the only one")

    def _answer(self, prepared: Tensor) -> Tensor:
        wanted = self._session.get_inputs()[0]
        if len(wanted.shape) != 4 or wanted.type != "tensor(float)":
            raise UserError(f"{self.path} takes {wanted.type} of shape {wanted.shape}; expected floats (batch, 3, S, S)")
        batch, first, _, last = wanted.shape
        prepared = grey(prepared) if 1 in (first, last) else prepared
        pixels = prepared.permute(0, 2, 3, 1) if last in (1, 3) else prepared
        at_once = batch if isinstance(batch, int) else len(pixels)
        parts = []
        for part in pixels.split(at_once):
            filled = torch.cat([part, part[:1].expand(at_once - len(part), *part.shape[1:])])  # a batch of fixed size
            try:
                outputs = self._session.run(None, {wanted.name: filled.contiguous().numpy()})
            except Exception as error:
                raise UserError(f"{self.path} fails on images {tuple(part.shape)}: {' '.join(str(error).split())}") from error
            answer = torch.as_tensor(self._meant(outputs))
            if tuple(answer.shape) != (at_once, self.num_classes):
                raise UserError(
                    f"{self.path} answered {tuple(answer.shape)} for {self.num_classes} classes; expected "
                    f"({at_once}, {self.num_classes})"
                )
            parts.append(answer[: len(part)])
        return torch.cat(parts).to(torch.get_default_dtype())
