"""BiDf-MKD: Learning to Learn from APIs, black-box data-free meta-learning (Hu et al., ICML 2023).

The teachers are services: nothing is had of them but probabilities. A service is inverted by gradients that are estimated
from its answers (`--ZO`) into a support set; the learner takes an inner loop of distillation on it; a query set is then
inverted at the border between the service and the learner as adapted; and the learner moves by the distillation loss of
the adapted learner on the query set, through the inner loop. Both sets enter memory. The other tasks of an outer step are
episodes of memory; a new service comes when `--generate_interval` updates in a row brought no better accuracy. The sum over
an outer step's tasks goes into one Adam: beside three episodes a service's distillation is a small part of it.

Without `--ZO` the teachers are white boxes and the gradients true; all else is the same.

Deviations
----------
From the released code:
- Images live in the service's space, [0, 1] at its own size; `--mu` is multiplied by the image set's mean standard
  deviation, so that it means the paper's step in normalised pixels.
- The loss whose gradient is estimated is that of each image; the images kept are the best by the true loss.
- A service gives probabilities, of which none counts as less than 1e-6; the code reads its logits.
- The divergence is averaged over images, from log-probabilities; the code feeds probabilities and averages over entries.
- `--adv 1` is another strength: without `--ZO` the code feeds probabilities to `F.kl_div`, with the learner as target and
  constant; for services it takes the L1 distance of logits, and the mask of agreement anew at each step. Ours is
  -KL(t || s) of log-probabilities, the mask held, with the gradient through the learner too (`--adv_detach` stops that).
- The images of a service that are kept are those of the lowest true loss; the code compares mean_b sum(x g), g the estimated
  gradient.
- Every image is cropped and mirrored by itself; the code crops a whole batch alike.
- A fresh generator begins as PyTorch draws it; the code's at N(0, .02), scales of normalisations at N(1, .02).
- Bytes in memory are rounded; the code truncates them.
- With several image sets the learner's images have one size, 84, and one normalisation; the code tests each set at its own.
Our own:
- `--zo_estimator antithetic` looks both ways along half as many directions, for as many queries.
- `--query_budget` ends inversion when it is spent; meta-training goes on with memory.
- `--augment` augments pseudo-images in meta-training, as for FREE.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.distillation.divergences import kl_divergence
from methods.experiments.few_shot import FewShotMethod
from methods.experiments.few_shot_flags import add_replay_flags
from methods.inversion.by_generator import add_descent_flags, descent_of, fresh, invert_each, mean_loss
from methods.inversion.pseudo_batch import PseudoBatch
from methods.inversion.terms import TERMS, Logits, add_term_flags, inversion_loss, weights_of
from methods.inversion.zeroth_order import ZerothOrder, black_box_loss, least_mu, radius_of
from methods.memory.bank import BATCHES_KEPT, MemoryBank
from methods.memory.replay import Replay
from methods.metalearners.base import Params, gradient_at
from methods.metalearners.learner import LearnerSpec
from methods.services.api import NO_LIMITS, api_of
from methods.services.black_box import BlackBox, add_black_box_flags, log_answers
from methods.services.meter import Meter
from methods.teachers.pool import TeacherPool
from methods.teachers.teacher import Teacher
from utils import cli
from utils.errors import BudgetSpent, UserError
from utils.images import Grid
from utils.metrics import Patience
from utils.precision import full_precision


class BiDfMKD(FewShotMethod):
    PAPER = "Hu et al., Learning to Learn from APIs: Black-Box Data-Free Meta-Learning (BiDf-MKD), ICML 2023"
    COUNTS_EPISODES = True
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {
        "episode_train": 240_000,
        "episode_batch": 4,
        "val_interval": 2_000,
        "patience": 200,
        "inversion_steps": 200,
        "zlr": None,  # the latents share the generator's Adam
    }
    QUICK: ClassVar[dict[str, Any]] = {
        "episode_train": 1_200, "val_interval": 200, "patience": 20, "q": 20, "inversion_steps": 60, "num_sup_kd": 10,
        "num_qur_kd": 10, "Glr": 5e-3, "zlr": 1e-2, "advstartit": -1, "augment": True,
    }  # fmt: skip
    STATE = ("outer", "memory", "patience", "meter", "progress")
    SUMS_EPISODES = True

    @classmethod
    def looks_inside(cls, args: argparse.Namespace) -> bool:
        return not args.ZO

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One outer step on a batch of tasks: the first is a new service when it is time for one, the others are memory's."""
        drawn, episodes = None, self.args.episode_batch
        numbers: dict[str, float] = {}
        if self.progress.due and not self.progress.out_of_budget:
            drawn = self.learn_from_a_service(iteration)
        total: Params = {name: torch.zeros_like(value) for name, value in self.learner.params.items()}
        accuracies: list[float] = []
        if drawn is not None:
            total, accuracy, numbers = drawn
            episodes -= 1
            accuracies.append(accuracy)
        if episodes and self.replay.ready:
            with self.clock("meta-training"):
                gradient, loss, accuracy = self.outer.gradient(self.replay.episodes(episodes))
            total = {name: total[name] + value for name, value in gradient.items()}
            accuracies += [accuracy] * episodes
            numbers["loss"] = loss
        self.outer.follow(total)
        numbers["accuracy"] = sum(accuracies) / len(accuracies)
        exhausted = self.patience.note(numbers["accuracy"])
        self.progress.due = exhausted or not self.replay.ready
        return numbers | ({"queries": float(self.meter.queries)} if self.args.ZO else {})

    def prepare(self, folder: Path) -> str:
        self.meter.keep(folder)
        return ""

    def learn_from_a_service(self, iteration: int) -> tuple[Params, float, dict[str, float]] | None:
        """Bi-level distillation from one service: the outer gradient, the accuracy on the query set, and numbers to log.

        Nothing comes back where the budget of queries ends it.
        """
        args, params = self.args, self.learner.params
        teacher = self.open(int(torch.randint(len(self.teachers), ())), self.meter)
        try:
            with self.clock("generation"):
                support, lowest = self.invert(teacher, args.num_sup_kd)
            with self.clock("meta-training"):  # the inner loop
                loss = partial(self.distillation_loss, support, self.answers(teacher, support))
                adapted = self.metalearner.adapted_by(loss, params, args.inner_update_num_kd, not args.first_order)
            with self.clock("generation"):  # the boundary query set
                fixed = {name: value.detach() for name, value in adapted.items()}
                harder = iteration > args.advstartit
                query, _ = self.invert(teacher, args.num_qur_kd, fixed if harder else None)
            with self.clock("meta-training"):  # through the inner loop
                outer_loss = self.distillation_loss(query, self.answers(teacher, query), adapted)
                gradient = gradient_at(params, outer_loss)
        except BudgetSpent as spent:
            self.progress.out_of_budget = True
            if not self.replay.ready:
                raise UserError(
                    f"{spent}, and memory cannot fill an episode yet: raise it, or lower --q or the steps"
                ) from spent
            return None
        with torch.no_grad():
            hits = self.metalearner.call(fixed, self.learner.prepare(query.images)).argmax(1) == query.labels
        numbers = {"inversion_loss": lowest, "distillation_loss": float(outer_loss.detach())}
        return gradient, float(hits.double().mean()), numbers

    def distillation_loss(self, batch: PseudoBatch, answers: Tensor, params: Params) -> Tensor:
        """KL(t(x) || s(x)) of the learner under `params`."""
        return kl_divergence(answers, self.metalearner.call(params, self.learner.prepare(batch.images)))

    def invert(self, teacher: Teacher | BlackBox, per_class: int, against: Params | None = None) -> tuple[PseudoBatch, float]:
        """A set of pseudo-images, kept in memory, and the lowest loss.

        At the border with the learner under `against`, where that is given.
        """
        student = None if against is None else partial(self.learner.logits, params=against)
        found = invert_each([teacher], per_class, fresh(self.device), partial(self.loss, student=student), self.descent)
        self.memory.add(found[0].batch)
        self.progress.recovered += len(found[0].batch.images)
        return found[0].batch, mean_loss(found)

    def loss(self, teacher: Teacher | BlackBox, images: Tensor, labels: Tensor, student: Logits | None) -> Tensor:
        """CE(t(x), y) + adv * adversarial(t(x), s(x)) on augmented images x; of a service, with an estimated gradient."""
        args, augment = self.args, self.teachers.augmentation
        if isinstance(teacher, Teacher):
            return inversion_loss(self.weights, teacher, augment(images), labels, student)
        estimator = ZerothOrder(radius_of(args.mu, teacher.std), args.q, args.numsplit, args.zo_estimator == "antithetic")
        with full_precision(self.device):  # whatever the generator runs in
            x = augment(images.to(torch.get_default_dtype()))
            return black_box_loss(self.weights, teacher, x, labels, estimator, student)

    def open(self, teacher_id: int, meter: Meter) -> Teacher | BlackBox:
        """As much of a teacher as the run may see, and as many of its classes as the learner has."""
        pool, way = self.teachers, self.args.way_train
        if self.args.ZO:
            return pool.black_box(teacher_id, meter).narrowed(way)
        return pool[teacher_id].narrowed(way)

    def answers(self, teacher: Teacher | BlackBox, batch: PseudoBatch) -> Tensor:
        """Logits (M, N) of a teacher, or as good as that, for its own images."""
        if isinstance(teacher, BlackBox):
            return log_answers(teacher.query(batch.images))
        with torch.no_grad():
            return teacher(batch.images)

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        super().__init__(args, teachers, spec)
        teachers.check_fit(args.way_train)
        self.weights, self.descent = weights_of(args), descent_of(args)
        capacity = BATCHES_KEPT * (args.num_sup_kd + args.num_qur_kd) // 2  # one ring for support and query sets, in turn
        self.memory = MemoryBank(len(teachers.class_names), capacity, spec.image_size, self.device)
        self.replay = Replay.of(args, self.outer, self.memory, self.shape, teachers.augmentation)
        self.patience = Patience(args.patience)
        self.meter = Meter(args.query_budget, self.clock)
        self.progress = Standing()
        for teacher_id, row in enumerate(teachers.rows if args.ZO else []):
            least = least_mu(row.image_size, row.std)
            if args.mu < least and teachers.takes_bytes(teacher_id):
                raise UserError(
                    f"--mu {args.mu}: a service that takes 8-bit images of {row.image_size} pixels sees no step that small; "
                    f"try --mu {least:.2g} or more"
                )

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        add_descent_flags(group)
        group.add_argument("--ZO", action="store_true", help="the teachers are black boxes: gradients are estimated")
        group.add_argument("--mu", type=cli.rate, default=0.005, help="length of a step, in normalised pixels")
        group.add_argument("--q", type=cli.count, default=100, help="queries of an image for one gradient")
        group.add_argument(
            "--numsplit", type=cli.count, help="parts in which an estimate's queries are sent (default: as memory allows)"
        )
        group.add_argument(
            "--zo_estimator",
            choices=("forward", "antithetic"),
            default="forward",
            help="steps in a direction, or also against it",
        )
        add_term_flags(group, ce=1.0, adv=1.0)
        group.add_argument(
            "--advstartit", type=cli.whole(-1), default=4_000, help="outer update after which the adversarial term counts"
        )
        group.add_argument("--num_sup_kd", type=cli.count, default=30, help="pseudo-images of a class in a support set")
        group.add_argument("--num_qur_kd", type=cli.count, default=30, help="pseudo-images of a class in a query set")
        group.add_argument("--inner_update_num_kd", type=cli.count, default=10, help="inner steps of distillation")
        add_black_box_flags(group)
        add_replay_flags(group)

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        inside = [term.flag for name, term in TERMS.items() if name not in ("ce", "adv") and getattr(args, term.flag)]
        if args.ZO and inside:
            raise UserError(
                f"--ZO --{inside[0]}: a service gives answers alone, to which this term would have to look inside; leave it out"
            )
        if not args.ZO and (args.query_budget or api_of(args) != NO_LIMITS):
            raise UserError(
                "--query_budget, --api_dtype, --answers and --digits are about black boxes, which teachers become by --ZO alone"
            )

    def recover(self, teacher_ids: list[int]) -> list[PseudoBatch]:
        """Support sets as the run makes them; what a black box is asked for them counts apart."""
        loss, found = partial(self.loss, student=None), []
        for teacher_id in teacher_ids:
            teacher = self.open(teacher_id, Meter())
            found += invert_each([teacher], self.args.num_sup_kd, fresh(self.device), loss, self.descent)
        return [one.batch for one in found]

    def pictures(self) -> dict[str, Grid]:
        return self.memory.picture(self.teachers.class_names)

    def summary(self) -> dict[str, Any]:
        args = self.args
        images = args.way_train * (args.num_sup_kd + args.num_qur_kd)
        summary: dict[str, Any] = {"inversion_of_one_teacher": {"images": images, "steps": args.inversion_steps}}
        if args.ZO:
            estimate = ZerothOrder(args.mu, args.q, antithetic=args.zo_estimator == "antithetic")
            each = args.inversion_steps * (1 + estimate.asked) + 1  # a gradient at each step, and the answers to learn from
            visit = {"queries_of_a_visit": images * each}
            summary["asked_of_services"] = visit | self.meter.report(
                self.progress.recovered, args.price_per_1000, bool(self.teachers.servers)
            )
        return summary


@dataclass
class Standing:
    """Where the run stands: whether a new service is due, whether the budget of queries is spent, images recovered."""

    due: bool = True
    out_of_budget: bool = False
    recovered: int = 0

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
