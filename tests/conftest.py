"""Tiny image sets, written by the project's own scripts, and tiny pools of teachers on them."""

import itertools
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
if "cuda" not in os.environ.get("TESTS_ON", ""):  # every test is the CPU's, also where there is a card, but for test_card
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import pytest
import scipy.io
import torch
import uvicorn
from filelock import FileLock
from PIL import Image
from torch import nn

import main
import pretrain
from datasets.registry import CIFAR, MIX, SPECS, DatasetSpec
from datasets.split import load_split
from methods import get_method, methods_of
from methods.metalearners import readout
from methods.runs.arguments import experiment_of
from methods.teachers.manifest import TeacherRow, write_manifest
from methods.teachers.teacher import Teacher
from models import create_classifier, create_model
from utils import checkpoint, cli
from utils.images import ImageForm
from write_file import (
    write_cifar100_filelist,
    write_CUB_filelist,
    write_flower_filelist,
    write_glyphs_filelist,
    write_miniimagenet_filelist,
    write_whole_filelist,
)

THREADS = os.environ.get("OMP_NUM_THREADS", "1")
IMAGES_PER_CLASS = 8
WHOLE_CLASSES, WHOLE_TEACHER = 3, "wrn16_1"
TREES = {"cifar100": "cifar100", "miniimagenet": "Miniimagenet"}


FIRST = ("test_distributed", "test_faults", "benchmarks", "examples", "test_docs")  # what takes longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in FIRST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What somebody who is to mend a failure must know."""
    cpu = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line] if cpu.is_file() else []
    )
    terminalreporter.write_line(
        f"{models[0] if models else platform.processor()} ({torch.backends.cpu.get_cpu_capability()}), {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, {THREADS} threads a worker"
    )
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line("A test fails that passed elsewhere? Please open an issue with the lines from here up.")


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(int(THREADS))


@pytest.fixture(autouse=True, scope="session")
def _few_probes() -> None:
    readout.PROBES = 300


@pytest.fixture
def float64() -> Iterator[None]:
    """The whole program in double precision, so that what a test compares does not hang on a processor's rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def write_images(folder: Path, count: int, seed: int, size: tuple[int, int] = (20, 18), suffix: str = "png") -> None:
    """Noise around a colour of its own for each folder, so that classes can be told apart."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(40, 215, 3)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.clip(colour + rng.normal(0, 30, (*size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.{suffix}")


def make_data(root: Path) -> Path:
    """All image sets in their papers' layouts, with lists."""
    for name, folder in TREES.items():
        for split, classes in (("meta_train", 7), ("meta_val", 5), ("meta_test", 6)):
            for label in range(classes):
                write_images(
                    root / folder / split / f"{split}_{label}",
                    IMAGES_PER_CLASS,
                    seed=len(name) * 1000 + len(split) * 100 + label,
                )
    for label in range(24):
        write_images(root / "CUB_200_2011" / "images" / f"{label:03d}.Bird", IMAGES_PER_CLASS, label, suffix="jpg")
    labels = [label for label in (1, 2, 3, 4, 6, 10, 16, 17, 23, 26, 5, 9, 15, 19, 35) for _ in range(IMAGES_PER_CLASS)]
    write_images(root / "flower" / "jpg", len(labels), 7, suffix="jpg")
    for number, file in enumerate(sorted((root / "flower" / "jpg").iterdir()), start=1):
        file.rename(file.with_name(f"image_{number:05d}.jpg"))
    scipy.io.savemat(root / "flower" / "imagelabels.mat", {"labels": [labels]})
    where = ["--data_root", str(root)]
    for script in (write_cifar100_filelist, write_miniimagenet_filelist, write_CUB_filelist, write_flower_filelist):
        script.main(where)
    write_glyphs_filelist.main([*where, "--images", str(IMAGES_PER_CLASS)])
    for name, folder in (("cifar10", "cifar10"), ("cifar100", "cifar100_whole")):
        for split in ("train", "test"):
            for label in range(WHOLE_CLASSES):
                write_images(root / folder / split / f"class_{label}", IMAGES_PER_CLASS, label, size=(16, 16))
        write_whole_filelist.main([*where, "--dataset", name])
    return root


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image sets and, below teachers/, the pools that the tests of the methods use, made once for all workers. Read only."""
    shared = tmp_path_factory.getbasetemp()
    root = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "data"
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            make_data(root)
            make_teachers(root)
    return root


def make_untrained_pool(root: Path, spec: DatasetSpec, arch: str) -> None:
    """A pool of one teacher of three classes, as it was drawn."""
    folder, classes = root / "teachers" / spec.name / arch / "3way", (0, 1, 2)
    names = load_split(spec, "meta_train", root).class_names[:3]
    size = spec.image_size
    row = TeacherRow(folder / "teacher_000.pth", arch, classes, tuple(names), size, spec.mean, spec.std, spec.name)
    checkpoint.save({"state_dict": create_model(arch, 3, size).state_dict()}, row.path)
    write_manifest([row], folder / "teachers.csv")


def make_teachers(root: Path) -> None:
    common = ["--data_root", str(root), "--pretrain_epochs", "1"]
    for pool in (["--way_pretrain", "3", "--pre_model_num", "2"], ["--num_class_per_task", "3"]):
        pretrain.main([*common, *pool, "--dataset", "cifar100", "--pre_backbone", "mix", "--image_size", "16"])
        pretrain.main([*common, *pool, "--dataset", "mix", "--pre_backbone", "conv4"])
    pretrain.main([*common, "--way_pretrain", "3", "--pre_model_num", "2", "--dataset", "miniimagenet", "--image_size", "16"])
    torch.manual_seed(0)
    for name, arch in itertools.product(MIX, ("resnet10", "resnet18")):  # large ones need no training
        make_untrained_pool(root, SPECS[name], arch)
    network = create_classifier(WHOLE_TEACHER, WHOLE_CLASSES, 16)
    checkpoint.save({"state_dict": network.state_dict()}, root / "teachers" / f"{WHOLE_TEACHER}.pth")


TINY = """
    --image_size 16 --way_pretrain 3 --way_train 3 --way_test 3 --num_qur_train 2 --num_qur_test 2 --episode_test 4
    --episode_val 3 --inner_update_num 1 --test_inner_update_num 2 --episode_batch 2 --threads THREADS
