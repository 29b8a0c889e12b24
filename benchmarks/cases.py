"""The hot paths, each beside the papers' way of the same work, on data that is made here."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import papers_way as theirs
from datasets.episodes import EpisodeSampler, EpisodeShape, make_episodes
from datasets.registry import CIFAR, SPECS
from datasets.split import ImageSplit
from methods.free import FREE
from methods.inversion.by_generator import BETAS, Descent, copy_of, follow, fresh, invert_one
from methods.inversion.by_pixel import PRIORS, PixelImages
from methods.inversion.pseudo_batch import PseudoBatch
from methods.inversion.terms import Weights, inversion_loss
from methods.inversion.zeroth_order import ZerothOrder, estimate_gradient, unit_directions
from methods.memory.bank import MemoryBank
from methods.memory.replay import Replay
from methods.metalearners import get_metalearner
from methods.metalearners.gradients import meta_gradient
from methods.metalearners.learner import Learner, LearnerSpec
from methods.runs.arguments import parse_args
from methods.services.black_box import LocalService, log_answers
from methods.teachers.pool import TeacherPool
from methods.teachers.pretraining import Recipe, train_teacher
from methods.teachers.teacher import Teacher
from models import create_model
from models.generator import Generator
from utils.images import ImageForm, channels_last, shift_and_flip, take, to_float, to_uint8

SIZE, WAY = 32, 5
MEAN, STD = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in CIFAR)


@dataclass(frozen=True)
class Case:
    """One hot path. `difference` is the relative error between both ways on the same input (None: random by nature)."""

    name: str
    ours: Callable[[], object]
    papers: Callable[[], object]
    difference: Callable[[], float] | None = None
    moved: float = 0.0  # bytes that must be moved at least, where that and not arithmetic is the limit


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Running statistics and scales as training leaves them, not as initialisation does."""
    torch.manual_seed(seed)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(64, 3, SIZE, SIZE))
    return network.eval()


def teacher(seed: int = 0, arch: str = "conv4", class_ids: tuple[int, ...] = tuple(range(WAY))) -> Teacher:
    torch.manual_seed(seed)
    network = lively(create_model(arch, len(class_ids), SIZE), seed)
    names = tuple(f"class {number}" for number in class_ids)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(network, names, ImageForm(SIZE, *CIFAR), class_ids, arch=arch)  # type: ignore[arg-type]


def plain_normalise(images: Tensor) -> Tensor:
    return (images - MEAN.to(images)) / STD.to(images)


def learner(dtype: torch.dtype = torch.float32, arch: str = "conv4") -> Learner:
    torch.manual_seed(1)
    made = Learner(LearnerSpec(arch, WAY, SIZE, *CIFAR), torch.device("cpu"))
    if dtype == torch.float64:
        made.network.double()
        made.params = {name: value.detach().double().requires_grad_() for name, value in made.params.items()}
    return made


# ------------------------------------------------------------ meta-learning


def outer_steps(quick: bool) -> Iterator[Case]:
    """(a) An outer step over 10 episodes, 5 inner steps; ANIL beside the papers' MAML loop."""
    for method, first_order, shot, arch in (
        ("maml", False, 1, "conv4"),
        ("maml", True, 1, "conv4"),
        ("anil", False, 1, "conv4"),
        ("maml", False, 5, "conv4"),
        ("maml", False, 1, "resnet10"),
        ("maml", False, 5, "resnet10"),
    ):
        count = 1 if quick else 10 if arch == "conv4" else 2
        label = f"outer step, {count} episodes, {arch}, {method}, {shot}-shot" + (", first order" if first_order else "")
        yield outer_step(label, method, first_order, shot, count, arch)


