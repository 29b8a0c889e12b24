"""What all few-shot methods have in common: teachers, a learner, its exams, meta-updates, and their flags."""

import argparse
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from datasets.episodes import Episodes, EpisodeShape
from datasets.registry import HALF, SPECS, SPLITS, get_domains
from datasets.split import csv_path
from methods.base import Method
from methods.evaluation.few_shot import Exam, examine
from methods.inversion.subjects import PseudoBatch
from methods.memory import MemoryBank
from methods.metalearners import METALEARNERS, get_metalearner
from methods.metalearners.gradients import meta_gradient, set_gradient
from methods.metalearners.learner import Learner, LearnerSpec
from methods.teachers.manifest import TeacherRow, add_pool_flags, as_place, find_rows, pool_folder, pool_specs, pretrain_command
from methods.teachers.pool import TeacherPool, add_teacher_flags
from models import MODELS
from utils import cli, distributed
from utils.errors import UserError
from utils.images import Augmentation
from utils.metrics import Patience, Score


class FewShotMethod(Method):
    """A method that ends with a learner, judged on episodes of unseen classes."""

    TASK = "few_shot"
    NEEDS_TEACHERS: ClassVar[bool] = True
    COUNTS_EPISODES: ClassVar[bool] = False  # whether the paper types the length of a run in episodes
    memory: MemoryBank  # of the methods whose STATE has it

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        steps = missing_steps(args, self.NEEDS_TEACHERS)
        if steps:
            raise UserError("first " + "; then ".join(steps))
        rows = find_rows(args) if self.NEEDS_TEACHERS else []
        self.domains = get_domains(args.dataset) if args.dataset else []
        self.exam_domains = get_domains(args.testdataset) if args.testdataset else self.domains
        self.pool = TeacherPool(rows, device, args.class_order) if rows else None
        self.image_size, mean, std = self._image_form(rows)
        spec = LearnerSpec(args.backbone, args.way_train, self.image_size, mean, std, global_pool=len(self.domains) > 1)
        self.learner = Learner(self.shape_learner(spec), device)
        self.metalearner = get_metalearner(args.metalearner)(
            self.learner.network,
            args.inner_lr,
            execution="vmap" if device.type == "cuda" else "loop",
            inductive=args.inductive,
        )
        self.train_shape = EpisodeShape(args.way_train, args.shot_train, args.query_train)
        self.test_shape = EpisodeShape(args.way_test, args.shot_test, args.query_test)
        self.exams = {
            split: [
                Exam(domain, split, args.data_root, self.image_size, self.test_shape, count) for domain in self.exam_domains
            ]
            for split, count in (("meta_val", args.episode_val), ("meta_test", args.episode_test))
        }
        for exam in (exam for exams in self.exams.values() for exam in exams):
            _ = exam.indices  # missing lists and splits that are too small show before any work is done
        if self.pool:
            self.pool.check(self.looks_inside)
            if not self.looks_inside and distributed.size() > 1:
                raise UserError("black boxes are asked by one process: run this without torchrun")

    @classmethod
    def add_shared_args(cls, parser: argparse.ArgumentParser) -> None:
        add_pool_flags(parser)
        parser.set_defaults(dataset=None)
        add_teacher_flags(parser)
        parser.add_argument("--pretrain", action="store_true", help="train the teachers and stop, as the papers type it")
        add_few_shot_flags(parser, cls.COUNTS_EPISODES)

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        if args.start_id != 1:
            raise UserError(f"--start_id {args.start_id}: a run goes on with --resume runs/<name>, which restores everything")
        if args.dataset is None and not args.teachers:
            args.dataset = "cifar100"
        if args.shot_test is None:
            args.shot_test = args.shot_train
        if args.select_on == "pseudo" and "memory" not in cls.STATE:
            raise UserError(f"--select_on pseudo: {args.method} keeps no bank of pseudo-images to draw episodes from")

    @classmethod
    def restore_args(cls, args: argparse.Namespace) -> None:
        args.teachers = [as_place(place) for place in args.teachers] if args.teachers else None

    @classmethod
    def default_name(cls, args: argparse.Namespace) -> str:
        data = args.dataset or Path(args.teachers[0]).stem
        return f"{args.method}-{data}-{args.way_train}w{args.shot_train}s-{args.backbone}"

    def shape_learner(self, spec: LearnerSpec) -> LearnerSpec:
        """The learner that is to be built: `spec`, or what the method makes of it."""
        return spec

    @property
    def looks_inside(self) -> bool:
        """Whether the method needs more of its teachers than their answers."""
        return True

    @property
    def num_iterations(self) -> int:
        """Outer updates or the paper's epochs; a method without `STATE` trains nothing."""
        if not self.STATE:
            return 0
        return max(1, self.args.episode_train // self.args.episode_batch) if self.COUNTS_EPISODES else self.args.epochs

    @property
    def val_interval(self) -> int:
        return max(1, self.args.val_interval // self.args.episode_batch) if self.COUNTS_EPISODES else self.args.val_interval

    def _image_form(self, rows: list[TeacherRow]) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
        """Size and normalisation of the learner's images: the set's; for mixtures size 84; for own teachers, theirs."""
        if len(self.domains) == 1:
            domain = self.domains[0]
            return self.args.image_size or domain.image_size, domain.mean, domain.std
        sizes = {row.image_size for row in rows}
        common = sizes.pop() if not self.domains and len(sizes) == 1 else 84
        return self.args.image_size or common, *HALF

    @cached_property
    def augmentation(self) -> Augmentation:
        """What may be done to the teachers' images without changing their class, as far as their image sets say."""
        specs = {SPECS[row.dataset] for row in self.teachers.rows if row.dataset in SPECS}
        return Augmentation(all(spec.flip for spec in specs), bool(specs) and all(spec.recolour for spec in specs))

    @property
    def teachers(self) -> TeacherPool:
        """The pool of a method that needs one."""
        assert self.pool is not None
        return self.pool

    def look(self) -> dict[str, Score]:
        if self.args.select_on == "last":
            return {}
        if self.args.select_on == "pseudo":
            return {"pseudo": self.pseudo_score()} if self.memory.ready_for(self.train_shape) else {}
        return {f"{self.args.select_on}/{name}": score for name, score in self.evaluate(self.args.select_on).items()}

    def pseudo_score(self) -> Score:
        """The learner's score on episodes of memory: what can be known where there are no real images."""
        params = {name: value.detach() for name, value in self.learner.params.items()}
        accuracies: list[torch.Tensor] = []
        with self.clock("evaluation"), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            while len(accuracies) < self.args.episode_val:
                episode = self.memory.sample_episodes(1, self.train_shape, self.learner)
                accuracies.append(
                    self.metalearner.outer_loss(params, episode, self.args.test_inner_steps, create_graph=False)[1]
                )
        return Score(torch.cat(accuracies).tolist())

    def evaluate(self, split: str) -> dict[str, Score]:
        with self.clock("evaluation"):
            return {exam.spec.name: self.sit(exam) for exam in self.exams[split]}

    def to_keep(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "metalearner": self.args.metalearner,
            "inner_lr": self.args.inner_lr,
            "test_inner_steps": self.args.test_inner_steps,
            "class_names": self.pool.class_names if self.pool else [],
        }

    def take_back(self, kept: dict[str, Any]) -> None:
        self.learner.load_state_dict(kept["learner"])

    def found(self) -> list[str]:
        return [f"teachers found: {len(self.pool)}, classes: {len(self.pool.class_names)}"] if self.pool else []

    def sit(self, exam: Exam) -> Score:
        """The learner's score on the episodes of one exam."""
        return examine(self.learner, self.metalearner, exam, self.args.test_inner_steps)

    def recover(self, teacher_ids: list[int]) -> list[PseudoBatch]:
        """Fresh pseudo-images of some teachers, leaving the run as it is."""
        raise UserError(f"--judge: {self.args.method} recovers no images")

    def outer_step(self, optimizer: torch.optim.Optimizer, episodes: Episodes) -> tuple[float, float]:
        """One meta-update of the learner on a batch of episodes; returns query loss and accuracy before it."""
        gradient, loss, accuracy = meta_gradient(
            self.metalearner, self.learner.params, episodes, self.args.inner_steps, self.args.first_order
        )
        set_gradient(self.learner.params, gradient)
        optimizer.step()
        return float(loss), float(accuracy)

    def replay(self, memory: MemoryBank, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Meta-updates on episodes of memory until the accuracy has not risen for `--patience` updates.

        Nothing happens while memory cannot fill an episode. Returns the last loss and accuracy, and the updates made.
        """
        if not memory.ready_for(self.train_shape):
            return {}
        patience, updates, exhausted = Patience(self.args.patience), 0, False
        while not exhausted:
            loss, accuracy = self.replay_once(memory, optimizer)
            exhausted = patience.note(accuracy)
            updates += 1
        return {"loss": loss, "accuracy": accuracy, "replay_updates": float(updates)}

    def replay_once(self, memory: MemoryBank, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        """One meta-update on episodes of memory; returns query loss and accuracy before it."""
        augment = self.augmentation if self.args.augment else None
        episodes = memory.sample_episodes(self.args.episode_batch, self.train_shape, self.learner, augment)
        return self.outer_step(optimizer, episodes)

    def check_teachers_fit_the_head(self) -> None:
        """Raise `UserError` where a teacher has fewer classes than the learner that is to imitate it."""
        way = self.args.way_train
        odd = next((row for row in self.teachers.rows if len(row.class_ids) < way), None)
        if odd is not None:
            raise UserError(
                f"--method {self.args.method} distils teachers into a learner of {way} classes, and {odd.path} has "
                f"{len(odd.class_ids)}: lower --way_train to that"
            )


def add_replay_flags(group: argparse._ArgumentGroup) -> None:
    """What `FewShotMethod.replay` reads."""
    group.add_argument(
        "--generate_interval", "--patience", dest="patience", type=cli.count, default=10,
        help="replay updates without a better accuracy before new teachers come",
    )  # fmt: skip
    add_augment_flag(group)


def add_augment_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--augment", action="store_true", help="augment pseudo-images in meta-training, not in inversion alone")


def add_few_shot_flags(parser: argparse.ArgumentParser, counts_episodes: bool = False) -> None:
    """Episodes, the metalearner, evaluation and length: the flags that all few-shot methods share."""
    group = parser.add_argument_group("episodes")
    for part in ("train", "test"):
        group.add_argument(f"--way_{part}", type=cli.count, default=5, help=f"classes of a {part} episode")
        group.add_argument(
            f"--num_sup_{part}", f"--shot_{part}", dest=f"shot_{part}", type=cli.count, default=None if part == "test" else 1,
            help="labelled images of a class" + (" (default: as in training)" if part == "test" else ""),
        )  # fmt: skip
        group.add_argument(
            f"--num_qur_{part}", f"--query_{part}", dest=f"query_{part}", type=cli.count, default=15, help="queries of a class"
        )
    group.add_argument("--episode_test", type=cli.count, default=600, help="episodes of meta_test")
    group.add_argument("--episode_val", type=cli.count, default=200, help="episodes of each look at meta_val")

    group = parser.add_argument_group("meta-training")
    group.add_argument("--backbone", default="conv4", help=f"the learner's architecture: {', '.join(MODELS)}")
    group.add_argument("--teacherMethod", "--metalearner", dest="metalearner", default="maml", help=", ".join(METALEARNERS))
    group.add_argument("--inner_lr", type=cli.rate, default=0.01, help="learning rate of the inner loop")
    group.add_argument("--outer_lr", type=cli.rate, default=1e-3, help="learning rate of the outer loop (Adam)")
    group.add_argument(
        "--inner_update_num", "--inner_steps", dest="inner_steps", type=cli.count, default=5, help="inner steps in training"
    )
    group.add_argument(
        "--test_inner_update_num", "--test_inner_steps", dest="test_inner_steps", type=cli.count, default=10,
        help="inner steps in evaluation",
    )  # fmt: skip
    group.add_argument("--approx", "--first_order", dest="first_order", action="store_true", help="first-order MAML")
    group.add_argument("--episode_batch", type=cli.count, default=10, help="episodes of an outer update")
    if counts_episodes:
        group.add_argument("--episode_train", type=cli.count, default=60_000, help="episodes of the whole run")
    else:
        group.add_argument("--epochs", type=cli.count, default=1000, help="iterations")
    group.add_argument("--start_id", type=int, default=1, help="accepted for the papers' scripts; only 1 makes sense")

    group = parser.add_argument_group("evaluation")
    group.add_argument("--testdataset", help="image set of meta_val and meta_test (default: --dataset)")
    unit = "episodes" if counts_episodes else "iterations"
    group.add_argument("--val_interval", type=cli.count, default=20, help=f"{unit} between looks at meta_val")
    group.add_argument(
        "--select_on", choices=("meta_val", "meta_test", "pseudo", "last"), default="meta_val",
        help="what picks the learner; pseudo: episodes of pseudo-images; meta_test as in the papers' code (which is marked)",
    )  # fmt: skip
    group.add_argument("--inductive", action="store_true", help="normalise queries by the support's statistics")
    group.add_argument("--no_floors", action="store_true", help="leave the floors out of the report")
    group.add_argument(
        "--judge", action="store_true", help="ask a network trained on real images what it sees in the recovered"
    )
    group.add_argument("--save_images", action="store_true", help="write grids of pseudo-images at every look at meta_val")
    group.add_argument("--save_interval", type=int, help="accepted for the papers' scripts")


def missing_steps(args: argparse.Namespace, needs_teachers: bool) -> list[str]:
    """What must be done before this command line can run, in order, with the commands."""
    steps = []
    elsewhere = "" if args.data_root == Path("DFL2Ldata") else f" --data_root {args.data_root}"
    names = dict.fromkeys(name for name in (args.dataset, args.testdataset) if name)
    for domain in dict.fromkeys(spec for name in names for spec in get_domains(name)):
        if not all(csv_path(domain, split, args.data_root).is_file() for split in SPLITS):
            steps.append(
                f"put the images of {domain.name} into {args.data_root / domain.folder} (DFL2Ldata/README.md) and run "
                f"python write_file/{domain.script}{elsewhere}"
            )
    if needs_teachers and not args.teachers and not args.pretrained_path_prefix:
        for spec, arch in pool_specs(args):
            if not (pool_folder(args, spec, arch) / "teachers.csv").is_file():
                steps.append(f"train the teachers: {pretrain_command(args, spec, arch)}")
    return steps
