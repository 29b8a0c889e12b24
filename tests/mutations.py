"""Valid input, damaged by seed: whatever is done to it, the result is the same, or one line refuses it and names the file.

    python tests/mutations.py --number 1000

does so a thousand times to each kind of input and prints what came of it. Input that carries a checksum may never give
another result; a list, a command line or a photo may, where what is left is another valid one.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets.image_files import decode
from datasets.registry import SPECS
from datasets.split import csv_path, load_split
from methods.metalearners.learner import Learner, LearnerSpec
from methods.predict import FewShotClassifier
from methods.runs.arguments import parse_args
from methods.runs.scores import read_run
from methods.services.black_box import BlackBox
from methods.services.client import Client, Credential
from methods.services.meter import Meter
from methods.services.protocol import JSON_LENGTH, Named, encode
from methods.services.servers import Asking, models_of
from methods.teachers.manifest import read_manifest
from methods.teachers.pool import TeacherPool
from models import create_model
from utils import checkpoint
from utils.errors import UserError
from utils.tables import table

SECONDS = 20  # after which a trial hangs
SPEC = SPECS["cifar100"]
NONSENSE = [b"", b"\x00" * 9, b"-1", b"nan", b"1e99", b"../../etc/passwd", "é☃".encode(), b'"', b",,,", b"\n\n", b"[" * 2000]


@dataclass(frozen=True)
class Target:
    """A file, what is done with it, and how far it can be known to be whole.

    sealed: no other result than that of the whole file may come; text: it may be saved in other ways that mean the same.
    """

    path: Path
    use: Callable[[], object]
    sealed: bool = False
    text: bool = False
    name: str = ""  # that a refusal must hold; the file's own


@dataclass
class Tally:
    """What came of a kind's trials: how many were the same, refused, another valid input, wrong; and the first wrong ones."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def mutated(content: bytes, draws: random.Random) -> bytes:
    """One of: bytes flipped, a piece cut out, doubled, or replaced by nonsense, the end missing, everything gone."""
    size = max(1, len(content))
    start = draws.randrange(size)
    end = min(size, start + draws.randint(1, max(1, size // 4)))
    kind = draws.randrange(6)
    if kind == 0:
        flipped = bytearray(content)
        for _ in range(draws.randint(1, 8)):
            if flipped:
                flipped[draws.randrange(len(flipped))] = draws.randrange(256)
        return bytes(flipped)
    nonsense = draws.choice(NONSENSE)
    return (
        content[:start] + nonsense + content[end:],
        content[:start] + content[end:],
        content[:end] + content[start:],
        content[:start],
        nonsense,
    )[kind - 1]


def dressed(content: bytes, draws: random.Random) -> bytes:
    """The same table as another program saves it."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    if draws.random() < 0.5:
        order = draws.sample(range(len(rows[0])), len(rows[0]))
        rows = [[row[place] for place in order] for row in rows]
    if draws.random() < 0.3:
        rows = [[f'"{cell}"' for cell in row] for row in rows]
    comma, end = draws.choice([",", ", ", " ,"]), draws.choice(["\n", "\r\n"])
    spare, between = draws.choice(["", ",", ",,,"]), draws.choice([end, end + end, end + ",," + end])
    text = between.join(comma.join(row).replace('" ', '"') + spare for row in rows) + draws.choice(["", end])
    if comma.endswith(" "):
        text = text.replace(', "', ',"')
    return text.encode(draws.choice(["utf-8", "utf-8-sig", "utf-16"]))


def outcome(use: Callable[[], object]) -> tuple[str, object]:
    """("result", value), ("refused", message), or ("wrong", what happened instead)."""
    try:
        with limited(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            return "result", use()
    except (UserError, OSError) as error:
        return "refused", str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "wrong", "".join(traceback.format_exception(error)[-3:])


@contextmanager
def limited() -> Iterator[None]:
    """Raise `TimeoutError` inside the block after `SECONDS`."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"nothing came of it in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def trials(kind: str, target: Target, number: int) -> Tally:
    """Damage the target's file `number` times, by the kind's own seed, and put it back."""
    whole, tally, draws = target.path.read_bytes(), Tally(), random.Random(kind)
    state, wanted = outcome(target.use)
    assert state == "result", f"{kind}: the whole file gives {wanted}"
    for trial in tqdm(range(number), desc=kind, leave=False, disable=None):
        alike = target.text and draws.random() < 0.3
        content = (dressed if alike else mutated)(whole, draws)
        target.path.write_bytes(content)
        state, found = outcome(target.use)
        if state == "result":
            state = "same" if found == wanted else "wrong" if target.sealed or alike else "another"
            found = f"another result: {str(found)[:200]}"
        elif state == "refused" and alike:
            state, found = "wrong", f"refused though it means the same: {found}"
        elif state == "refused" and (target.name or target.path.name) not in str(found):
            state, found = "wrong", f"refused without the file's name: {found}"
        tally.counts[state] += 1
        if state == "wrong":
            tally.wrong.append(f"{kind}, trial {trial}: {found}\n{content[:300]!r}")
    target.path.write_bytes(whole)
    return tally


# ---------------------------------------------------------------- the kinds of input


def manifest(folder: Path) -> Target:
    """Somebody's list of teachers."""
    path = folder / "teachers.csv"
    lines = ["path,arch,class_names,image_size,mean,std,accuracy"]
    lines += [f"t{i}.pth,conv4,owl;wren;kite,16,0.5;0.5;0.5,0.25;0.25;0.25,0.9" for i in range(4)]
    path.write_text("\n".join(lines) + "\n")
    return Target(path, lambda: read_manifest(path), text=True)


def image_set(folder: Path) -> Path:
    """A root with a meta_test of three classes of four images."""
    for label in ("ant", "bee", "cat"):
        place = folder / "cifar100" / "meta_test" / label
        place.mkdir(parents=True, exist_ok=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    path = csv_path(SPEC, "meta_test", folder)
    path.parent.mkdir(exist_ok=True)
    names = [f"cifar100/meta_test/{label}/{number}.png,{label}" for label in ("ant", "bee", "cat") for number in range(4)]
    path.write_text("\n".join(["filename,label", *names]) + "\n")
    return folder


def used_split(root: Path) -> Callable[[], object]:
    def use() -> object:
        split = load_split(SPEC, "meta_test", root, 16)
        return split.class_names, split.labels.tolist(), split.images.flatten().tolist()

    return use


def image_list(folder: Path) -> Target:
    """A split's list of images."""
    root = image_set(folder)
    return Target(csv_path(SPEC, "meta_test", root), used_split(root), text=True)


def cache(folder: Path) -> Target:
    """The decoded images that are kept beside a list."""
    root = image_set(folder)
    use = used_split(root)
    use()
    (path,) = csv_path(SPEC, "meta_test", root).parent.glob(".meta_test.*")
    return Target(path, use, sealed=True)


def picture(suffix: str, sealed: bool) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        path = folder / f"x{suffix}"
        pixels = np.linspace(0, 255, 24 * 24 * 3).reshape(24, 24, 3).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        return Target(path, lambda: decode(path, 16).tolist(), sealed)

    return make


def teacher(folder: Path) -> Target:
    """A teacher's checkpoint."""
    target, path = manifest(folder), folder / "t0.pth"
    torch.manual_seed(0)
    torch.save({"state_dict": create_model("conv4", 3, 16).state_dict(), "class_names": ["owl", "wren", "kite"]}, path)
    rows, images = read_manifest(target.path)[:1], torch.rand(2, 3, 16, 16)

    def use() -> object:
        pool = TeacherPool(rows, torch.device("cpu"))
        pool.check()
        return pool[0](images).tolist()

    return Target(path, use, sealed=True)


def run_directory(folder: Path) -> Path:
    """A run as main.py leaves it, as far as reading it goes."""
    run = folder / "run"
    run.mkdir()
    flags = parse_args(["--method", "free", "--teachers", str(folder / "teachers.csv"), "--epochs", "40"])
    (run / "args.json").write_text(json.dumps({"flags": vars(flags), "argv": [], "environment": {}}, default=str))
    (run / "metrics.jsonl").write_text("".join(f'{{"iteration": {i}, "loss": 0.5}}\n' for i in range(1, 5)))
    (run / "result.json").write_text(json.dumps({"method": "free", "accuracy": {"cifar100": {"mean": 0.4}}, "episodes": {}}))
    torch.manual_seed(0)
    learner = Learner(LearnerSpec("conv4", 3, 16, (0.5,) * 3, (0.25,) * 3), torch.device("cpu"))
    content = {"learner": learner.state_dict(), "metalearner": "protonet", "inner_lr": 0.1, "test_inner_steps": 2}
    checkpoint.save(content | {"iteration": 1}, run / "best.pt")
    return run


def flags_of_a_run(folder: Path) -> Target:
    path = run_directory(folder) / "args.json"
    return Target(path, lambda: sorted(map(str, vars(parse_args(["--evaluate", str(path.parent)])).items())))


def numbers_of_a_run(name: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        path = run_directory(folder) / name
        return Target(path, lambda: repr(read_run(path.parent)))

    return make


def kept_learner(folder: Path) -> Target:
    path = run_directory(folder) / "best.pt"
    images = torch.rand(6, 3, 16, 16)

    def use() -> object:
        return FewShotClassifier.load(path).fit(images, [0, 0, 0, 1, 1, 1]).predict_proba(images).tolist()

    return Target(path, use, sealed=True)


def command_line(folder: Path) -> Target:
    """One token a line."""
    path = folder / "argv"
    path.write_text("--method\nfree\n--dataset\ncifar100\n--epochs\n70\n--inner_lr\n0.1\n--seeds\n0\n1\n--augment\n--bn\n0.1")

    def use() -> object:
        return sorted(map(str, vars(parse_args(path.read_text(errors="surrogateescape").split("\n"))).items()))

    return Target(path, use, name=" ")


class Canned(Client):
    """A server whose answers are files."""

    def __init__(self, metadata: Path, answer: Path) -> None:
        super().__init__("http://canned")
        self.metadata, self.answer = metadata, answer

    def _request(self, method: str, url: str, *rest: Any) -> Any:
        path, headers = url.removeprefix(self.url), {}
        if path == "/v2/models/one/infer":
            data = self.answer.read_bytes()
            headers = {JSON_LENGTH: str(data.find(b"\n"))}
        elif path == "/v2/models/one":
            data = self.metadata.read_bytes()
        else:
            data = {"/v2": b"{}", "/v2/repository/index": b'[{"name": "one"}]'}.get(path, b"")
        return SimpleNamespace(status=200 if data else 404, data=data.replace(b"\n", b"", 1), headers=headers)


def service(which: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        about = {
            "versions": ["1"], "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
            "parameters": {"class_names": ["a", "b"], "image_size": 8, "dataset": "x", "fingerprint": "f"},
        }  # fmt: skip
        metadata, answer = folder / "metadata", folder / "answer"
        metadata.write_bytes(json.dumps(about).encode())
        tensor = Named("p", "FP32", np.array([[0.25, 0.75], [0.5, 0.5]], "<f4"))
        body, headers = encode("outputs", [tensor], True, {})
        length = int(headers[JSON_LENGTH])
        answer.write_bytes(body[:length] + b"\n" + body[length:])

        def use() -> object:
            asking = Asking()
            asking._clients[("http://canned", Credential())] = Canned(metadata, answer)
            (listed,) = models_of("http://canned", asking)
            ids = range(len(listed.class_names))
            box = BlackBox(listed.service, "canned", ids, listed.image_size, (1.0,) * 3, Meter())
            return box.query(torch.zeros(2, 3, 8, 8)).tolist(), listed.class_names

        return Target(metadata if which == "metadata" else answer, use, name="canned")

    return make


KINDS: dict[str, Callable[[Path], Target]] = {
    "manifest": manifest,
    "list of images": image_list,
    "cache of images": cache,
    "image, PNG": picture(".png", sealed=True),
    "image, JPEG": picture(".jpg", sealed=False),
    "image, GIF": picture(".gif", sealed=False),
    "image, TIFF": picture(".tif", sealed=False),
    "image, WebP": picture(".webp", sealed=False),
    "teacher's checkpoint": teacher,
    "learner's checkpoint": kept_learner,
    "run: args.json": flags_of_a_run,
    "run: metrics.jsonl": numbers_of_a_run("metrics.jsonl"),
    "run: result.json": numbers_of_a_run("result.json"),
    "command line": command_line,
    "service: what it says of itself": service("metadata"),
    "service: its answer": service("answer"),
}


def try_kind(kind: str, number: int) -> Tally:
    """Make the kind's input in a folder of its own, and damage it `number` times."""
    with tempfile.TemporaryDirectory() as folder:
        return trials(kind, KINDS[kind](Path(folder)), number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=1000, help="trials of each kind")
    parser.add_argument("--kind", choices=tuple(KINDS), nargs="*", help="these alone")
    args = parser.parse_args()
    tallies = {kind: try_kind(kind, args.number) for kind in args.kind or KINDS}
    columns = ("same", "refused", "another", "wrong")
    rows = [[kind, str(args.number), *(str(tally.counts[name]) for name in columns)] for kind, tally in tallies.items()]
    print(table(["input", "tried", "the same", "refused", "another valid one", "wrong"], rows))
    wrong = [text for tally in tallies.values() for text in tally.wrong]
    for text in wrong[:10]:
        print(text, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