def outer_step(label: str, method: str, first_order: bool, shot: int, count: int, arch: str) -> Case:
    def episodes(dtype: torch.dtype, how_many: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)
        drawn = torch.randn(how_many, WAY * (shot + 15), 3, SIZE, SIZE, dtype=dtype)
        return drawn[:, : WAY * shot], drawn[:, WAY * shot :]

    def ours(dtype: torch.dtype = torch.float32, how_many: int = count) -> dict[str, Tensor]:
        made = learner(dtype, arch)
        metalearner = get_metalearner(method)(made.network)
        support, query = (channels_last(part.flatten(0, 1)).unflatten(0, part.shape[:2]) for part in episodes(dtype, how_many))
        batch = make_episodes(support, query, WAY)
        return meta_gradient(metalearner, made.params, batch, 5, first_order)[0]

    def papers(dtype: torch.dtype = torch.float32, how_many: int = count) -> tuple[Tensor, ...]:
        made = learner(dtype, arch)
        support, query = episodes(dtype, how_many)
        network = theirs.plain_conv4 if arch == "conv4" else theirs.as_function(create_model(arch, WAY, SIZE).train().to(dtype))
        labels = [torch.arange(WAY).repeat_interleave(part) for part in (shot, 15)]
        batch = [(s, labels[0], q, labels[1]) for s, q in zip(support, query, strict=True)]
        return theirs.meta_step(list(made.params.values()), batch, 5, 0.01, first_order, network)

    def difference() -> float:
        one, other = ours(torch.float64, 1), papers(torch.float64, 1)
        return relative(torch.cat([g.flatten() for g in one.values()]), torch.cat([g.flatten() for g in other]))

    return Case(label, ours, papers, difference if method == "maml" else None)


def exams(folder: Path, quick: bool) -> Iterator[Case]:
    """(b) An evaluation episode with 10 inner steps, its images loaded; (e) drawing it from a split."""
    split, by_class = image_files(folder / "split", classes=20, per_class=40)
    shape = EpisodeShape(WAY, 1, 15)
    sampler, made = EpisodeSampler(split, shape), learner()
    metalearner = get_metalearner("maml")(made.network)
    frozen = {name: value.detach() for name, value in made.params.items()}
    draws = torch.Generator().manual_seed(0)
    count = 2 if quick else 5

    def draw() -> tuple[Tensor, Tensor]:
        support, query = sampler.indices(1, draws)
        return made.prepare(take(split.images, support)), made.prepare(take(split.images, query))

    def draw_plain() -> tuple[Tensor, Tensor]:
        images = theirs.read_files(theirs.draw_files(by_class, WAY, 16)).unflatten(0, (WAY, 16))
        return images[:, :1].flatten(0, 1), images[:, 1:].flatten(0, 1)

    def examine() -> None:
        with torch.no_grad():
            for _ in range(count):
                metalearner.outer_loss(frozen, make_episodes(*draw(), WAY), 10, create_graph=False)[1].tolist()

    def examine_plain() -> None:
        labels = [torch.arange(WAY).repeat_interleave(part) for part in (1, 15)]
        for _ in range(count):
            support, query = draw_plain()
            fast = theirs.inner_loop(list(made.params.values()), support, labels[0], 10, 0.01, first_order=False)
            (theirs.plain_conv4(fast, query).argmax(1) == labels[1]).float().mean().item()

    def difference() -> float:
        support, query = (part.double() for part in draw_plain())
        exact = learner(torch.float64)
        labels = torch.arange(WAY)
        fast = theirs.inner_loop(list(exact.params.values()), support, labels, 10, 0.01, first_order=False)
        own = get_metalearner("maml")(exact.network)
        with torch.no_grad():
            adapted = own.adapt({k: v.detach() for k, v in exact.params.items()}, support, labels, 10, False)
            return relative(own.classify(adapted, support, labels, query, WAY), theirs.plain_conv4(fast, query))

    moved = 2 * WAY * 16 * 3 * SIZE * SIZE * 5.0  # bytes read once, floats written once
    yield Case("drawing a test episode from a split", draw, draw_plain, None, moved)
    yield Case(f"{count} evaluation episodes, 10 inner steps, loading included", examine, examine_plain, difference)


def image_files(folder: Path, classes: int, per_class: int) -> tuple[ImageSplit, list[list[Path]]]:
    """Random images as a split in memory and as PNG files."""
    folder.mkdir(parents=True)
    torch.manual_seed(3)
    images = channels_last(to_uint8(torch.rand(classes * per_class, 3, SIZE, SIZE)))
    theirs.write_files(to_float(images), folder)
    files = [folder / f"{number:06d}.png" for number in range(len(images))]
    labels = torch.arange(classes).repeat_interleave(per_class)
    split = ImageSplit(images, labels, [str(number) for number in range(classes)])
    return split, [files[c * per_class : (c + 1) * per_class] for c in range(classes)]


