"""TEAPOT: Task-Distributionally Robust Data-Free Meta-Learning (Hu et al., arXiv 2311.14756; TPAMI 2025).

A learner that meets teachers in turn leans to the newest tasks, and teachers may lie about their labels. A round begins with a
few teachers: each gives a support and a query set, which are kept in memory under the classes that the teacher claims, and the
learner is distilled on those tasks. Until the round ends, because the accuracy rises no more, it learns tasks of memory, plain
ones and interpolations of two; and where teachers are not to be trusted, a policy learns whom to ask.

Deviations
----------
From the released code (its method `taco`):
- A task is distilled from its own teacher; the code asks the last of the four about all tasks.
- Rounds, and rewards of the policy, go by the accuracy on the pseudo-tasks of an update (`--reward pseudo`); the code looks at
  four real episodes of meta_val at every update (`--reward meta_val`), which is marked.
- The learner is picked on meta_val; the code looks at meta_test every 200 updates and keeps the best.
- Every image is cropped and mirrored by itself; the code crops and mirrors a batch alike.
- Bytes in memory are rounded; the code truncates them.
- The gradient of a round's policy is written down and not differentiated; rewards 0 and 1 (`--rewardType`), rounds of a fixed
  length (`--earlyStop 0`), a policy network (`--scheduleScheduler`), and the method `reject` are not here.
"""

import argparse
import sys
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.episodes import Episodes, EpisodeSampler, make_episodes
from datasets.own import get_domains
from datasets.registry import is_mix
from datasets.split import load_split
from methods.distillation.divergences import kl_divergence
from methods.experiments.few_shot import FewShotMethod
from methods.experiments.few_shot_flags import add_teacher_batch_flag
from methods.experiments.settings import Setting
from methods.inversion.by_generator import Descent, Start, add_descent_flags, invert_each, mean_loss
from methods.inversion.pseudo_batch import PseudoBatch, labels_of
from methods.inversion.terms import add_term_flags, inversion_loss, weights_of
from methods.memory.tasks import TaskMemory
from methods.metalearners.base import Params, class_means, gradient_at
from methods.metalearners.learner import LearnerSpec
from methods.teachers.policy import TeacherPolicy
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from models.generator import ConditionalGenerator
from utils import cli
from utils.errors import UserError
from utils.images import Grid
from utils.metrics import Patience


