"""Where teachers lie in a space of tasks, by what their recovered images ask of a probe network, and groups of them.

Task Groupings Regularization (Wei et al., ICML 2024) after Task2Vec (Achille et al., ICCV 2019).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import SpectralClustering
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from datasets.registry import HALF, IMAGENET
from methods.teachers.pool import TeacherPool
from models import create_model
from utils import seed
from utils.errors import UserError
from utils.images import channels_last, normalise, resize
from utils.vision import import_torchvision

Embedding = list[Tensor]  # one (filters,) for each convolution of each probe

GRADIENTS_AT_ONCE = 30_000_000  # numbers; images whose gradients do not fit wait for the next chunk
LABELS_AT_MOST = 16  # a probe with more outputs has one label drawn for each image


@dataclass(frozen=True)
class Probe:
    """A network in evaluation mode, and how it wants images (B, C, H, W) in [0, 1]."""

    network: nn.Module
    prepare: Callable[[Tensor], Tensor]

    @property
    def fingerprint(self) -> str:
        """What identifies the probe: a digest of its weights."""
        digest = hashlib.sha256()
        for value in self.network.state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()


def pool_probes(pool: TeacherPool, image_size: int) -> list[Probe]:
    """A teacher of each image set in the pool, the smallest: features of real images without any data from outside."""
    chosen: dict[str, tuple[int, int]] = {}  # image set -> size, teacher
    for teacher_id, row in enumerate(pool.rows):
        size = sum(value.numel() for value in pool[teacher_id].parameters())
        if row.dataset not in chosen or size < chosen[row.dataset][0]:
            chosen[row.dataset] = (size, teacher_id)
    teachers = [pool[teacher_id] for _, teacher_id in chosen.values()]
    return [Probe(teacher.network, teacher.prepare) for teacher in teachers]


def random_probe(pool: TeacherPool, image_size: int) -> list[Probe]:
    """A conv4 that was never trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create_model("conv4", 10, image_size).to(pool.device).eval()
    return [Probe(network, partial(_prepare, size=image_size, form=HALF))]


def imagenet_probe(pool: TeacherPool, image_size: int) -> list[Probe]:
    """The paper's: a ResNet-34 trained on ImageNet, from torchvision. Raises `UserError` where its weights are out of reach."""
    import_torchvision()
    from torchvision.models import ResNet34_Weights, resnet34

    try:
        network = resnet34(weights=ResNet34_Weights.IMAGENET1K_V1).to(pool.device).eval()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--probe imagenet: the weights of ResNet-34 cannot be had ({error}); put the file where torchvision looks "
            f"({torch.hub.get_dir()}/checkpoints), or use --probe pool"
        ) from error
    return [Probe(network, partial(_prepare, size=224, form=IMAGENET))]


PROBES: dict[str, Callable[[TeacherPool, int], list[Probe]]] = {
    "pool": pool_probes,
    "random": random_probe,
    "imagenet": imagenet_probe,
}


def _prepare(images: Tensor, size: int, form: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    return channels_last(normalise(resize(images, size), *form))


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
            cases = [(drawn, torch.ones(len(some), device=some.device))]
        else:
            cases = [(torch.full((len(some),), y, device=some.device), chances[:, y]) for y in range(chances.shape[1])]
        for labels, chance in cases:
            for name, gradient in gradients_of(weights, some, labels).items():  # (b, filters, inputs, h, w)
                total[name] += chance @ gradient.square().mean((2, 3, 4))
    return [value / len(images) for value in total.values()]


def dissimilarity(embeddings: Sequence[Embedding]) -> Tensor:
    """1 - mean over layers of cos( a / (a + b + eps), b / (a + b + eps) ) of each pair (a, b): (T, T) in [0, 1].

    Each filter counts relative to how much the two teachers use it; eps is 1e-3 of the layer's mean.
    """
    similar = []
    for layer in zip(*embeddings, strict=True):
        f = torch.stack(layer)  # (T, filters)
        share = f[:, None] / (f[:, None] + f[None] + 1e-3 * f.mean())  # (T, T, filters), a's part of each pair
        similar.append(F.cosine_similarity(share, share.transpose(0, 1), dim=2))
    return (1 - torch.stack(similar).mean(0)).clamp(0, 1).fill_diagonal_(0)


def group_by(affinity: Tensor, count: int, seed_value: int) -> list[list[int]]:
    """Spectral clustering by an affinity matrix (T, T): the teachers of each group, the largest group first."""
    if count == 1:
        return [list(range(len(affinity)))]
    model = SpectralClustering(count, affinity="precomputed", assign_labels="cluster_qr", random_state=seed_value)
    labels = model.fit_predict(affinity.double().cpu().numpy())
    found = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    return sorted(found, key=lambda members: (-len(members), members))


def group_at_random(matrix: Tensor, count: int, seed_value: int) -> list[list[int]]:
    """Groups of equal size (to one), whatever the matrix says."""
    order = torch.randperm(len(matrix), generator=seed.generator(seed_value, "groups"))
    return [sorted(part.tolist()) for part in order.tensor_split(count)]


# dissimilarity (T, T), number of groups, seed -> teachers of each group
GROUPINGS: dict[str, Callable[[Tensor, int, int], list[list[int]]]] = {
    "unlike": group_by,
    "alike": lambda matrix, count, seed_value: group_by(1 - matrix, count, seed_value),
    "random": group_at_random,
}


def mean_within(matrix: Tensor, groups: Sequence[Sequence[int]]) -> list[float]:
    """Mean dissimilarity between the teachers of each group; nan for a group of one."""
    parts = [matrix[list(group)][:, list(group)] for group in groups]
    return [float(part.sum()) / (len(part) * (len(part) - 1)) if len(part) > 1 else float("nan") for part in parts]