""".replace("THREADS", THREADS).split()
TINY_REPLAY = "--inversion_steps 2 --bn 0.1 --teacher_batch 2 --patience 1 --augment"
TINY_OWN = {
    "free": f"--warmup 0 --num_qur_kd 8 {TINY_REPLAY}",
    "tgr": f"--num_recover 8 --probe_images 12 --probe_steps 2 {TINY_REPLAY}",
    "bidf_mkd": "--ZO --q 2 --num_sup_kd 8 --num_qur_kd 8 --inversion_steps 2 --inner_update_num_kd 1 --patience 1 --augment",
    "teapot": "--inversion_steps 2 --bn 0.1 --teacher_batch 2 --patience 1",
    "chorus": "--num_images 64 --batch_size 16 --inversion_steps 2 --bn 0.1",
    "purer": "--synthesis_per_class 8 --adv_start 1 --augment",
    **dict.fromkeys(
        ("fast", "fast_meta", "deepinv", "cmi", "dafl", "zskt", "dfad", "dfq"), "--kd_steps 1 --ep_steps 2 --g_steps 2"
    ),
    **dict.fromkeys(("fast", "fast_meta"), "--kd_steps 1 --ep_steps 2 --g_steps 2 --warmup 0"),
}
TINY_WHOLE = f"--dataset cifar10 --image_size 16 --batch_size 8 --threads {THREADS} --student wrn16_1"


@pytest.fixture(name="write_images")
def _write_images() -> Callable[..., None]:
    """write_images(folder, count, seed, size, suffix): a folder of noise around a colour of its own."""
    return write_images


@pytest.fixture
def tiny(data_root: Path, tmp_path: Path) -> list[str]:
    """Flags that make an episode of any few-shot method tiny; runs go below `tmp_path`."""
    return ["--data_root", str(data_root), "--out", str(tmp_path / "runs"), *TINY]


def tiny_whole_teacher(method: str, tiny: list[str]) -> str:
    """The flags of the teacher's file: for `scratch` where it goes, for all others where it is."""
    data_root, out = tiny[1], tiny[3]
    return f"--teacher {WHOLE_TEACHER} --teacher_ckpt " + (
        f"{out}/../new.pth --replace_teacher" if method == "scratch" else f"{data_root}/teachers/{WHOLE_TEACHER}.pth"
    )


@pytest.fixture
def flags_for(tiny: list[str]) -> Callable[..., list[str]]:
    """flags_for(method, iterations=2): a whole command line that takes a second and looks at meta_val every iteration."""

    def flags(method: str, iterations: int = 2) -> list[str]:
        if method in methods_of("classification"):
            teacher = tiny_whole_teacher(method, tiny)
            length = f"--epochs {iterations} --val_interval 1"
            own = f"{TINY_WHOLE} {teacher} {length} {TINY_OWN.get(method, '')}"
            return ["--method", method, *tiny[: tiny.index("--image_size")], *own.split()]
        counts_episodes = getattr(get_method(method), "COUNTS_EPISODES", False)
        length = (
            f"--episode_train {2 * iterations} --val_interval 2"
            if counts_episodes
            else f"--epochs {iterations} --val_interval 1"
        )
        return ["--method", method, *tiny, *length.split(), *TINY_OWN.get(method, "").split()]

    return flags


