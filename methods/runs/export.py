"""A fitted classifier as a folder that serves without this program: an ONNX file, class means, and a card with the code."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.metalearners.base import class_means
from methods.metalearners.learner import Learner
from methods.metalearners.protonet import OutputNCM, ProtoNet
from methods.runs.classifier import FewShotClassifier
from utils.errors import UserError
from utils.files import new_folder, write_text

CARD = """# A few-shot classifier that needs numpy, pillow and onnxruntime alone

`embedding.onnx` takes `images`, float32 (B, 3, {size}, {size}) in [0, 1], and gives `embedding` (B, {width}): normalisation,
mirror image and read-out are inside. `classes.json` has the mean embedding of each class. An image belongs to the nearest
one. To add a class, append its name, and the mean of its images' embeddings.

```python
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("embedding.onnx")
known = json.load(open("classes.json", encoding="utf-8"))


def read(path):  # as the learner saw images: turned as their EXIF data say, on white where they are transparent
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode[0] in "IF":
        raise ValueError(f"{{path}} has more than 8 bits a channel: save it with 8")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB").resize(({size}, {size}), Image.BILINEAR))


def embed(paths):
    images = [read(path) for path in paths]
    return session.run(None, {{"images": np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255}})[0]


distances = ((embed(paths)[:, None] - np.asarray(known["means"])) ** 2).sum(2)  # paths: image files, a list
names = [known["classes"][place] for place in distances.argmin(1)]
```

What it knows comes from its teachers, whose licences and terms of service may restrict what is made of them.
"""


class _Embedding(nn.Module):
    """What a learner's read-out makes of images (B, 3, S, S) in [0, 1], as a module that can be traced."""

    def __init__(self, learner: Learner, metalearner: ProtoNet) -> None:
        super().__init__()
        spec, self.metalearner, self.network = learner.spec, metalearner, copy.deepcopy(learner.network)
        self.network.load_state_dict(learner.params, strict=False)  # frozen teachers have statistics beside
        like = next(iter(learner.params.values())).detach()
        self.mean, self.std = (like.new_tensor(value).view(-1, 1, 1) for value in (spec.mean, spec.std))

    def forward(self, images: Tensor) -> Tensor:
        whole = isinstance(self.metalearner, OutputNCM)
        read = self.metalearner.readout(self.network if whole else self.network.features, (images - self.mean) / self.std)
        return F.normalize(read) if self.metalearner.UNIT else read


def export(classifier: FewShotClassifier, folder: Path) -> Path:
    """Write embedding.onnx, classes.json and README.md into a new folder.

    Raises `UserError` for a classifier that was not fitted, and for a learner whose answer depends on more than one image,
    or on gradient steps.
    """
    learner, metalearner, size = classifier.learner, classifier.reader, classifier.learner.spec.image_size
    if learner.spec.norm != "fixed" or not isinstance(metalearner, ProtoNet):
        raise UserError(
            "only learners with fixed statistics that are read by class means (chorus) serve without this program; this one "
            + ("normalises by the batch at hand" if learner.spec.norm != "fixed" else "adapts a head by gradient steps")
        )
    if not classifier.classes:
        raise UserError("the classifier has seen no support set: give one, whose class means are to be kept")
    module = _Embedding(learner, metalearner).eval()
    with new_folder(folder) as temporary:
        _write_onnx(module, torch.rand(2, 3, size, size).to(module.mean), temporary / "embedding.onnx")
        means = class_means(
            metalearner.read(classifier.adapted_, classifier.support_), classifier.labels_, len(classifier.classes)
        )
        known: dict[str, Any] = {"classes": classifier.classes, "means": means.detach().tolist()}
        write_text(temporary / "classes.json", json.dumps(known, ensure_ascii=False) + "\n")
        write_text(temporary / "README.md", CARD.format(size=size, width=means.shape[1]))
    return folder


@torch.no_grad()
def _write_onnx(module: nn.Module, images: Tensor, path: Path) -> None:
    """By tracing, which needs no package beyond torch."""
    axes = {name: {0: "batch"} for name in ("images", "embedding")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is the older way
        try:
            torch.onnx.export(
                module, (images,), str(path), dynamo=False,
                input_names=["images"], output_names=["embedding"], dynamic_axes=axes,
            )  # fmt: skip
        except Exception as error:  # whatever an operator provokes that the format lacks
            why = str(error).strip().splitlines()[0]
            raise UserError(f"this network cannot be written as ONNX ({why}): --save keeps it for this program") from error