def memories(folder: Path) -> Iterator[Case]:
    """(d) Adding 100 images to memory; drawing a replay episode."""
    folder.mkdir()
    made = learner()
    bank = MemoryBank(64, 400, SIZE, torch.device("cpu"))
    batch = PseudoBatch(torch.rand(100, 3, SIZE, SIZE), torch.arange(WAY).repeat_interleave(20), tuple(range(WAY)))
    for first in range(0, 60, WAY):
        for _ in range(2):
            bank.add(PseudoBatch(batch.images, batch.labels, tuple(range(first, first + WAY))))
    for class_id in range(20):
        (folder / str(class_id)).mkdir()
        theirs.write_files(batch.images[:40], folder / str(class_id))
    by_class = [sorted((folder / str(class_id)).iterdir()) for class_id in range(20)]
    (folder / "new").mkdir()
    shape, image = EpisodeShape(WAY, 1, 15), 3 * SIZE * SIZE
    yield Case(
        "adding 100 images to memory",
        lambda: bank.add(batch),
        lambda: theirs.write_files(batch.images, folder / "new"),
        None,
        100 * image * 5.0,
    )
    yield Case(
        "drawing 10 replay episodes from memory",
        lambda: bank.sample_episodes(10, shape, made),
        lambda: [theirs.read_files(theirs.draw_files(by_class, WAY, 16)) for _ in range(10)],
        None,
        10 * WAY * 16 * image * 5.0,
    )


# ------------------------------------------------------------ inversion


def plain_twin(generator: Generator) -> theirs.PlainGenerator:
    """The plain generator with the parameters of one of ours."""
    plain = theirs.PlainGenerator(SIZE)
    for target, source in zip(plain.common(), generator.parameters(), strict=True):
        target.data = source.detach().clone()
    return plain


def gradients_apart(subject: Teacher, count: int, weights: Weights, plain: nn.Module) -> float:
    """Relative difference of the gradient of the inversion loss at the generator, in float64, without augmentation."""
    torch.manual_seed(4)
    ours = Generator(SIZE).double()
    twin = plain_twin(ours).double()
    z, labels = torch.randn(count, 256, dtype=torch.float64), torch.arange(count) % subject.way
    exact, plain = copy.deepcopy(subject).double(), copy.deepcopy(plain).double()
    inversion_loss(weights, exact, ours(z), labels).backward()
    found, remove = theirs.layer_distances(plain)
    logits = plain(plain_normalise(twin(z)))
    remove()
    (weights["ce"] * F.cross_entropy(logits, labels) + weights["bn"] * torch.stack(found).sum()).backward()
    gradients = [[value.grad for value in values if value.grad is not None] for values in (ours.parameters(), twin.common())]
    return relative(*(torch.cat([gradient.flatten() for gradient in some]) for some in gradients))


