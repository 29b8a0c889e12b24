"""Networks that are not ours: torchvision's, timm's, and whatever a function of the user's builds."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.answers import refuse_sigmoid, squash_of
from models.backbone import Backbone
from models.said import LIKELY, LONGEST
from utils.code import contained, import_function, is_code
from utils.errors import UserError, in_words
from utils.images import grey
from utils.names import meant
from utils.vision import import_torchvision

WITH_HELPERS = ("googlenet", "inception_v3")  # of torchvision: with heads that only training uses, which a file need not have
TORCHSCRIPT = "torchscript"  # the arch of a file that is program and weights in one

SQUASHES: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda logits: logits,
    "log-softmax": lambda logits: logits.log_softmax(1),
    "softmax": lambda logits: logits.softmax(1),
    "sigmoid": torch.sigmoid,
}


class Foreign(Backbone):
    """Somebody's classifier as a teacher.

    What it answers is found out on the first images it is asked about (`settle`): where in a dict or tuple its logits lie,
    whether a softmax made probabilities of them, whether it wants grey images, and which linear layer, the head, feeds the
    answer. Where none does, logits serve as features, and the head changes nothing.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        self.head = linear[-1] if linear else _identity(num_classes)
        self.has_head, self.takes_grey, self.settled = bool(linear), False, False
        self.answers_logits = False  # whether its answer is bit for bit what its head gives: then no hook is needed
        self.squash = ""  # what makes the answer of the logits, by name
        self.takes_one = True  # whether a batch may be one image

    @property
    def loadable(self) -> nn.Module:
        return self.network

    def features(self, x: Tensor) -> Tensor:
        return self.features_and_logits(x)[0]

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.settled:
            self.settle(x.detach())
        if len(x) == 1 and not self.takes_one:
            features, logits = self.features_and_logits(torch.cat([x, x]))
            return features[:1], logits[:1]
        if not self.has_head:
            logits = self._answer(x)
            if self.squash == "softmax":
                logits = logits.clamp(min=torch.finfo(logits.dtype).tiny).log()
            return logits, logits
        seen: list[tuple[Tensor, Tensor]] = []
        handle = self.head.register_forward_hook(
            lambda module, args, kwargs, output: seen.append((_given(args, kwargs).clone(), output)), with_kwargs=True
        )
        try:
            answer = self._answer(x)
        finally:
            handle.remove()
        wanted = answer.detach()
        of_answer = (call for call in reversed(seen) if len(seen) == 1 or _gives(call[1].detach(), self.squash, wanted))
        features, logits = next(of_answer, seen[-1])  # a head may be called more than once
        return features.flatten(1).to(x.dtype), logits.to(x.dtype)  # (B, feature_dim), (B, num_classes)

    @torch.no_grad()
    def settle(self, x: Tensor) -> list[str]:
        """Find out what the answer to images (B, 3, S, S), normalised, is; returns what a person should know of it.

        Raises `UserError` for an answer that cannot be used, in a few words that a caller puts the name before.
        """
        training = self.training
        self.eval()  # so that looking draws nothing and moves no statistics
        try:
            return self._settle(x)
        finally:
            self.train(training)

    def _settle(self, x: Tensor) -> list[str]:
        notes = self._settle_channels(x)
        outputs: list[tuple[nn.Linear, Tensor]] = []
        handles = [
            layer.register_forward_hook(lambda layer, given, output: outputs.append((layer, output.clone())))
            for layer in self.network.modules()
            if isinstance(layer, nn.Linear)
        ]
        try:
            answer = self._answer(x.clone())  # here and below: it may change what it is given
        finally:
            for handle in handles:
                handle.remove()
        if not bool(answer.isfinite().all()):
            raise UserError("its answers are not finite")
        expected = (len(x), self.num_classes)
        if tuple(answer.shape) != expected:
            raise UserError(f"answered {tuple(answer.shape)} for {self.num_classes} classes; expected {expected}")
        fed = [(layer, name) for layer, output in outputs for name in SQUASHES if _gives(output, name, answer)]
        self.has_head = bool(fed)
        self.squash = fed[-1][1] if fed else squash_of(lambda images: self._answer(images.clone()), x)
        self.head = fed[-1][0] if fed else _identity(self.num_classes).to(answer)
        refuse_sigmoid(self.squash)
        self.answers_logits = any(layer is self.head and torch.equal(output, answer) for layer, output in outputs)
        self.settled = True
        if self.squash == "softmax":
            taken = "what goes into its softmax is taken" if fed else "their logarithm is taken"
            notes.append(f"answers probabilities: {taken}")
        if not fed:
            notes.append("no linear layer gives its answer: logits serve as features")
        return notes + self._settle_batches(x, answer)

    def _settle_batches(self, x: Tensor, answer: Tensor) -> list[str]:
        """Whether other batches, one image and some, are answered as these images (B, 3, S, S) were."""
        notes, some = [], min(3, len(x))
        found = self._tried(x[:some])
        if found is None:
            raise UserError(f"takes batches of {len(x)} images, and not of {some}: let it take any number")
        again = self._tried(x)
        if again is not None and not torch.allclose(again, answer, rtol=0.01, atol=0.01 * float(answer.abs().max())):
            notes.append("what it answers to an image is another thing each time (dropout that is left on?)")
        elif not torch.allclose(found, answer[:some], rtol=0.01, atol=0.01 * float(answer.abs().max())):
            notes.append("what it answers to an image hangs on the others of its batch")
        if self._tried(x[:1]) is None:
            self.takes_one = False
            notes.append("cannot take one image alone: it is shown twice")
        return notes

    def _tried(self, x: Tensor) -> Tensor | None:
        """The answer to images (B, 3, S, S), if there is one."""
        try:
            answer = self._answer(x.clone())
        except Exception:  # somebody's network may raise anything
            return None
        return answer if tuple(answer.shape) == (len(x), self.num_classes) else None

    def _settle_channels(self, x: Tensor) -> list[str]:
        wanted = [layer.in_channels for layer in self.network.modules() if isinstance(layer, nn.Conv2d)][:1]
        try:
            found = self.network(x.clone())
        except RuntimeError:
            if wanted in ([], [3]):
                raise
            if wanted != [1]:
                raise UserError(f"takes images of {wanted[0]} channels; expected 3, or 1 for grey ones") from None
            self.takes_grey = True
            found = self.network(grey(x))
        notes = ["takes grey images: colours are turned grey"] if self.takes_grey else []
        if not isinstance(found, Tensor):
            notes.append(f"answers a {type(found).__name__}, of which {_choose(found, self.num_classes)[0]} is taken")
        return notes

    def _answer(self, x: Tensor) -> Tensor:
        found = self.network(grey(x) if self.takes_grey else x)
        answer = found if isinstance(found, Tensor) else _choose(found, self.num_classes)[1]
        if not answer.is_floating_point():
            raise UserError(f"answers {answer.dtype}; expected floating-point logits")
        return answer.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.answers_logits and (len(x) > 1 or self.takes_one):
            return self._answer(x)
        return self.features_and_logits(x)[1]


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer was given, by place or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def _gives(output: Tensor, squash: str, answer: Tensor) -> bool:
    output = output.to(answer.dtype)
    return output.shape == answer.shape and torch.allclose(SQUASHES[squash](output), answer, rtol=1e-4, atol=1e-6)


