"""A teacher is tried before it is trusted: it is shown a few images, and its answers are checked."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.teachers.teacher import Teacher
from models.foreign import Foreign
from utils import seed
from utils.code import contained
from utils.errors import UserError, in_words

SHOWN = 4  # images of noise, and as many of soft blots
ALIKE = 1e-6  # answers that differ by less, beside their size, are the same


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
    images = shown_images(teacher.image_size).to(device)
    notes: list[str] = []
    try:
        if isinstance(teacher.network, Foreign):
            with contained():
                notes += teacher.network.settle(teacher.form.prepare(images))
        with contained(), torch.no_grad():
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
        with contained():
            answers = teacher(images.requires_grad_())
        gradient = torch.autograd.grad(answers.square().sum(), images)[0]
        return bool(gradient.any()) and bool(gradient.isfinite().all())
    except Exception:  # somebody's network may leave PyTorch on the way, or have no derivative
        return False


def shown_images(size: int) -> Tensor:
    """Noise and soft blots, (2 * SHOWN, 3, size, size) in [0, 1]."""
    draws = seed.generator(0, "inspection")
    noise = torch.rand(SHOWN, 3, size, size, generator=draws, dtype=torch.get_default_dtype())
    blots = torch.rand(SHOWN, 3, 4, 4, generator=draws, dtype=torch.get_default_dtype())
    return torch.cat([noise, F.interpolate(blots, (size, size), mode="bilinear", align_corners=False)])
