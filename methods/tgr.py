"""TGR: Task Groupings Regularization, data-free meta-learning with heterogeneous pre-trained models (Wei et al., ICML 2024).

Before training each teacher is placed in a space of tasks by the Fisher information of a probe network on images
recovered from it, and spectral clustering of the dissimilarities puts unlike teachers into one group. Each iteration
inverts a few teachers of one group and takes one implicitly regularised step, which penalises that their gradients
disagree; then the learner is meta-trained on episodes of the memory bank, which mix classes of all teachers met so far.

Deviations
----------
From the released code:
- Groups are formed over the whole pool; with several image sets or architectures the code cuts the matrix to a block.
- The Fisher information squares each image's own gradient; squaring a batch's mean gradient is something else.
- `--gt_loss_weight` and `--kd_loss_weight` weigh the two terms of the regularised step.
Our own:
- `--probe`: the paper's probe is a ResNet-34 of ImageNet (`imagenet`), where its weights are at hand. The default needs
  no data from outside (`methods.teachers.probes`). It looks at images inverted pixel by pixel: a generator gives all
  teachers' images the same look, and then architectures cannot be told apart.
- `--grouping random` and `--grouping alike` are there to see what the paper's grouping is worth.
- `--augment` augments pseudo-images in meta-training, as for FREE.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from methods.distillation.losses import kl_divergence
from methods.few_shot import FewShotMethod, add_replay_flags
from methods.inversion.generator import FreshGenerator, InversionWeights, Settings, add_generator_flags, inversion_loss
from methods.inversion.pixel import PixelWeights, invert_alone
from methods.inversion.subjects import PseudoBatch
from methods.memory import BATCHES_KEPT, MemoryBank
from methods.metalearners.base import Params
from methods.metalearners.gradients import aligned_gradient, set_gradient
from methods.teachers.groups import GROUPINGS, dissimilarity, show_groups
from methods.teachers.pool import Teacher
from methods.teachers.probes import PROBES, Embedding, embed
from utils import checkpoint, cli, seed

PROBE_LR, PROBE_WEIGHTS = 0.1, PixelWeights(tv=1e-3, bn=0.1)  # of the pixels that the probe sees


class TGR(FewShotMethod):
    PAPER = (
        "Wei et al., Task Groupings Regularization: Data-Free Meta-Learning with Heterogeneous Pre-trained Models, ICML 2024"
    )
    SHARED_DEFAULTS: ClassVar[dict[str, Any]] = {
        "epochs": 1200,
        "episode_batch": 16,
        "patience": 4,
        "inversion_steps": 200,
        "bn": 1.0,
    }
    STATE = ("learner", "optimizer", "memory")

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        group.add_argument("--n_clusters", type=cli.count, default=5, help="groups of teachers")
        group.add_argument("--grouping", choices=tuple(GROUPINGS), default="unlike", help="which teachers share a group")
        group.add_argument(
            "--probe", choices=tuple(PROBES), default="pool", help="network that the teachers' images are shown to"
        )
        group.add_argument("--probe_images", type=cli.count, default=150, help="images of a teacher that the probe sees")
        group.add_argument("--probe_steps", type=cli.count, default=60, help="steps of inverting a teacher for the probe")
        group.add_argument("--teacher_batch", type=cli.count, default=4, help="teachers of an iteration")
        group.add_argument("--num_recover", type=cli.count, default=30, help="pseudo-images of a class")
        group.add_argument("--gt_loss_weight", type=float, default=1.0, help="weight of the cross entropy with the labels")
        group.add_argument("--kd_loss_weight", type=float, default=1.0, help="weight of the divergence from the teacher")
        group.add_argument("--displace_lr", type=float, default=1e-3, help="strength of the regularisation")
        add_generator_flags(group)
        add_replay_flags(group)

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        super().__init__(args, device)
        self.check_teachers_fit_the_head()
        weights = InversionWeights(args.oh, args.bn, adv=0.0)
        self.inverter = FreshGenerator(
            device,
            partial(inversion_loss, weights=weights, augment=self.augmentation),
            Settings(args.inversion_steps, args.Glr, args.zlr, precision=args.precision),
            args.together,
        )
        capacity = BATCHES_KEPT * args.num_recover
        self.memory = MemoryBank(len(self.teachers.class_names), capacity, self.image_size, device)
        self.optimizer = torch.optim.Adam(self.learner.params.values(), lr=args.outer_lr)
        self.probes = [] if args.evaluate else PROBES[args.probe](self.teachers, self.image_size)  # groups are for training
        self.groups = [list(range(len(self.teachers)))]  # until `prepare` has formed them

    def prepare(self, folder: Path) -> str:
        """Form the groups; writes groups.csv and images/dissimilarity.png."""
        with self.clock("grouping"):
            matrix = dissimilarity(self.embeddings())
            count = max(1, min(self.args.n_clusters, len(self.teachers) // 2))  # a teacher alone has nobody to align with
            self.groups = GROUPINGS[self.args.grouping](matrix, count, self.args.seed)
        title = f"dissimilarity, groups of {self.args.grouping} teachers"
        return show_groups(self.teachers.rows, matrix, self.groups, title, folder)

    def embeddings(self) -> list[Embedding]:
        """Each teacher's place in the space of tasks, computed once for all that enters it: files, probes, inversion.

        Every teacher's images start from the same noise, so that they differ by what the teachers know alone.
        """
        args, pool = self.args, self.teachers
        form = (self.learner.spec.mean, self.learner.spec.std)
        shared = [args.probe_images, args.probe_steps, args.seed, self.image_size, form]
        shared += [[PROBE_LR, asdict(PROBE_WEIGHTS)], [probe.fingerprint for probe in self.probes]]

        def compute(teacher_id: int) -> Embedding:
            teacher = pool[teacher_id]
            per_class = -(-args.probe_images // teacher.way)
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(args.seed)
                batch = invert_alone(
                    teacher, per_class, self.image_size, form, args.probe_steps, PROBE_LR, PROBE_WEIGHTS, self.device
                )
            images = batch.images[torch.linspace(0, len(batch.images) - 1, args.probe_images).long()]
            return embed(self.probes, images, teacher_id, seed.generator(args.seed, "probe"))

        found = []
        for teacher_id in tqdm(range(len(pool)), desc="task embedding", unit="teacher", leave=False):
            key = [pool.fingerprint_of(teacher_id), *shared]
            found.append(checkpoint.cached(args.out / ".embeddings", key, partial(compute, teacher_id)))
        return found

    def train_iteration(self, iteration: int) -> dict[str, float]:
        group = self.groups[int(torch.randint(len(self.groups), ()))]
        chosen = torch.randperm(len(group))[: self.args.teacher_batch].tolist()
        teachers = [self.teachers[group[place]].narrowed(self.args.way_train) for place in chosen]
        with self.clock("generation"):
            batches, inversion_loss = self.inverter.invert(teachers, self.args.num_recover)
        for batch in batches:
            self.memory.add(batch)
        with self.clock("meta-training"):
            numbers = self.align(teachers, batches)
            numbers |= self.replay(self.memory, self.optimizer)
        return {"inversion_loss": inversion_loss, **numbers}

    def align(self, teachers: list[Teacher], batches: list[PseudoBatch]) -> dict[str, float]:
        """One step on the group's tasks, regularised towards a direction that suits them all."""
        losses = [self.task_loss(teacher, batch) for teacher, batch in zip(teachers, batches, strict=True)]
        gradient, loss, spread = aligned_gradient(losses, self.learner.params, self.args.displace_lr)
        set_gradient(self.learner.params, gradient)
        self.optimizer.step()
        return {"group_loss": float(loss), "disagreement": float(spread)}

    def task_loss(self, teacher: Teacher, batch: PseudoBatch) -> Callable[[Params], Tensor]:
        """gt * CE(s(x), y) + kd * KL(t(x) || s(x)) of one teacher's images, as a function of the learner's parameters."""
        images = self.augmentation(batch.images) if self.args.augment else batch.images
        with torch.no_grad():
            answers = teacher(images)

        def loss(params: Params) -> Tensor:
            logits = self.learner.logits(images, params)
            truth = self.args.gt_loss_weight * F.cross_entropy(logits, batch.labels)
            return truth + self.args.kd_loss_weight * kl_divergence(answers, logits)

        return loss

    def effort(self) -> dict[str, int]:
        return {"images": self.args.way_train * self.args.num_recover, "steps": self.args.inversion_steps}

    def pictures(self) -> dict[str, tuple[Tensor, int]]:
        return self.memory.picture()

    def recover(self, teacher_ids: list[int]) -> list[PseudoBatch]:
        teachers = [self.teachers[teacher_id].narrowed(self.args.way_train) for teacher_id in teacher_ids]
        return self.inverter.invert(teachers, self.args.num_recover)[0]