def _identity(num_classes: int) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, num_classes, num_classes)
    layer.load_state_dict({"weight": torch.eye(num_classes), "bias": torch.zeros(num_classes)})
    return layer


def _choose(found: Any, num_classes: int) -> tuple[str, Tensor]:
    """The logits in what is no tensor, and where they lie. Raises `UserError` where that cannot be told."""
    tensors = dict(_tensors(found))
    fitting = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 2 and tensor.shape[1] == num_classes}
    if "logits" in tensors:
        return "logits", tensors["logits"]
    if len(fitting) == 1 or len(tensors) == 1:
        return next(iter((fitting or tensors).items()))
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    which = "several of them may be the logits" if fitting else "none of them is"
    raise UserError(f"answers a {type(found).__name__} of {shapes or 'no tensors'}; {which}: let it return its logits alone")


def _tensors(found: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts, sequences and an object's `logits`, by its place."""
    if isinstance(found, Tensor):
        yield name, found
    elif isinstance(found, Mapping):
        for key, value in found.items():
            yield from _tensors(value, f"{name}.{key}".lstrip("."))
    elif isinstance(found, (list, tuple)):
        for place, value in enumerate(found):
            yield from _tensors(value, f"{name}[{place}]")
    elif isinstance(getattr(found, "logits", None), Tensor):
        yield f"{name}.logits".lstrip("."), found.logits


def is_foreign(name: str) -> bool:
    """Whether an architecture is another library's, or the user's own."""
    return name.startswith(("torchvision/", "timm/")) or is_code(name)


def create_foreign(name: str, num_classes: int, image_size: int, weights: str | None = None) -> Foreign:
    """An untrained `torchvision/NAME`, `timm/NAME`, or what `module:function` returns for the number of classes.

    Networks that are made for one size of image (ViT) are made for `image_size`.
    `weights` names a set of weights that torchvision downloads for the first kind ("DEFAULT": its best).
    Raises `UserError` for a name that nobody knows, for a function that gives no network, and where weights cannot be had.
    """
    family, _, rest = name.partition("/")
    if is_code(name):
        return Foreign(_from_function(name, num_classes), num_classes)
    try:
        if family == "torchvision":
            import_torchvision()
            from torchvision import models

            if rest not in models.list_models(module=models):
                raise ValueError(f"torchvision has no classifier of that name{meant(rest, models.list_models(module=models))}")
            # with weights the width of the head is theirs
            own: dict[str, Any] = {"num_classes": num_classes} if weights is None else {}
            own |= {"image_size": image_size} if rest.startswith("vit_") else {}
            if rest in WITH_HELPERS and weights is None:
                own |= {"aux_logits": False, "init_weights": False}
            return Foreign(models.get_model(rest, weights=weights, **own), num_classes)
        import_torchvision()  # timm needs it, and would fail where its operators are missing
        import timm

        config = timm.get_pretrained_cfg(rest)
        sized: dict[str, Any] = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
        return Foreign(timm.create_model(rest, pretrained=False, num_classes=num_classes, **sized), num_classes)
    except ModuleNotFoundError as error:
        raise UserError(f"arch {name!r} needs the package {error.name!r}: pip install {error.name}") from error
    except OSError as error:
        raise UserError(f"the weights {weights!r} of {name!r} cannot be downloaded ({error}): give a file instead") from error
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, AssertionError, ImportError) as error:
        raise UserError(f"arch {name!r} cannot be built: {error}") from error


