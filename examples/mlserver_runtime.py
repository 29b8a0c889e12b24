"""Runtimes for MLServer: a teacher of a list, and a classifier in ONNX. MLServer imports this; see mlserver_repository.py."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from methods.services.black_box import LocalService
from methods.teachers.manifest import read_manifest
from methods.teachers.pool import TeacherPool


class Runtime(MLModel):
    """Answers one input of float32 with one output, `probabilities`."""

    def answer(self, images: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        answer = self.answer(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", answer)])


class Teacher(Runtime):
    """Row `row` of the teachers.csv at `uri`: images (B, 3, S, S) in [0, 1]."""

    async def load(self) -> bool:
        parameters: Any = self.settings.parameters
        pool = TeacherPool(read_manifest(Path(parameters.uri)), torch.device("cpu"))
        self.service = LocalService(pool[parameters.extra["row"]].answering)
        return True

    def answer(self, images: np.ndarray) -> np.ndarray:
        return self.service.query(torch.from_numpy(images)).numpy()


class Onnx(Runtime):
    """The file at `uri`, which takes what it is sent."""

    async def load(self) -> bool:
        parameters: Any = self.settings.parameters
        self.session = onnxruntime.InferenceSession(parameters.uri, providers=["CPUExecutionProvider"])
        return True

    def answer(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.session.get_inputs()[0].name: images})[0]