def inversions(quick: bool, precision: str) -> Iterator[Case]:
    """(c) Inversion with a generator, per method."""
    small = 10 if quick else 1
    for name, teachers, steps, count, weights in (
        ("FREE inversion, 4 teachers x 5 steps x 100", 4, 5, 100 // small, {"ce": 1, "adv": 1}),
        ("TGR inversion, 4 steps x 150, BN statistics", 1, 4, 150 // small, {"ce": 1, "bn": 1}),
        ("BiDf-MKD white box, 4 steps x 150", 1, 4, 150 // small, {"ce": 1, "adv": 1}),
    ):
        yield by_generator(name, [teacher(seed) for seed in range(teachers)], steps, count, weights, precision)
    wide = teacher(7, "wrn40_2", tuple(range(100)))
    yield by_generator(
        f"fast, 5 steps, batch {256 // small}, wrn40_2", [wide], 5, 256 // small, {"ce": 0.4, "bn": 10, "adv": 1.1}, precision
    )


def by_generator(name: str, subjects: list[Teacher], steps: int, count: int, weights: Weights, precision: str) -> Case:
    made, arch = learner(), subjects[0].arch
    plain = [theirs.PlainConv4(t.network) if arch == "conv4" else theirs.copy_of(t.network) for t in subjects]
    student = made.logits if weights.get("adv") else None
    if weights.get("adv") and arch != "conv4":
        small = teacher(8, "wrn16_1", subjects[0].class_ids)
        student = small.__call__
    labels, generator = torch.arange(count) % subjects[0].way, Generator(SIZE)
    start = fresh(torch.device("cpu")) if "adv" not in weights else copy_of(generator)
    optimizer, descent = torch.optim.Adam(generator.parameters(), 1e-3, betas=BETAS), Descent(steps, precision=precision)

    def loss(subject: Teacher, images: Tensor, labels: Tensor) -> Tensor:
        return inversion_loss(weights, subject, shift_and_flip(images), labels, student)

    params = [value.detach().clone().requires_grad_() for value in made.params.values()]
    plain_student = theirs.copy_of(teacher(8, "wrn16_1", subjects[0].class_ids).network) if arch != "conv4" else None

    def answers(x: Tensor) -> Tensor:
        return theirs.plain_conv4(params, x) if plain_student is None else plain_student(x)

    def ours() -> None:
        for subject in subjects:
            found = invert_one(subject, labels, start(subject), loss, descent)
            if "adv" in weights:
                follow(optimizer, [found.gradient])

    def papers() -> None:
        for network in plain:
            twin = plain_twin(generator)
            z = torch.randn(count, 256)
            theirs.invert(
                twin, network, answers if "adv" in weights else None, labels, z, steps, 1e-3,
                tuple(weights.get(name, 0) for name in ("ce", "bn", "adv")), plain_normalise, theirs.shift_batch,
            )  # fmt: skip

    def difference() -> float:
        return gradients_apart(subjects[0], 8, {"ce": weights["ce"], "bn": weights.get("bn", 1.0)}, plain[0])

    return Case(name, ours, papers, difference)


def pixels(quick: bool) -> Case:
    """(c) PURER: one step over 13 teachers of disjoint classes, 16 images of a class."""
    count, per_class = (3, 4) if quick else (13, 16)
    subjects = [teacher(seed, class_ids=tuple(range(5 * seed, 5 * seed + 5))) for seed in range(count)]
    form = ImageForm(SIZE, *CIFAR)
    images = PixelImages(5 * count, per_class, form, 0.25, torch.device("cpu"), clamp=False)
    plain = [theirs.PlainConv4(subject.network) for subject in subjects]
    values = images.values.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([values], lr=0.25)
    ids = [list(subject.class_ids) for subject in subjects]

    def loss(subject: Teacher, x: Tensor, labels: Tensor) -> Tensor:
        return inversion_loss(PRIORS, subject, form.to_images(x), labels, pixels=x)

    return Case(
        f"PURER, one step over {count} teachers",
        lambda: images.step(images.gradient(subjects, loss)[0]),
        lambda: theirs.pixel_step(values, plain, ids, optimizer),
    )


def zeroth_order(quick: bool) -> Case:
    """(c) A gradient from q = 100 queries of an image, batch 150."""
    count, queries = (15, 20) if quick else (150, 100)
    subject = teacher()
    service, plain = LocalService(subject.answering), theirs.PlainConv4(subject.network)
    torch.manual_seed(5)
    x, labels = torch.rand(count, 3, SIZE, SIZE), torch.arange(count) % WAY
    settings = ZerothOrder(0.0013, queries)

    def losses(images: Tensor) -> Tensor:
        copies = len(images) // count
        return F.cross_entropy(log_answers(service.query(images)), labels.repeat(copies), reduction="none")

    def ours() -> Tensor:
        return estimate_gradient(losses, x, losses(x), settings)

    def plain_directions() -> Tensor:
        directions = torch.randn(queries, *x.shape)
        return directions / directions.flatten(2).norm(dim=2)[..., None, None, None]

    def papers() -> Tensor:
        with torch.no_grad():
            return theirs.estimate(plain, x, labels, settings.radius, plain_directions(), 5, plain_normalise)

    def difference() -> float:
        torch.manual_seed(6)
        one = estimate_gradient(losses, x, losses(x), ZerothOrder(0.05, 10))
        torch.manual_seed(6)
        with torch.no_grad():
            other = theirs.estimate(plain, x, labels, 0.05, unit_directions(10, x), 1, plain_normalise)
        return relative(one, other)

    return Case(f"zeroth-order gradient, q = {queries}, batch {count}", ours, papers, difference)


# ------------------------------------------------------------ teachers, whole iterations


def pretraining(folder: Path, quick: bool) -> Case:
    """(f) An epoch of a conv4 teacher, per teacher."""
    per_class = 40 if quick else 480
    split, by_class = image_files(folder / "teacher", WAY, per_class)
    files = [file for members in by_class for file in members]
    spec, recipe = SPECS["cifar100"], Recipe(epochs=1)

    class Silent:
        def update(self) -> None: ...

        def set_postfix_str(self, text: str) -> None: ...

    def ours() -> None:
        torch.manual_seed(0)
        network = create_model("conv4", WAY, SIZE)
        data = (split.images, split.labels)
        nothing = (split.images[:0], split.labels[:0])
        train_teacher(network, "conv4", data, nothing, spec, recipe, torch.Generator(), Silent())  # type: ignore[arg-type]

    def papers() -> None:
        torch.manual_seed(0)
        network = theirs.PlainConv4(create_model("conv4", WAY, SIZE))
        theirs.train_epoch(network, files, split.labels)
        with torch.no_grad():  # the epoch's look at accuracy
            network.eval()
            for some, labels in zip(range(0, len(files), 128), split.labels.split(128), strict=True):
                (network(theirs.read_files(files[some : some + 128])).argmax(1) == labels).sum().item()

    return Case(f"an epoch of a conv4 teacher, {len(files)} images", ours, papers)


def free_iteration(folder: Path, quick: bool, precision: str) -> Case:
    """(g) A whole iteration of FREE: 4 inversions, memory, BELL, a dozen replay updates of 10 episodes."""
    count, updates, episodes = (20, 1, 2) if quick else (100, 12, 10)
    subjects = [teacher(seed, class_ids=tuple(range(5 * seed, 5 * seed + 5))) for seed in range(4)]
    plain = [theirs.PlainConv4(subject.network) for subject in subjects]
    made, shape = learner(), EpisodeShape(WAY, 1, 3 if quick else 15)
    flags = f"--method free --warmup 0 --num_qur_kd {count // WAY} --episode_batch {episodes} --num_qur_train {shape.query}"
    method = FREE(parse_args([*flags.split(), "--precision", precision]), TeacherPool.of(subjects), made.spec)
    params = [value.detach().clone().requires_grad_() for value in made.params.values()]
    plain_optimizer = torch.optim.Adam(params, lr=1e-3)
    folder.mkdir()
    for class_id in range(20):
        (folder / str(class_id)).mkdir()

    def replay_once() -> tuple[float, float]:
        return Replay.once(method.replay)[0], 0.0  # never better: as many updates as patience says

    method.replay.patience, method.replay.once = updates - 1 or 1, replay_once  # type: ignore[method-assign]

    def ours() -> None:
        method.train_iteration(0)

    def papers() -> None:
        labels = torch.arange(WAY).repeat_interleave(count // WAY)
        for number, network in enumerate(plain):
            twin = theirs.PlainGenerator(SIZE)
            images, _ = theirs.invert(
                twin, network, lambda x: theirs.plain_conv4(params, x), labels, torch.randn(count, 256), 5, 1e-3, (1, 0, 1),
                plain_normalise, theirs.shift_batch,
            )  # fmt: skip
            for label in range(WAY):
                theirs.write_files(images[labels == label], folder / str(5 * number + label))
            x = plain_normalise(images)
            apart = F.kl_div(F.log_softmax(theirs.plain_conv4(params, x), 1), F.softmax(network(x), 1), reduction="batchmean")
            step(plain_optimizer, apart)
        by_class = [sorted((folder / str(class_id)).iterdir()) for class_id in range(20)]
        per_class = shape.shot + shape.query
        marks = [torch.arange(WAY).repeat_interleave(part) for part in (shape.shot, shape.query)]
        for _ in range(max(2, updates)):
            batch = []
            for _ in range(episodes):
                files = theirs.draw_files(by_class, WAY, per_class)
                drawn = theirs.read_files(files).unflatten(0, (WAY, per_class))
                support, query = drawn[:, : shape.shot].flatten(0, 1), drawn[:, shape.shot :].flatten(0, 1)
                batch.append((support, marks[0], query, marks[1]))
            for value, gradient in zip(params, theirs.meta_step(params, batch, 5, 0.01, False), strict=True):
                value.grad = gradient
            plain_optimizer.step()

    return Case("one whole FREE iteration", ours, papers)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def all_cases(folder: Path, quick: bool, precision: str) -> Iterator[Case]:
    """Every case; files go below `folder`."""
    yield from outer_steps(quick)
    yield from exams(folder, quick)
    yield from memories(folder / "memory")
    yield from inversions(quick, precision)
    yield pixels(quick)
    yield zeroth_order(quick)
    yield pretraining(folder, quick)
    yield free_iteration(folder / "free", quick, precision)
