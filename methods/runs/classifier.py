"""A learner to use: a few labelled images of new classes in, classes of further images out.

classifier = FewShotClassifier.load("runs/x").fit(images, ["cat", "cat", "dog"])
names = classifier.predict(others)
classifier.save("cats_and_dogs")              # FewShotClassifier.load("cats_and_dogs") predicts at once
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor

from datasets.given import as_images, as_labels
from methods.metalearners import get_metalearner
from methods.metalearners.base import Metalearner
from methods.metalearners.calibration import held_out, least_logit, temperature_for
from methods.metalearners.learner import Learner
from methods.metalearners.protonet import ProtoNet
from methods.metalearners.readout import Readout
from methods.runs.saved import about_run, read_folder, write_folder
from methods.teachers.ensemble import EnsembleLearner, learner_from
from utils import checkpoint
from utils.errors import UserError
from utils.names import shown

AT_ONCE = 256  # images


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """A meta-trained learner that can be shown new classes; a classifier of scikit-learn whose samples are images.

    Queries are normalised by the support's statistics, so that no prediction depends on what else is asked about;
    `transductive` takes the queries' own, as the papers' evaluation does. `about` is what is known of the learner's making.
    `temperature`: of the answers after one image a class; with more, the support itself says how sure they may be.
    """

    def __init__(
        self,
        learner: Learner,
        metalearner: str,
        inner_lr: float,
        steps: int,
        transductive: bool = False,
        about: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.learner, self.metalearner, self.inner_lr, self.steps = learner, metalearner, inner_lr, steps
        self.transductive, self.about, self.temperature = transductive, about, temperature

    @property
    def reader(self) -> Metalearner:
        """What adapts the learner and classifies."""
        made = get_metalearner(self.metalearner)(self.learner.network, self.inner_lr, inductive=not self.transductive)
        return made.reading(self.learner.readout)

    @property
    def classes(self) -> list[Any]:
        """The classes in the order of the columns of `predict_proba`: sorted, but for those that were added."""
        return self.classes_.tolist() if hasattr(self, "classes_") else []

    @classmethod
    def load(
        cls, place: str | Path, device: str | torch.device = "cpu", transductive: bool = False, metalearner: str | None = None
    ) -> "FewShotClassifier":
        """The learner of a run directory, of its best.pt, or of a folder that `save` wrote, which may have been fitted.

        metalearner: another one than the run's. Raises `UserError` where there is none, or where it is damaged.
        """
        place = Path(place)
        saved = (place / "config.json").is_file()
        path = place / "best.pt" if place.is_dir() and not saved else place
        content = read_folder(place, device) if saved else checkpoint.load(path, device)
        try:
            learner = learner_from(content["learner"], torch.device(device))
            about = content["about"] if saved else about_run(path.parent)
            if about.get("method") == "teacher_ncm" and not isinstance(learner, EnsembleLearner):  # an earlier version's
                raise UserError(f"{path} holds nothing of its teachers, which could only be asked")
            name = metalearner or content["metalearner"]
            if not issubclass(get_metalearner(name), ProtoNet) and isinstance(learner, EnsembleLearner):
                raise UserError(
                    f"{path} holds frozen teachers side by side, which {name} cannot adapt: protonet or ncm reads them"
                )
            same = name == content["metalearner"]
            temperature = content.get("temperature") if same else None
            if not same:  # what was fitted to another embedding tells nothing of this one
                learner.readout = Readout(learner.readout.mirror)
            steps = content["test_inner_steps"]
            made = cls(learner, name, content["inner_lr"], steps, transductive, about, temperature or 1.0)
            if content.get("classes"):
                made._adapt(content["classes"], content["support"], content["labels"])
            return made
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} holds no learner ({error}): expected the best.pt of a run of main.py") from error

    def fit(self, images: Any, labels: Any) -> "FewShotClassifier":
        """Adapt to a support set of M images (whatever `datasets.given.as_images` takes) and M classes, names or numbers.

        Raises `UserError` for numbers of another range, and for fewer than two classes.
        """
        images, labels = as_images(images, self.learner.spec.image_size), as_labels(labels)
        if len(images) != len(labels):
            raise UserError(f"the support set has {len(images)} images and {len(labels)} labels; expected as many of both")
        if len({isinstance(label, str) for label in labels}) > 1:
            raise UserError("the support set has names and numbers as classes; expected one kind")
        classes = sorted(set(labels))
        if len(classes) < 2:
            raise UserError(f"the support set has the class {classes[0]!r} alone; expected two or more")
        numbers = torch.tensor([classes.index(label) for label in labels], device=self.learner.device)
        return self._adapt(classes, self.learner.prepare(images.to(self.learner.device)), numbers)

    def add_class(self, name: Any, images: Any) -> "FewShotClassifier":
        """One class more, beside those of `fit`, from its images. Raises `UserError` for a name that is taken."""
        self._check_fitted()
        (name,) = as_labels([name])
        if name in self.classes or isinstance(name, str) != isinstance(self.classes[0], str):
            raise UserError(f"the class {name!r} cannot be added to {self.classes}: expected another of the same kind")
        new = self.learner.prepare(as_images(images, self.learner.spec.image_size).to(self.learner.device))
        labels = torch.cat([self.labels_, torch.full((len(new),), len(self.classes), device=self.learner.device)])
        return self._adapt([*self.classes, name], torch.cat([self.support_, new]), labels)

    def _adapt(self, classes: list[Any], support: Tensor, labels: Tensor) -> "FewShotClassifier":
        """To prepared images (M, C, S, S) with labels (M,), indices into `classes`."""
        self.classes_, self.support_, self.labels_ = np.asarray(classes), support, labels
        reader, params, way = self.reader, self.learner.frozen, len(classes)
        with torch.no_grad():
            fast = reader.adapt(reader.starting_point(params, support, labels, way), support, labels, self.steps, False)
            self.held_out_ = held_out(reader, params, support, labels, way, self.steps)
        self.adapted_ = {name: value.detach() for name, value in fast.items()}
        self.temperature_ = temperature_for(*self.held_out_) if len(self.held_out_[0]) else self.temperature
        return self

    def predict_proba(self, images: Any) -> Tensor:
        """Probabilities (B, N) of images as `fit` takes them, in the order of `classes`.

        As sure as images that are held out of the support are named right; after one image a class, as sure as other episodes'
        were. Raises `UserError` before `fit`, for numbers of another range, and where an answer is not finite.
        """
        return self.answers(images)[0]

    def answers(self, images: Any, refused: float | None = None) -> tuple[Tensor, list[Any]]:
        """What `predict_proba` and `predict` say, from one look at the images."""
        logits, least = self._logits(images), -np.inf if refused is None else self._least_logit(refused)
        best, places = logits.max(1)
        classes = self.classes
        names = [
            classes[place] if value >= least else None for value, place in zip(best.tolist(), places.tolist(), strict=True)
        ]
        return (logits / self.temperature_).softmax(1), names

    @torch.no_grad()
    def _logits(self, images: Any) -> Tensor:
        self._check_fitted()
        images, reader = as_images(images, self.learner.spec.image_size), self.reader
        parts = [
            reader.classify(
                self.adapted_,
                self.support_,
                self.labels_,
                self.learner.prepare(some.to(self.learner.device)),
                len(self.classes),
            )
            for some in images.split(AT_ONCE if reader.inductive else len(images))
        ]
        logits = torch.cat(parts)
        if not bool(torch.isfinite(logits).all()):
            raise UserError("the learner's answers are not finite: it was damaged, or its training failed")
        return logits

    def predict(self, images: Any, refused: float | None = None) -> list[Any]:
        """The most probable class of each image, or None for "none of these".

        refused: the share (0..1) of images of the classes shown that may be called so; the more, the fewer of other classes
        are named. It needs two or more images a class (`UserError`); without it every image is named.
        """
        return self.answers(images, refused)[1]

    def _least_logit(self, refused: float) -> float:
        refused = float(refused)
        if not 0 <= refused <= 1:
            raise UserError(f"refused is {refused}: expected a share from 0 to 1")
        self._check_fitted()
        if not len(self.held_out_[0]):
            raise UserError(
                "none of these: the support has one image a class; two or more say how far images of a class lie apart"
            )
        return least_logit(*self.held_out_, refused)

    def score(self, images: Any, labels: Any) -> float:
        """The share of images whose class is named right."""
        named, wanted = self.predict(images), as_labels(labels)
        if len(named) != len(wanted):
            raise UserError(f"there are {len(named)} images and {len(wanted)} labels; expected as many of both")
        if not {*wanted} & {*self.classes}:
            told = f"{shown(map(repr, dict.fromkeys(wanted)))}; it was shown {shown(map(repr, self.classes))}"
            raise UserError(f"none of the labels is a class that the learner was shown: {told}")
        return sum(one == other for one, other in zip(named, wanted, strict=True)) / len(wanted)

    @torch.no_grad()
    def embed(self, images: Any) -> Tensor:
        """Embeddings (B, D) of images as `fit` takes them: what protonet and ncm compare, and otherwise the features.

        A learner that normalises by the batch at hand sees all images together.
        """
        prepared = self.learner.prepare(as_images(images, self.learner.spec.image_size).to(self.learner.device))
        reader = self.reader
        look = reader.read if isinstance(reader, ProtoNet) else reader.features
        return look(self.learner.frozen, prepared)

    def save(self, folder: str | Path) -> Path:
        """Write a new folder with config.json, model.safetensors and a card, README.md; fitted classes go with it.

        Raises `UserError` where the folder is there already.
        """
        content: dict[str, Any] = {"learner": self.learner.state_dict(), "about": dict(self.about or {})}
        content |= {"metalearner": self.metalearner, "inner_lr": self.inner_lr, "test_inner_steps": self.steps}
        content["temperature"] = self.temperature
        if self.classes:
            content |= {"classes": self.classes, "support": self.support_, "labels": self.labels_}
        return write_folder(Path(folder), content)

    def _check_fitted(self) -> None:
        if not self.classes:
            raise UserError("the classifier has seen no support set: call fit first")
