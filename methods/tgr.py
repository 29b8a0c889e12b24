"""TGR: Task Groupings Regularization, data-free meta-learning with heterogeneous pre-trained models (Wei et al., ICML 2024).

Before training each teacher is placed in a space of tasks by the Fisher information of a probe network on images
recovered from it, and spectral clustering of the dissimilarities puts unlike teachers into one group. Each iteration
inverts a few teachers of one group and takes one implicitly regularised step, which penalises that their gradients
disagree; then the learner is meta-trained on episodes of the memory bank, which mix classes of all teachers met so far.

Deviations
----------
From the released code:
- Groups are formed over the whole pool; with several image sets or architectures the code cuts the matrix to a block.
- The Fisher information squares each image's own gradient; the square of a batch's mean gradient would not be it.
- `--kd_loss_weight` is read, and the divergence is the mean over images of log-probabilities: about a third of the cross
  entropy. The code never reads the flag, and its reduction makes the divergence 0.3 % of it.
- The displaced parameters count as constants. The code differentiates through the displacement, which doubles
  `--displace_lr` where networks are smooth and is something else where they have kinks.
- eps of the dissimilarity is 1e-3 of a layer's mean, so that small layers count as much as large ones; the code's is 1e-6.
- The Fisher information is averaged over a filter, of labels that the probe draws, with fixed normalisation; the code takes
  every parameter, the teacher's labels and train-mode normalisation, on 20 batches of one generator that is trained on.
- The ImageNet probe sees images at its own size and normalisation; in the code at the set's.
- Below two teachers for each of `--n_clusters` groups there are fewer groups: a teacher alone has nobody to agree with.
- Every image is cropped and mirrored by itself; the code crops and mirrors a batch alike.
- A fresh generator begins as PyTorch draws it; the code's at N(0, .02), scales of normalisations at N(1, .02).
- Bytes in memory are rounded; the code truncates them.
- With several image sets the learner's images have one size, 84, and one normalisation; the code tests each set at its own.
Our own:
- `--probe`: the paper's probe is a ResNet-34 of ImageNet (`imagenet`; EfficientNet-Lite0 where that is out of reach). The
  default needs no data from outside (`methods.teachers.probes`). It looks at images inverted pixel by pixel: a generator
  gives all teachers' images the same look, and then architectures cannot be told apart.
- `--grouping random` and `--grouping alike` are there to see what the paper's grouping is worth.
- `--augment` crops and mirrors pseudo-images in replay too, as inversion and the group's step do.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.distillation.divergences import kl_divergence
from methods.experiments.few_shot import FewShotMethod
from methods.experiments.few_shot_flags import add_replay_flags, add_teacher_batch_flag
from methods.experiments.settings import Setting
from methods.inversion.by_generator import (
    add_descent_flags,
    add_together_flag,
    descent_of,
    fresh,
    invert_each,
    mean_loss,
    together_of,
)
from methods.inversion.pseudo_batch import PseudoBatch
from methods.inversion.terms import add_term_flags, inversion_loss, weights_of
from methods.memory.bank import BATCHES_KEPT, MemoryBank
from methods.memory.replay import Replay
from methods.metalearners.base import Params
from methods.metalearners.gradients import aligned_gradient
from methods.metalearners.learner import LearnerSpec
from methods.teachers.pool import TeacherPool
from methods.teachers.probes import PROBES, embed_all
from methods.teachers.task_groups import GROUPINGS, dissimilarity, mean_between, show_groups
from methods.teachers.teacher import Teacher
from utils import cli
from utils.images import Grid


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
        "zlr": None,  # the latents share the generator's Adam
    }
    SETTINGS = (
        Setting({"dataset": "mix"}, {"epochs": 1000}),
        Setting({"pre_backbone": "mix"}, {"epochs": 1000}),
    )
    QUICK: ClassVar[dict[str, Any]] = {
        "epochs": 16, "val_interval": 4, "episode_batch": 10, "inversion_steps": 30, "Glr": 5e-3, "zlr": 1e-2, "bn": 0.03,
        "num_recover": 20, "patience": 20, "metalearner": "protonet", "augment": True,
    }  # fmt: skip
    STATE = ("outer", "memory")
    SUMS_EPISODES = True

    def prepare(self, folder: Path) -> str:
        """Task groups: place every teacher, form the groups; writes groups.csv and images/dissimilarity.png."""
        args, spec = self.args, self.spec
        with self.clock("grouping"):
            embeddings = embed_all(self.teachers, self.probes, spec, args.probe_images, args.probe_steps, args.seed, args.out)
            matrix = dissimilarity(embeddings)
            count = max(1, min(args.n_clusters, len(self.teachers) // 2))  # a teacher alone has nobody to align with
            self.groups = GROUPINGS[args.grouping](matrix.nan_to_num(0), count, args.seed)
        everyone = range(len(matrix))
        self.dissimilarity = mean_between(matrix, everyone, everyone)
        title = f"dissimilarity, groups of {args.grouping} teachers"
        return show_groups(self.teachers.rows, matrix, self.groups, title, folder)

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """Inversion of a few teachers of one group, the regularised step on their tasks, then replay of memory."""
        args = self.args
        group = self.groups[int(torch.randint(len(self.groups), ()))]
        chosen = torch.randperm(len(group))[: args.teacher_batch].tolist()
        teachers = self.teachers.some([group[place] for place in chosen], args.way_train)
        with self.clock("generation"):
            found = invert_each(teachers, args.num_recover, fresh(self.device), self.loss, self.descent)
        self.memory.add(*[one.batch for one in found])
        with self.clock("meta-training"):
            losses = [self.task_loss(teacher, one.batch) for teacher, one in zip(teachers, found, strict=True)]
            gradient, loss, spread = aligned_gradient(losses, self.learner.params, args.displace_lr)
            self.outer.follow(gradient)
            numbers = self.replay.until_no_better()
        group_numbers = {"group_loss": float(loss), "disagreement": float(spread)}
        return {"inversion_loss": mean_loss(found), **group_numbers, **numbers}

    def loss(self, teacher: Teacher, images: Tensor, labels: Tensor) -> Tensor:
        """CE(t(x), y) + bn * BN on augmented images x."""
        return inversion_loss(self.weights, teacher, self.teachers.augmentation(images), labels, self.learner.logits)

    def task_loss(self, teacher: Teacher, batch: PseudoBatch) -> Callable[[Params], Tensor]:
        """gt * CE(s(x), y) + kd * KL(t(x) || s(x)) of one teacher's images, as a function of the learner's parameters."""
        x = self.teachers.augmentation(batch.images)
        with torch.no_grad():
            answers = teacher(x)

        def loss(params: Params) -> Tensor:
            logits = self.learner.logits(x, params)
            truth = self.args.gt_loss_weight * F.cross_entropy(logits, batch.labels)
            return truth + self.args.kd_loss_weight * kl_divergence(answers, logits)

        return loss

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: LearnerSpec) -> None:
        super().__init__(args, teachers, spec)
        teachers.check_fit(args.way_train)
        self.weights, self.descent = weights_of(args), descent_of(args, together=together_of(args, self.device))
        self.memory = MemoryBank(len(teachers.class_names), BATCHES_KEPT * args.num_recover, spec.image_size, self.device)
        self.replay = Replay.of(args, self.outer, self.memory, self.shape, teachers.augmentation)
        self.probes = [] if args.evaluate else PROBES[args.probe](teachers, spec.image_size)  # groups are for training
        self.groups = [list(range(len(teachers)))]  # until `prepare` has formed them
        self.dissimilarity = math.nan  # mean of two teachers

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        group.add_argument("--n_clusters", type=cli.count, default=5, help="groups of teachers")
        group.add_argument("--grouping", choices=tuple(GROUPINGS), default="unlike", help="which teachers share a group")
        group.add_argument(
            "--probe", choices=tuple(PROBES), default="pool", help="network that the teachers' images are shown to"
        )
        group.add_argument("--probe_images", type=cli.count, default=150, help="images of a teacher that the probe sees")
        group.add_argument("--probe_steps", type=cli.count, default=60, help="steps of inverting a teacher for the probe")
        add_teacher_batch_flag(group)
        group.add_argument("--num_recover", type=cli.count, default=30, help="pseudo-images of a class")
        group.add_argument("--gt_loss_weight", type=cli.weight, default=1.0, help="weight of the cross entropy with the labels")
        group.add_argument("--kd_loss_weight", type=cli.weight, default=1.0, help="weight of the divergence from the teacher")
        group.add_argument("--displace_lr", type=cli.weight, default=1e-3, help="strength of the regularisation")
        add_descent_flags(group)
        add_together_flag(group)
        add_term_flags(group, ce=1.0)
        add_replay_flags(group)

    def recover(self, teacher_ids: list[int]) -> list[PseudoBatch]:
        teachers = self.teachers.some(teacher_ids, self.args.way_train)
        found = invert_each(teachers, self.args.num_recover, fresh(self.device), self.loss, self.descent)
        return [one.batch for one in found]

    def pictures(self) -> dict[str, Grid]:
        return self.memory.picture(self.teachers.class_names)

    def summary(self) -> dict[str, Any]:
        args, unlike = self.args, self.dissimilarity
        return {
            "inversion_of_one_teacher": {"images": args.way_train * args.num_recover, "steps": args.inversion_steps},
            "dissimilarity": unlike if math.isfinite(unlike) else None,
        }
