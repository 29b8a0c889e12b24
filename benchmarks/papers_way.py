"""The papers' way of doing what the hot paths do, written plainly, with what makes their code slow left in.

Images in rows of pixels by channel (NCHW), ReLU before pooling, teachers whose weights collect gradients, one teacher and
one episode after another, a value fetched from the device in every step, pseudo-images and data sets as PNG files that
Pillow reads one at a time in a DataLoader made for each episode. The mathematics is that of this project, so that results
can be compared.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset

from datasets.registry import CIFAR
from utils.vision import import_torchvision

Weights = list[Tensor]
Network = Callable[[Weights, Tensor], Tensor]


def plain_conv4(weights: Weights, x: Tensor, running: Sequence[tuple[Tensor, Tensor]] | None = None) -> Tensor:
    """A conv4 from its parameters in order; `running` are a teacher's statistics, without them the batch's count."""
    for block in range(4):
        kernel, bias, scale, shift = weights[4 * block : 4 * block + 4]
        x = F.conv2d(x, kernel, bias, padding=1)
        if running is None:
            x = F.batch_norm(x, None, None, scale, shift, training=True)
        else:
            x = F.batch_norm(x, *running[block], scale, shift, training=False)
        x = F.max_pool2d(F.relu(x), 2)
    return F.linear(x.flatten(1), *weights[16:])


def as_function(network: nn.Module) -> Network:
    """A network as a function of its parameters in order; in training mode the batch's statistics count."""
    names = [name for name, _ in network.named_parameters()]
    return lambda weights, x: functional_call(network, dict(zip(names, weights, strict=True)), (x,))


def inner_loop(
    weights: Weights, support: Tensor, labels: Tensor, steps: int, lr: float, first_order: bool, network: Network = plain_conv4
) -> Weights:
    for _ in range(steps):
        loss = F.cross_entropy(network(weights, support), labels)
        gradient = torch.autograd.grad(loss, weights, create_graph=True)
        if first_order:
            gradient = tuple(part.detach() for part in gradient)
        weights = [weight - lr * part for weight, part in zip(weights, gradient, strict=True)]
    return weights


def meta_step(
    weights: Weights,
    episodes: Sequence[tuple[Tensor, ...]],
    steps: int,
    lr: float,
    first_order: bool,
    network: Network = plain_conv4,
) -> tuple[Tensor, ...]:
    """The gradient of the mean query loss: one episode after another, one backward pass through all at the end."""
    losses, right = [], 0.0
    for support, support_labels, query, query_labels in episodes:
        fast = inner_loop(weights, support, support_labels, steps, lr, first_order, network)
        logits = network(fast, query)
        losses.append(F.cross_entropy(logits, query_labels))
        right += (logits.argmax(1) == query_labels).float().mean().item()
    return torch.autograd.grad(torch.stack(losses).mean(), weights)


class ImageFiles(Dataset[Tensor]):
    """Image files as normalised floats, each read when it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        import_torchvision()
        from torchvision import transforms

        self.files = files
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*CIFAR)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def read_files(files: Sequence[Path]) -> Tensor:
    """Image files to normalised floats (B, 3, H, W), by a loader made for this one batch."""
    return next(iter(DataLoader(ImageFiles(files), batch_size=len(files))))


def write_files(images: Tensor, folder: Path, start: int = 0) -> None:
    """Images (B, 3, H, W) in [0, 1] as PNG files, one at a time."""
    for number, image in enumerate(images, start=start):
        pixels = (image.permute(1, 2, 0).clamp(0, 1) * 255).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")


def draw_files(by_class: Sequence[Sequence[Path]], way: int, per_class: int) -> list[Path]:
    """The files of an episode, grouped by class."""
    classes = torch.randperm(len(by_class))[:way].tolist()
    return [by_class[c][i] for c in classes for i in torch.randperm(len(by_class[c]))[:per_class].tolist()]


class PlainGenerator(nn.Module):
    """The generator as the papers write it: up-sample, convolve, normalise."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.side = image_size // 4
        self.latent_dim = 256
        self.expand = nn.Linear(256, 128 * self.side**2)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(128),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 3, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.expand(z).view(len(z), 128, self.side, self.side))

    def common(self) -> list[nn.Parameter]:
        """The parameters that this project's generator has too: all but the biases that a normalisation takes away again."""
        return [value for name, value in self.named_parameters() if name not in ("layers.2.bias", "layers.6.bias")]