@pytest.fixture
def build(flags_for: Callable[..., list[str]]) -> Callable[..., Any]:
    """build(method, *flags): the experiment of a method of the registry, on tiny data; its method is in `.method`."""

    def made(name: str, *more: str) -> Any:
        args = main.parse_args([*flags_for(name), *more])
        torch.manual_seed(1)  # not the seed that a teacher was drawn with
        method_class = get_method(name)
        return experiment_of(method_class)(method_class, args, torch.device("cpu"))

    return made


def lively_teacher(seed: int = 0, way: int = 3, arch: str = "conv4", first_class: int = 0) -> Teacher:
    """An untrained teacher of 16 pixels, with running statistics as training leaves them."""
    torch.manual_seed(seed)
    network = create_model(arch, way, 16)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    class_ids = range(first_class, first_class + way)
    return Teacher(network, [f"class {number}" for number in class_ids], ImageForm(16, *CIFAR), class_ids, arch=arch)


@pytest.fixture
def drawn_twice() -> Callable[..., torch.Tensor]:
    """drawn_twice(make, size): six images of `make`, after it was seen that they are images and follow the seed."""

    def drawn(make: Callable[..., torch.Tensor], size: int) -> torch.Tensor:
        torch.manual_seed(0)
        images = make(6, size, torch.device("cpu"))
        assert images.shape == (6, 3, size, size)
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        torch.manual_seed(0)
        assert torch.equal(make(6, size, torch.device("cpu")), images)
        assert not torch.equal(make(6, size, torch.device("cpu")), images)
        return images

    return drawn


@pytest.fixture(name="lively_teacher")
def _lively_teacher() -> Callable[..., Teacher]:
    return lively_teacher


@pytest.fixture
def papers_conv4() -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Renames a conv4 to the papers' names: each block's layers twice, the linear layer behind the flattening."""

    def rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {}
        for name, value in state.items():
            if name.startswith("head."):
                renamed["trunk.5." + name[5:]] = value
                continue
            _, block, layer, rest = name.split(".")
            renamed[f"trunk.{block}.{'C' if layer == 'conv' else 'BN'}.{rest}"] = value
            renamed[f"trunk.{block}.trunk.{0 if layer == 'conv' else 1}.{rest}"] = value
        return renamed

    return rename


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """wait_until(happened, alive): wait for what must happen, however slow the machine; ten minutes are a hang.

    `alive` says whether it can still happen.
    """

    def wait(happened: Callable[[], bool], alive: Callable[[], bool] = lambda: True) -> None:
        deadline = time.monotonic() + 600
        while not happened():
            assert alive(), "it ended before that happened"
            assert time.monotonic() < deadline, "nothing happened for ten minutes"
            time.sleep(0.01)

    return wait


class Running(uvicorn.Server):
    """An application in a thread, at `url`; the port stays its own when it is given again."""

    def __init__(self, app: object, port: int = 0) -> None:
        super().__init__(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        while not self.started:
            time.sleep(0.01)
        self.port = self.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.should_exit = self.force_exit = True
        self.thread.join(10)


@pytest.fixture
def served() -> Iterator[Callable[..., Running]]:
    """Start a server of an application; all of them stop with the test."""
    started: list[Running] = []

    def start(app: object, port: int = 0) -> Running:
        started.append(Running(app, port))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def in_a_child(tmp_path: Path) -> Callable[..., int]:
    """in_a_child(argv, before): the exit status of `main.py argv` in a fork of this process (-9 when it was killed).

    `before` runs first in the child alone: there it may lay traps. What the child says on stderr is in `tmp_path/said`.
    """
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")

    def run(argv: list[str], before: Callable[[], None] = lambda: None) -> int:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
                sys.stderr = (tmp_path / "said").open("w", buffering=1)
                before()
                cli.exit_with_message(lambda: main.main(argv))
                status = 0
            except SystemExit as stop:
                status = int(stop.code or 0)
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


def kill_after(calls: int) -> None:
    """End this process, as a power cut would, when so many functions of Python have been called."""
    left = calls

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal left
        left -= event == "call"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


@pytest.fixture(name="kill_after")
def _kill_after() -> Callable[[int], None]:
    return kill_after