class TEAPOT(FewShotMethod):
    PAPER = "Hu et al., Task-Distributionally Robust Data-Free Meta-Learning (TEAPOT), arXiv 2311.14756"
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {
        "epochs": 60_000,
        "val_interval": 200,
        "episode_batch": 4,
        "metalearner": "protonet",
        "bn": 1.0,
        "inner_steps": 2,
        "inversion_steps": 200,
    }
    SETTINGS = (Setting({"dataset": "flower", "shot_train": 5}, {"query_train": 11}),)
    TEACHER_EPOCHS = 60
    QUICK: ClassVar[dict[str, Any]] = {
        "epochs": 300, "val_interval": 50, "patience": 20, "inversion_steps": 30, "Glr": 5e-3, "bn": 0.03,
    }  # fmt: skip
    STATE = ("outer", "tasks", "patience", "policy")

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One update: the first of a round on new tasks, the others on tasks of memory."""
        numbers: dict[str, float] = {}
        if self.patience.anew or not self.tasks.ready:
            with self.clock("generation"):
                tasks, numbers["inversion_loss"] = self.new_tasks()
            with self.clock("meta-training"):
                found = [self.distilled(*task) for task in tasks]
                numbers |= (
                    self.follow(found)
                    if self.args.distil
                    else {"accuracy": float(torch.stack([hits for _, hits in found]).mean())}
                )
        else:
            with self.clock("meta-training"):
                numbers |= self.follow([self.remembered() for _ in range(self.args.episode_batch)])
        reward = numbers["accuracy"] if self.args.reward == "pseudo" else self.accuracy_on_meta_val()
        ends = self.patience.note(reward)
        if self.args.schedule_weight:
            self.policy.note(reward, iteration + 1, ends)
        return numbers

    def new_tasks(self) -> tuple[list[tuple[Teacher, PseudoBatch, PseudoBatch]], float]:
        """Teachers, uniformly or by the policy, each with a support and a query set, which enter the memory."""
        args, anybody = self.args, torch.randint(len(self.teachers), (self.args.teacher_batch,)).tolist()
        chosen = self.policy.choose(args.teacher_batch) if args.schedule_weight else anybody
        teachers = self.teachers.some(chosen, args.way_train)
        support, query = (self.invert(teachers, per_class) for per_class in (self.shape.shot, self.shape.query))
        tasks = list(zip(teachers, [one.batch for one in support], [one.batch for one in query], strict=True))
        for _, *sets in tasks:
            self.tasks.add(*sets)
        return tasks, mean_loss([*support, *query])

    def invert(self, teachers: list[Teacher], per_class: int) -> list[Any]:
        """Each by a conditional generator of its own, whose latents stay."""
        return invert_each(teachers, per_class, self.conditional(per_class), self.loss, self.descent)

    def conditional(self, per_class: int) -> Start:
        """A conditional generator, drawn anew for every teacher."""

        def start(teacher: Teacher) -> ConditionalGenerator:
            return ConditionalGenerator(teacher.image_size, labels_of(teacher, per_class), teacher.way).redraw().to(self.device)

        return start

    def loss(self, teacher: Teacher, images: Tensor, labels: Tensor) -> Tensor:
        """CE(t(x), y) + bn * BN on augmented images x."""
        return inversion_loss(self.weights, teacher, self.teachers.augmentation(images), labels)

    def distilled(self, teacher: Teacher, support: PseudoBatch, query: PseudoBatch) -> tuple[Tensor, Tensor]:
        """KL(t(x) || s(x)) on the query set of the learner that has seen the support set, and how often it names the class."""
        params: Params = self.learner.params
        seen, asked = (self.learner.prepare(batch.images) for batch in (support, query))
        with torch.no_grad():
            told, wanted = teacher(support.images), teacher(query.images)

        def imitate(fast: Params) -> Tensor:
            return kl_divergence(told, self.metalearner.call(fast, seen))

        if self.metalearner.ADAPTS:  # where a head is adapted, by the teacher's answers and not by labels
            params = self.metalearner.adapted_by(imitate, params, self.args.inner_steps, not self.args.first_order)
        logits = self.metalearner.classify(params, seen, support.labels, asked, teacher.way)
        return kl_divergence(wanted, logits), _hits(logits, query.labels)

    def remembered(self) -> tuple[Tensor, Tensor]:
        """The loss of a task of memory, or, as often, of an interpolation of two, and the accuracy."""
        if float(torch.rand(())) >= 0.5:
            losses, hits = self.metalearner.outer_loss(
                self.learner.params, self.tasks.sample(1, self.learner), self.args.inner_steps, not self.args.first_order
            )
            return losses[0], hits[0]
        concentration = torch.tensor(0.5)
        share = float(torch.distributions.Beta(concentration, concentration).sample())
        return self.interpolated(self.tasks.sample(2, self.learner), share)

    def interpolated(self, tasks: Episodes, share: float) -> tuple[Tensor, Tensor]:
        """Cross entropy by class means of z = (1 - share) z_1 + share z_2, the features of two tasks, class j with class j."""
        params, metalearner = self.learner.params, self.metalearner

        def mixed(one: Tensor, other: Tensor) -> Tensor:
            return (1 - share) * one + share * other

        known = [metalearner.features(params, support) for support in tasks.support]
        sets = zip(tasks.support, tasks.query, strict=True)
        asked = [metalearner.together(metalearner.features, params, support, query) for support, query in sets]
        means = class_means(mixed(*known), tasks.support_labels[0], tasks.way)  # (N, D)
        logits = -(mixed(*asked)[:, None] - means[None]).square().sum(2)
        return F.cross_entropy(logits, tasks.query_labels[0]), _hits(logits, tasks.query_labels[0])

    def follow(self, tasks: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """A step of Adam along the gradient of the mean loss."""
        losses, hits = (torch.stack(list(part)) for part in zip(*tasks, strict=True))
        self.outer.follow(gradient_at(self.learner.params, losses.mean()))
        return {"loss": float(losses.detach().mean()), "accuracy": float(hits.mean())}

    def accuracy_on_meta_val(self) -> float:
        """Of real episodes, as many as an update has tasks."""
        assert self.sampler is not None
        indices = self.sampler.indices(self.args.episode_batch, torch.default_generator)
        support, query = (self.learner.prepare(self.real.images[part].to(self.device)) for part in indices)
        with torch.no_grad():
            episodes = make_episodes(support, query, self.shape.way)
            found = self.metalearner.outer_loss(self.learner.params, episodes, self.args.inner_steps, create_graph=False)[1]
        return float(found.mean())

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        super().__init__(args, teachers, spec)
        teachers.check_fit(args.way_train)
        self.weights = weights_of(args, without=("adv",))
        self.descent = Descent(args.inversion_steps, args.Glr, 0.0, precision=args.precision)
        sets = args.maxbatch if args.maxbatch % 2 else args.maxbatch // 2  # the two kinds take turns at a ring's places
        self.tasks = TaskMemory(len(teachers.class_names), sets, self.shape, spec.image_size, self.device)
        self.patience = Patience(args.patience)
        self.policy = TeacherPolicy(len(teachers), args.candidate_size or len(teachers), args.policy_lr)
        self.sampler: EpisodeSampler | None = None
        if args.reward == "meta_val":
            (domain,) = get_domains(args.dataset, args.data_root)
            self.real = load_split(domain, "meta_val", args.data_root, spec.image_size)
            self.sampler = EpisodeSampler(self.real, self.shape, f"{domain.name} meta_val")

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        add_descent_flags(group, latents=False)
        add_teacher_batch_flag(group)
        add_term_flags(group, without=("adv",), ce=1.0)
        group.add_argument(
            "--generate_interval", "--patience", dest="patience", type=cli.count, default=10,
            help="updates without a better accuracy before new teachers come",
        )  # fmt: skip
        group.add_argument(
            "--maxbatch", type=cli.count, default=20,
            help="sets kept of a class, half of them support sets; of an odd number as many of each, as in the released code",
        )  # fmt: skip
        group.add_argument("--noteacher", dest="distil", action="store_false", help="do not distil new tasks")
        group.add_argument(
            "--reward", choices=("pseudo", "meta_val"), default="pseudo",
            help="what rounds and the policy go by: pseudo-tasks, or real episodes as in the released code (which is marked)",
        )  # fmt: skip
        group.add_argument(
            "--scheduleWeight", "--schedule_weight", dest="schedule_weight", action="store_true", help="learn whom to ask"
        )
        group.add_argument(
            "--candidate_size",
            type=cli.count,
            help="of --scheduleWeight: teachers to choose from (default: all)",
        )
        group.add_argument(
            "--Slr", "--policy_lr", dest="policy_lr", type=cli.rate, default=0.1, help="rate of the policy (Adam)"
        )

        for name, reason in (("earlyStop", "a round ends by patience"), ("rewardType", "the policy steps each fourth update")):
            cli.without_effect(group, f"--{name}", type=int, choices=(2,), reason=f"{reason}, which is what 2 means")

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        if args.candidate_size and not args.schedule_weight:
            print("note: --candidate_size has no effect without --scheduleWeight: teachers are drawn from all", file=sys.stderr)
        if args.reward == "meta_val" and (args.dataset is None or is_mix(args.dataset)):
            raise UserError("--reward meta_val: real episodes are those of one image set; name it by --dataset")

    def recover(self, teacher_ids: list[int]) -> list[PseudoBatch]:
        """Query sets as the run makes them."""
        teachers = self.teachers.some(teacher_ids, self.args.way_train)
        return [one.batch for one in self.invert(teachers, self.shape.query)]

    def pictures(self) -> dict[str, Grid]:
        return self.tasks.picture(self.teachers.class_names)

    def summary(self) -> dict[str, Any]:
        images = self.args.way_train * (self.shape.shot + self.shape.query)
        marks = {"examined": "rounds end by real labels of meta_val"} if self.args.reward == "meta_val" else {}
        return {"inversion_of_one_teacher": {"images": images, "steps": self.args.inversion_steps}} | marks


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).to(logits.dtype).mean()
