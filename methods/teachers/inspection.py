"""A teacher is looked at before it is trusted: a few images are shown to it, and its answers are held against what is said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.teachers.teacher import ImageForm, Teacher
from models.foreign import Foreign
from models.state_dicts import Content
from utils import seed
from utils.errors import UserError, in_words
from utils.names import check_same_order, tidy

SHOWN = 4  # images of noise, and as many of soft blots
ALIKE = 1e-6  # answers that differ by less, beside their size, are the same
SCALE = 1e-3  # by which a mean or std may differ that means the same


@dataclass(frozen=True)
class Finding:
    """What a person should know of a teacher. `invertible`: whether a gradient reaches the pixels."""

    notes: tuple[str, ...] = ()
    invertible: bool = True


def inspect(teacher: Teacher, source: str) -> Finding:
    """Show images to a teacher; the run's random numbers stay as they are.

    Raises `UserError` naming `source` where it fails, answers something else than its classes want, answers numbers that are
    not finite, or answers every image alike.
    """
    device = next(teacher.network.parameters(), torch.empty(0)).device
    images = _images(teacher.image_size).to(device)
    notes: list[str] = []
    try:
        if isinstance(teacher.network, Foreign):
            notes += teacher.network.settle(teacher.form.prepare(images))
        with torch.no_grad():
            answers = teacher(images)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except Exception as error:  # somebody's network may raise anything
        what = f"{source} fails on images of {teacher.image_size} pixels, as the list has it"
        raise UserError(f"{what}: {in_words(error)}") from error
    if not bool(torch.isfinite(answers).all()):
        raise UserError(f"{source}: its answers are not finite")
    if isinstance(teacher.network, Foreign) and bool((answers.std(0) <= ALIKE * answers.abs().amax(0)).all()):
        raise UserError(f"{source} answers every image alike: are its weights, mean and std the right ones?")
    return Finding(tuple(notes), _passes_gradients(teacher, images))


def _passes_gradients(teacher: Teacher, images: Tensor) -> bool:
    """Whether a gradient reaches the pixels of images (B, C, S, S)."""
    try:
        answers = teacher(images.requires_grad_())
        return bool(torch.autograd.grad(answers.square().sum(), images)[0].any())
    except Exception:  # somebody's network may leave PyTorch on the way, or have no derivative
        return False


def _images(size: int) -> Tensor:
    """Noise and soft blots, (2 * SHOWN, 3, size, size) in [0, 1]."""
    draws = seed.generator(0, "inspection")
    noise = torch.rand(SHOWN, 3, size, size, generator=draws, dtype=torch.get_default_dtype())
    blots = torch.rand(SHOWN, 3, 4, 4, generator=draws, dtype=torch.get_default_dtype())
    return torch.cat([noise, F.interpolate(blots, (size, size), mode="bilinear", align_corners=False)])


def check_said(content: Content, class_names: Sequence[str], form: ImageForm, arch: str, source: str) -> None:
    """Raise `UserError` where what a file says of itself contradicts what it is listed as."""
    said = content.about
    names = content.class_names
    if names is None and content.class_numbers and set(content.class_numbers) == {tidy(name) for name in class_names}:
        names = content.class_numbers
    if names and class_names:
        check_same_order(names, class_names, source, "what it is listed with")
    sizes = _numbers(said.get("image_size"))
    if sizes and set(sizes) != {float(form.size)}:
        raise UserError(f"{source} says that its images have {sizes[0]:g} pixels; it is listed with {form.size}")
    for name, listed in (("mean", form.mean), ("std", form.std)):
        numbers = _numbers(said.get(name))
        if len(numbers) not in (1, len(listed)):
            continue
        numbers = numbers if len(numbers) > 1 else numbers * len(listed)
        numbers = [number / 255 for number in numbers] if max(numbers) > 1 else numbers  # of bytes
        if any(abs(own - other) > SCALE for own, other in zip(numbers, listed, strict=True)):
            shown = tuple(round(number, 4) for number in numbers)
            raise UserError(f"{source} says that its {name} is {shown}; it is listed with {listed}")
    if isinstance(said.get("arch"), str) and ":" not in arch and _plain(said["arch"]) != _plain(arch):
        raise UserError(f"{source} says that it is a {said['arch']}; it is listed as {arch}")


def _numbers(said: Any) -> list[float]:
    """A number, or several in a list or tensor of any shape; nothing where it is something else."""
    try:
        return torch.as_tensor(said).flatten().to(torch.float64).tolist()
    except (TypeError, ValueError, RuntimeError):
        return []


def _plain(arch: str) -> str:
    return arch.rpartition("/")[2].lower().replace("_", "").replace("-", "")