def _from_function(place: str, num_classes: int) -> nn.Module:
    try:
        make = import_function(place)
        with contained():
            network: Any = make(num_classes)
    except Exception as error:  # somebody's code may raise anything
        raise UserError(f"arch {place!r} cannot be built: {in_words(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"arch {place!r} returned {type(network).__name__}; expected a torch.nn.Module")
    return network


def words_of_torchscript(path: Path, network: Foreign) -> dict[str, Any]:
    """What a TorchScript file says of itself: the texts that were added to it, and the classes that its program keeps."""
    with zipfile.ZipFile(path) as archive:
        texts = [name for name in archive.namelist() if "/extra/" in name and archive.getinfo(name).file_size < LONGEST]
        words: dict[str, Any] = {name: archive.read(name).decode(errors="replace") for name in texts}
    kept = [name for name in dir(network.network) if not name.startswith("_") and LIKELY.search(name.lower())]
    values = {name: getattr(network.network, name, None) for name in kept}
    return words | {name: value for name, value in values.items() if isinstance(value, (str, list, dict))}


def load_torchscript(path: Path, num_classes: int) -> Foreign:
    """The network of a TorchScript file, which runs the code in it. Raises `UserError` for a file that is none."""
    try:
        return Foreign(torch.jit.load(str(path), "cpu"), num_classes)
    except Exception as error:  # whatever a damaged file provokes
        raise UserError(f"{path} cannot be read as TorchScript: {str(error).strip().splitlines()[-1]}") from error
