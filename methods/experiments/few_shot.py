"""Few-shot learning: what its methods have in common, and the experiment that wires, validates, evaluates and keeps."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch

from datasets.episodes import Episodes, EpisodeShape
from datasets.own import get_domains, is_own
from datasets.registry import DATA_ROOT, HALF, SPLITS, DatasetSpec
from datasets.split import class_names_of, csv_path
from methods import short_name
from methods.evaluation.calibration import EPISODES, calibration, first_episodes, one_shot_temperature
from methods.evaluation.exams import Exam, examine
from methods.evaluation.judge import check_judged, sets_of
from methods.experiments.few_shot_flags import add_few_shot_flags
from methods.experiments.ground import ground_of, kept_form
from methods.experiments.method import Method
from methods.inversion.pseudo_batch import PseudoBatch
from methods.memory.bank import MemoryBank
from methods.metalearners import get_metalearner
from methods.metalearners.base import COMPILER, Metalearner
from methods.metalearners.learner import Learner, LearnerSpec
from methods.metalearners.outer import OuterStep
from methods.metalearners.protonet import ProtoNet
from methods.services.api import NO_LIMITS, api_of
from methods.teachers.ensemble import AskedTeachers
from methods.teachers.manifest import (
    TeacherRow,
    add_pool_flags,
    as_place,
    find_rows,
    pool_folder,
    pool_specs,
    pretrain_command,
)
from methods.teachers.pool import TeacherPool, add_teacher_flags
from utils import seed
from utils.errors import UserError
from utils.metrics import Score
from utils.names import look_alikes, shown


class FewShotMethod(Method):
    """A method that ends with a learner: `Method(args, teachers, spec)`, with the spec of the learner."""

    TASK = "few_shot"
    NEEDS_TEACHERS: ClassVar[bool] = True
    TEACHER_EPOCHS: ClassVar[int | None] = None  # the paper's, where they are not the image set's
    COUNTS_EPISODES: ClassVar[bool] = False  # whether the paper types the length of a run in episodes
    SUMS_EPISODES: ClassVar[bool] = False  # whether the outer loss is the sum over episodes (see OuterStep)
    memory: MemoryBank  # of the methods whose STATE has it

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        super().__init__(args, teachers, spec)
        self.learner = self.outcome = Learner(spec, self.device)  # what is trained, and what a run keeps
        compiled = args.compile == "on" or (args.compile == "auto" and self.device.type == "cuda")
        self.metalearner = get_metalearner(args.metalearner)(
            self.learner.network,
            args.inner_lr,
            execution="vmap" if compiled or self.device.type != "cpu" else "loop",
            inductive=args.inductive,
            compiler=COMPILER if compiled else None,
        )
        self.outer = OuterStep(
            self.learner, self.metalearner, args.outer_lr, args.inner_steps, args.first_order, self.SUMS_EPISODES
        )
        self.shape = EpisodeShape(args.way_train, args.shot_train, args.query_train)

    @classmethod
    def looks_inside(cls, args: argparse.Namespace) -> bool:
        """Whether the method needs more of its teachers than their answers."""
        return True

    def score(self, exam: Exam) -> Score:
        """The learner's score on the episodes of one exam."""
        return examine(self.learner, self.metalearner, exam, self.args.test_inner_steps)

    def recover(self, teacher_ids: list[int]) -> list[PseudoBatch]:
        """Fresh pseudo-images of some teachers, leaving the run as it is."""
        raise NotImplementedError