def layer_distances(network: nn.Module) -> tuple[list[Tensor], Callable[[], None]]:
    """Hooks that compare each normalisation layer's input with what it remembers, and what removes them."""
    found: list[Tensor] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        assert isinstance(layer.running_mean, Tensor)
        assert isinstance(layer.running_var, Tensor)
        found.append((layer.running_mean - mean).norm() + (layer.running_var - var).norm())

    handles = [m.register_forward_hook(hook) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    return found, lambda: [handle.remove() for handle in handles] and None


def invert(
    generator: nn.Module,
    teacher: nn.Module,
    learner: Callable[[Tensor], Tensor] | None,
    labels: Tensor,
    z: Tensor,
    steps: int,
    lr: float,
    weights: tuple[float, float, float],
    normalise: Callable[[Tensor], Tensor],
    augment: Callable[[Tensor], Tensor],
) -> tuple[Tensor, float]:
    """Adam steps on a generator (in place) and latents; images of the best step and its loss. Weights: ce, bn, adv."""
    z = z.clone().requires_grad_()
    optimizer = torch.optim.Adam([{"params": generator.parameters()}, {"params": [z]}], lr=lr, betas=(0.5, 0.999))
    best, kept = 1e6, z
    for _ in range(steps):
        images = generator(z)
        x = normalise(augment(images))
        found, remove = layer_distances(teacher)
        logits = teacher(x)
        remove()
        loss = weights[0] * F.cross_entropy(logits, labels) + weights[1] * torch.stack(found).sum()
        if learner is not None and weights[2]:
            answers = learner(x)
            mask = (answers.max(1)[1] == logits.max(1)[1]).float()
            divergence = F.kl_div(F.log_softmax(answers, 1), F.softmax(logits, 1), reduction="none").sum(1)
            loss = loss - weights[2] * (divergence * mask).mean()
        if loss.item() < best:
            best, kept = loss.item(), images.data
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return kept, best


def shift_batch(images: Tensor) -> Tensor:
    """One shift and one flip for the whole batch."""
    padded = F.pad(images, (4, 4, 4, 4))
    row, column = torch.randint(0, 9, (2,)).tolist()
    x = padded[:, :, row : row + images.shape[2], column : column + images.shape[3]]
    return x.flip(3) if torch.rand(()) < 0.5 else x


def pixel_step(
    pixels: Tensor, teachers: Sequence[nn.Module], class_ids: Sequence[Sequence[int]], optimizer: torch.optim.Optimizer
) -> float:
    """One step of PURER on all pixels (classes, per_class, C, S, S): each teacher's loss in one graph. Unaugmented."""
    total = torch.zeros(())
    for teacher, ids in zip(teachers, class_ids, strict=True):
        x = torch.cat([pixels[i] for i in ids])
        labels = torch.arange(len(ids)).repeat_interleave(pixels.shape[1])
        found, remove = layer_distances(teacher)
        logits = teacher(x)
        remove()
        differences = (
            x[:, :, :, :-1] - x[:, :, :, 1:],
            x[:, :, :-1] - x[:, :, 1:],
            x[:, :, :-1, :-1] - x[:, :, 1:, 1:],
            x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
        )
        variation = torch.stack([difference.norm() for difference in differences]).sum()
        loss = F.cross_entropy(logits, labels) + 1e-4 * variation + 1e-2 * torch.stack(found).sum() + 1e-5 * x.norm()
        total = total + loss
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return total.item() / len(teachers)


def estimate(
    teacher: nn.Module, x: Tensor, labels: Tensor, radius: float, directions: Tensor, chunks: int,
    normalise: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Forward differences along `directions` (q, B, C, H, W), sent in `chunks` parts."""

    def losses(images: Tensor) -> Tensor:
        probabilities = F.softmax(teacher(normalise(images)), 1)
        return F.cross_entropy(probabilities.clamp(min=1e-6).log(), labels.repeat(len(images) // len(labels)), reduction="none")

    base, total = losses(x), torch.zeros_like(x)
    for part in directions.chunk(chunks):
        moved = losses((x + radius * part).flatten(0, 1)).view(len(part), -1)
        total += ((moved - base)[..., None, None, None] / radius * part).sum(0)
    return total.detach() * x[0].numel() / len(directions)


def train_epoch(network: nn.Module, files: Sequence[Path], labels: Tensor, batch_size: int = 128) -> float:
    """An epoch of a teacher from PNG files; the mean loss."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    network.train()
    total = 0.0
    for chosen in torch.randperm(len(files)).split(batch_size):
        images = read_files([files[i] for i in chosen.tolist()])
        loss = F.cross_entropy(network(images), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 50)
        optimizer.step()
        total += loss.item() * len(chosen)
    return total / len(files)


class PlainConv4(nn.Module):
    """A conv4 teacher with ReLU before pooling, whose weights collect gradients, taken from one of ours."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        copied = copy_of(ours)
        self.blocks, self.head = copied.blocks, copied.head  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:  # type: ignore[union-attr]
            x = F.max_pool2d(F.relu(block.norm(block.conv(x))), 2)
        return self.head(x.flatten(1))  # type: ignore[operator]


def copy_of(network: nn.Module) -> nn.Module:
    """A copy in NCHW whose weights collect gradients, as the papers' teachers do."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format).requires_grad_(True)  # type: ignore[call-overload]