class FewShotExperiment:
    """One run of a few-shot method: finds teachers and exams, builds the method, and does all but train.

    Raises `UserError`, before any work is done, for whatever is missing, with the commands that make it.
    """

    EARLIER: ClassVar[dict[str, Any]] = {"readout": ["plain"]}  # what runs did before there was the flag

    def __init__(self, method_class: type[FewShotMethod], args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        steps = missing_steps(args, method_class)
        if steps:
            raise UserError("first " + "; then ".join(steps))
        rows = find_rows(args) if method_class.NEEDS_TEACHERS else []
        self.domains = get_domains(args.dataset, args.data_root) if args.dataset else []
        self.exam_domains = get_domains(args.testdataset, args.data_root) if args.testdataset else self.domains
        self.teachers = TeacherPool(rows, device, args.class_order, api_of(args))
        self.spec = kept_form(learner_spec(args, self.domains, rows), args.evaluate)
        self.exams = self._exams(method_class.TRAINS and not args.evaluate)
        self.known = self._known_to_teachers()
        self.teachers.check(method_class.looks_inside(args), method_class.TRAINS)
        self.stands_on = ground_of(self.teachers, self.spec, self.domains, args.data_root)
        if args.judge:
            if method_class.recover is FewShotMethod.recover:
                raise UserError(f"--judge: {args.method} recovers no images")
            check_judged(self.teachers, sets_of(self.domains), args.data_root)
        self.method = method_class(args, self.teachers, self.spec)
        if not method_class.TRAINS:
            self._read_out()

    def _exams(self, validates: bool) -> dict[str, list[Exam]]:
        """The exams of meta_test, and of meta_val where it selects; missing lists and splits that are too small show here."""
        args, size = self.args, self.spec.image_size
        shape = EpisodeShape(args.way_test, args.shot_test, args.query_test)
        counts = {"meta_val": args.episode_val} if validates and args.select_on == "meta_val" else {}
        exams = {
            split: [Exam(domain, split, args.data_root, size, shape, count) for domain in self.exam_domains]
            for split, count in (counts | {"meta_test": args.episode_test}).items()
        }
        for exam in (exam for some in exams.values() for exam in some):
            _ = exam.indices
        return exams

    def _known_to_teachers(self) -> list[str]:
        """Classes of meta_test that a teacher was trained on; a note on stderr names them, for they are no new classes."""
        learnt = {name for row in self.teachers.rows for name in row.class_names}
        examined = {name for exam in self.exams["meta_test"] for name in exam.split.class_names}
        known = sorted(examined & learnt)
        for domain in dict.fromkeys(exam.spec for exam in self.exams["meta_test"]):
            own = {name for row in self.teachers.rows if row.dataset == domain.name for name in row.class_names}
            if not own:
                continue
            if strange := own - {name for split in SPLITS for name in class_names_of(domain, split, self.args.data_root)}:
                said = f"{domain.name} has no folder of {shown(sorted(strange))}, which its teachers know: was one renamed?"
                print(f"note: {said} Then scores may not be on new classes alone", file=sys.stderr)
        alike = [pair for pair in look_alikes({*learnt, *examined}) if len({*pair} & learnt) == 1]
        for first, second in alike:
            print(
                f"note: {first} and {second}, of a teacher and of meta_test, look alike: are they one class?", file=sys.stderr
            )
        if known:
            number = f"{len(known)} classes of meta_test by name ({shown(known)})"
            print(f"note: teachers know {number}: scores are not on new classes alone", file=sys.stderr)
        return known

    @staticmethod
    def add_flags(parser: argparse.ArgumentParser, method_class: type[FewShotMethod]) -> None:
        """The flags that all few-shot methods share."""
        add_pool_flags(parser)
        parser.set_defaults(dataset=None)
        add_teacher_flags(parser)
        parser.add_argument("--pretrain", action="store_true", help="train the teachers and stop, as the papers type it")
        add_few_shot_flags(parser, method_class.COUNTS_EPISODES)

    @staticmethod
    def finish_args(method_class: type[FewShotMethod], args: argparse.Namespace) -> None:
        """Fill what depends on other flags; raise `UserError` for values that contradict each other."""
        if args.start_id != 1:
            raise UserError(f"--start_id {args.start_id}: a run goes on with --resume runs/<name>, which restores everything")
        if args.pretrain and (args.dry_run or args.seeds):
            raise UserError(
                "--pretrain trains the teachers and stops, which python pretrain.py does, too: leave out --dry_run and --seeds"
            )
        if args.pretrain and args.teachers:
            raise UserError("--pretrain trains teachers and --teachers names some that are there: leave one of them out")
        if args.dataset is None and not args.teachers:
            args.dataset = "cifar100"
        name_own_sets(args)
        if args.shot_test is None:
            args.shot_test = args.shot_train
        if args.select_on == "pseudo" and "memory" not in method_class.STATE:
            raise UserError(f"--select_on pseudo: {args.method} keeps no bank of pseudo-images to draw episodes from")
        check_readout(args)
        asks = "query_budget" in args or not method_class.looks_inside(args)
        if api_of(args) != NO_LIMITS and not asks:
            raise UserError(
                f"--api_dtype, --answers and --digits limit what black boxes say, and {args.method} as it is typed asks none: "
                "chorus does, bidf_mkd with --ZO, teacher_ncm with --ncm_on answers"
            )
        method_class.finish_args(args)

    @staticmethod
    def restore_args(args: argparse.Namespace) -> None:
        """Turn what args.json holds as text into what the flags give; raise `UserError` for a change that cannot be."""
        check_readout(args)
        name_own_sets(args)
        args.teachers = [as_place(str(place)) for place in args.teachers] if args.teachers else None

    @staticmethod
    def default_name(method_class: type[FewShotMethod], args: argparse.Namespace) -> str:
        """A name for the run directory that says what the run is."""
        data = Path(args.dataset).name if args.dataset else Path(args.teachers[0]).stem
        return f"{short_name(args.method)}-{data}-{args.way_train}w{args.shot_train}s-{args.backbone}"

    @property
    def num_iterations(self) -> int:
        """Outer updates or the paper's epochs; 0 for a method that trains nothing."""
        if not self.method.TRAINS:
            return 0
        args = self.args
        return max(1, args.episode_train // args.episode_batch) if self.method.COUNTS_EPISODES else args.epochs

    @property
    def val_interval(self) -> int:
        """Iterations between validations."""
        args = self.args
        return max(1, args.val_interval // args.episode_batch) if self.method.COUNTS_EPISODES else args.val_interval

    def plan(self) -> list[str]:
        """What a dry run says about what is there."""
        learner = self.method.learner if isinstance(self.method.outcome, AskedTeachers) else self.method.outcome
        numbers = sum(value.numel() for value in learner.params.values())
        lines = [
            f"the learner: {learner.spec.arch}, {numbers:,} numbers, {learner.spec.way} outputs, "
            f"images of {learner.spec.image_size} pixels"
        ]
        if len(self.teachers):
            sizes = ", ".join(str(size) for size in sorted({row.image_size for row in self.teachers.rows}))
            classes = len(self.teachers.class_names)
            lines.append(f"teachers found: {len(self.teachers)}, classes: {classes}, images of {sizes} pixels")
        return lines

    def validate(self) -> dict[str, Score]:
        """The scores whose mean selects what is kept, by what they are; none: the last iteration is kept."""
        self._read_out()
        select_on = self.args.select_on
        if select_on == "last":
            return {}
        if select_on == "pseudo":
            return {"pseudo": self._pseudo_score()} if self.method.memory.ready_for(self.method.shape) else {}
        return {f"{select_on}/{name}": score for name, score in self.evaluate(select_on).items()}

    def evaluate(self, split: str) -> dict[str, Score]:
        """Scores on a split, by image set."""
        with self.method.clock("evaluation"):
            return {exam.spec.name: self.method.score(exam) for exam in self.exams[split]}

    def _read_out(self) -> None:
        """Give the learner, as it now is, the read-out that --readout names."""
        method, learner = self.method, self.method.outcome
        reader = get_metalearner(self.args.metalearner)(learner.network)
        if not isinstance(reader, ProtoNet) or isinstance(learner, AskedTeachers):
            return
        with method.clock("evaluation"):
            learner.readout = reader.fit_readout(self.args.readout, learner, self.mirrors)

    @property
    def mirrors(self) -> bool:
        """Whether mirror images may be read, in every image set of the run."""
        return self.teachers.mirrors([*self.domains, *self.exam_domains])

    def _pseudo_score(self) -> Score:
        """The learner's score on episodes of memory: what can be known where there are no real images."""
        method, args = self.method, self.args
        params, reader = method.learner.frozen, method.metalearner.reading(method.outcome.readout)
        accuracies: list[torch.Tensor] = []
        with method.clock("evaluation"), torch.no_grad():
            while len(accuracies) < args.episode_val:
                episode = method.memory.sample_episodes(1, method.shape, method.learner)
                accuracies.append(reader.outer_loss(params, episode, args.test_inner_steps, create_graph=False)[1])
        return Score(torch.cat(accuracies).tolist())

    def as_used(self) -> Metalearner:
        """How a user reads what was learnt: one query's answer does not depend on others."""
        learner = self.method.outcome
        made = get_metalearner(self.args.metalearner)(learner.network, self.args.inner_lr, inductive=True)
        return made.reading(learner.readout)

    def one_shot_temperature(self) -> float | None:
        """The temperature of answers after one image a class, by episodes of what selects; None where that is nothing."""
        args, method = self.args, self.method
        count, size = min(EPISODES, args.episode_val), self.spec.image_size
        shape = EpisodeShape(args.way_test, 1, args.query_test)
        pseudo = EpisodeShape(args.way_train, 1, args.query_train)
        episodes: Iterable[Episodes]
        if args.select_on == "meta_val" and self.exam_domains:
            exams = [Exam(domain, "meta_val", args.data_root, size, shape, count) for domain in self.exam_domains]
            try:
                _ = [exam.indices for exam in exams]
            except UserError:  # another set's, of --evaluate, may be too small, or missing
                return None
            episodes = (episode for exam in exams for episode in first_episodes(exam, method.outcome))
        elif args.select_on == "pseudo" and method.memory.ready_for(pseudo):
            episodes = (method.memory.sample_episodes(1, pseudo, method.learner) for _ in range(count))
        else:
            return None
        with method.clock("calibration"), seed.kept(args.seed):
            return one_shot_temperature(method.outcome, self.as_used(), episodes, args.test_inner_steps)

    def calibration(self, one_shot: float) -> dict[str, dict[str, float]]:
        """How sure answers are beside how right, on meta_test, by image set (`methods.evaluation.calibration`)."""
        method, steps = self.method, self.args.test_inner_steps
        with method.clock("calibration"):
            return {
                exam.spec.name: calibration(
                    method.outcome, self.as_used(), first_episodes(exam, method.outcome), steps, one_shot
                )
                for exam in self.exams["meta_test"]
            }

    def best_state(self) -> dict[str, Any]:
        """What `best.pt` holds of the present iteration: what was learnt, and all that using it needs."""
        args = self.args
        return {
            "learner": self.method.outcome.state_dict(),
            "metalearner": args.metalearner,
            "inner_lr": args.inner_lr,
            "test_inner_steps": args.test_inner_steps,
            "readout": args.readout,
            "class_names": self.teachers.class_names,
        }

    def load_best(self, state: dict[str, Any]) -> bool:
        """Go back to what was kept. Whether the learner is read anew: with another --readout, or for a set of letters."""
        learner = self.method.outcome
        learner.load_state_dict(state["learner"])
        anew = state.get("readout", ["plain"]) != self.args.readout or (learner.readout.mirror and not self.mirrors)
        if anew:
            self._read_out()
        return anew


def check_readout(args: argparse.Namespace) -> None:
    """Raise `UserError` where the learner does not decide by class means, which alone can be read otherwise."""
    if args.readout != ["plain"] and not issubclass(get_metalearner(args.metalearner), ProtoNet):
        raise UserError(
            f"--readout {' '.join(args.readout)}: {args.metalearner} decides by a head; --metalearner protonet or ncm "
            "decide by class means, which can be read otherwise"
        )


def learner_spec(args: argparse.Namespace, domains: list[DatasetSpec], rows: list[TeacherRow]) -> LearnerSpec:
    """The learner's network, image size and normalisation: the set's; without one set half and half, and 84 pixels, or what
    teachers share."""
    size, form = 84, HALF
    if len(domains) == 1:
        size, form = domains[0].image_size, (domains[0].mean, domains[0].std)
    elif not domains and len(sizes := {row.image_size for row in rows}) == 1:
        size = sizes.pop()
    return LearnerSpec(args.backbone, args.way_train, args.image_size or size, *form, global_pool=len(domains) > 1)


def name_own_sets(args: argparse.Namespace) -> None:
    """Write out the folders among --dataset and --testdataset: they are the same when the run goes on elsewhere."""
    for name in ("dataset", "testdataset"):
        if (place := getattr(args, name)) and is_own(place):
            setattr(args, name, str(Path(place).expanduser().resolve()))


def missing_steps(args: argparse.Namespace, method_class: type[FewShotMethod]) -> list[str]:
    """What must be done before this command line can run, in order, with the commands."""
    steps = []
    elsewhere = "" if args.data_root == DATA_ROOT else f" --data_root {args.data_root}"
    names = dict.fromkeys(name for name in (args.dataset, args.testdataset) if name)
    for domain in dict.fromkeys(spec for name in names for spec in get_domains(name, args.data_root)):
        if domain.root is None and not all(csv_path(domain, split, args.data_root).is_file() for split in SPLITS):
            steps.append(
                f"put the images of {domain.name} into {args.data_root / domain.folder} (DFL2Ldata/README.md) and run "
                f"python write_file/{domain.script}{elsewhere}"
            )
    if method_class.NEEDS_TEACHERS and not args.teachers and not args.pretrained_path_prefix:
        for spec, arch in pool_specs(args):
            if not (pool_folder(args, spec, arch) / "teachers.csv").is_file():
                steps.append(f"train the teachers: {pretrain_command(args, spec, arch, method_class.TEACHER_EPOCHS)}")
    return steps
