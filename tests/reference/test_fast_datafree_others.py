"""The methods of Fast-Datafree's repository: DAFL, ZSKT, DFAD, DFQ, CMI, DeepInversion, and training on real images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference.fast_datafree_pieces import Bench, Case, Outputs, batches_of, check, rates, small_generator, state_after
from reference.formula import cases, fill, value
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import methods.dfkd
import methods.supervised
from datasets.split import ImageSplit
from methods.inversion import by_pixel, contrastive
from models.generator import Generator

pytestmark = pytest.mark.usefixtures("float64")
ENTRIES = cases("fast_datafree_others")
SGD = "--lr 0.001 --momentum 0.9 --weight_decay 1e-4 --batch_size 8"
PRIORS = "--tv 0 --l2 0"
TERMS = {
    "dafl": "--adv 0 --bn 0 --oh 1 --act 0.001 --balance 20",
    "zskt": "--adv 1 --bn 0 --oh 0 --act 0 --balance 0",
    "dfad": "--adv 1 --bn 0 --oh 0 --act 0 --balance 0",
    "dfq": "--adv 1 --bn 1 --oh 1 --act 0 --balance 20",
}


def kept_in(results: list[Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose results are kept."""

    def call(*what: Any) -> Any:
        results.append(function(*what))
        return results[-1]

    return call


def numbers(tensors: Sequence[Tensor]) -> list[float]:
    return [float(tensor.detach()) for tensor in tensors]


# Generators that last


def generative(name: str, bench: Bench) -> Outputs:
    """A step of the generator against the student, and a sample of the next latents."""
    method = bench.method(name, f"{TERMS[name]} {PRIORS} --T 20 --g_steps 1 --lr_g 0.001 --synthesis_batch_size 8")
    bench.draw(9400, 9401)
    parameters = list(method.generator.parameters())
    before = torch.cat([parameter.detach().flatten() for parameter in parameters])
    method.synthesize(0, 1)
    after = torch.cat([parameter.detach().flatten() for parameter in parameters])
    (step,) = bench.steps
    terms = {key: step[key] for key in step if key in ENTRIES[f"generative_{name}"]["outputs"]}
    return {
        **terms,
        "gradient": [parameter.grad for parameter in parameters],
        "generator_after": after,
        "moved": float((after - before).norm()),
        "sample": method.spec.form.prepare(method.sample(8)),
    }


def student(name: str, bench: Bench) -> Outputs:
    """A step of the student."""
    method = bench.method(name, f"{TERMS[name]} {PRIORS} {SGD} --T 20")
    method.sample = lambda count: batches_of(9300)[0]
    method.distil(1)
    return {"losses": numbers(bench.updates), **state_after(method.network)}


# CMI


def cmi(bench: Bench, flags: str, teacher: str = "wrn16_1") -> Any:
    """CMI whose local view is the mirrored image and whose global view the image itself; each call's generator is k0 = 4000."""
    bench.monkeypatch.setattr(contrastive, "resized_crop", lambda images: images.flip(-1))
    bench.monkeypatch.setattr(contrastive, "shift_and_flip", lambda images: images)
    bench.in_order()
    terms = f"--adv 0.5 --bn 1 --oh 1 --act 0 --balance 0 {PRIORS} --cr 0.8 --cr_T 0.2 --lr_g 0.001"
    method = bench.method("cmi", f"{terms} {flags}", teacher)
    fill(method.contrast.head, 6000)
    return method


def watched_call(method: Any, bench: Bench) -> dict[str, Any]:
    """What a call of CMI computes, by its outputs' names."""
    contrast, generators, contrasts, losses, gradients = method.contrast, [], [], [], []
    loss, learn, whole, old = contrast.loss, contrast.learn, method.loss, contrast.bank.shape[1]
    patch = bench.monkeypatch

    def made(*what: Any) -> Generator:
        generators.append(small_generator(*what))
        return generators[-1]

    def learning() -> None:
        gradients.append([parameter.grad for parameter in contrast.head.parameters()])
        learn()

    patch.setattr(methods.dfkd, "Generator", made)
    patch.setattr(Generator, "redraw", lambda self: self)  # the formula stands for it
    patch.setattr(contrast, "loss", kept_in(contrasts, loss))
    patch.setattr(contrast, "learn", learning)
    patch.setattr(method, "loss", kept_in(losses, whole))
    kept: list[Tensor] = []
    patch.setattr(method.images, "add", kept.append)
    bench.steps.clear()
    method.synthesize(0, 1)
    patch.setattr(contrast, "loss", loss)
    patch.setattr(contrast, "learn", learn)
    patch.setattr(method, "loss", whole)
    inversion = bench.listed("loss", "loss_bn", "loss_oh", "loss_adv", "agree")
    return inversion | {
        "loss_inv": inversion["loss"],
        "loss": numbers(losses),
        "loss_cr": numbers(contrasts),
        "images_kept": kept[0],
        "generator_gradient_last": [parameter.grad for parameter in generators[0].parameters()],
        "head_gradient_last": gradients[-1],
        "generator_after": list(generators[0].parameters()),
        "head_after": [parameter.detach().clone() for parameter in contrast.head.parameters()],
        "bank_added": torch.cat(list(contrast.bank[:, min(old, contrast.bank.shape[1] - len(kept[0])) :]), 1),
    }


def cmi_one_call(rows: int, bench: Bench) -> Outputs:
    method = cmi(bench, "--g_steps 1 --synthesis_batch_size 8")
    width = method.contrast.bank.shape[2]
    method.contrast.bank = value(9500, rows * 2 * width, 1).view(rows, 2, width).transpose(0, 1)
    bench.draw(9501)
    return {"call1": watched_call(method, bench), "width": width}


def cmi_full_bank(bench: Bench) -> Outputs:
    bench.monkeypatch.setattr(contrastive, "BANK_SIZE", 16)
    method = cmi(bench, "--g_steps 2 --synthesis_batch_size 8")
    bench.draw(9501, 9502, 9503)
    found = {}
    for call in ("call1", "call2", "call3"):
        left = watched_call(method, bench)
        found[call] = {name: left[name] for name in left if name in ENTRIES["cmi_bank_exactly_full"]["outputs"]["call3"]}
    del found["call1"]
    return found


def cmi_resnet34(bench: Bench) -> Outputs:
    """What describes the images of a resnet34. Its head is the last layer alone, for nothing here hangs on it."""
    last = SimpleNamespace(
        Sequential=lambda *layers: layers[-1], Linear=lambda i, o: nn.Linear(i, min(i, o, 256)), ReLU=nn.ReLU
    )
    bench.monkeypatch.setattr(contrastive, "nn", last)
    method = cmi(bench, "--g_steps 1 --synthesis_batch_size 2", "resnet34")
    bench.draw(9501)
    return {"bank_added": watched_call(method, bench)["bank_added"], "width": method.contrast.bank.shape[2]}


# DeepInversion


def deep_inversion(flags: str, left_out: tuple[str, ...], bench: Bench) -> Outputs:
    """A call on four images that are not jittered."""
    method = bench.method("deepinv", f"--bn 10 --oh 1 --act 0 --balance 0 {flags} --synthesis_batch_size 4")
    gradients, losses, students, kept = [], [], [], []
    pixel_loss, distances = method.pixel_loss, methods.dfkd.record_bn_distances

    @contextmanager
    def recorded(network: nn.Module) -> Iterator[list[Tensor]]:
        with distances(network) as found:
            students.append(found)
            yield found

    def first(optimizer: torch.optim.Optimizer, *what: Any) -> None:
        gradients.append(optimizer.param_groups[0]["params"][0].grad.clone())

    bench.draw(9600)
    bench.monkeypatch.setattr(by_pixel, "jitter_and_flip", lambda images: images)
    bench.monkeypatch.setattr(methods.dfkd, "record_bn_distances", recorded)
    method.pixel_loss = kept_in(losses, pixel_loss)
    method.images.add = kept.append
    handle = register_optimizer_step_pre_hook(first)
    try:
        method.synthesize(0, 1)
    finally:
        handle.remove()
    steps, own = bench.steps, [float(torch.stack(found).sum().detach()) for found in students]
    found = {
        "loss": numbers(losses),
        "loss_bn": [step["loss_bn"] - methods.dfkd.STUDENTS_SHARE * other for step, other in zip(steps, own, strict=True)],
        "loss_oh": [step["loss_oh"] for step in steps],
        "loss_adv": [step["loss_adv"] for step in steps],
        "loss_tv": [step.get("loss_tv") for step in steps],
        "loss_l2": [step.get("loss_l2") for step in steps],
        "bn_teacher": steps[-1]["loss_bn"],
        "bn_student": own[-1],
        "gradient_first": gradients[0],
        "images_kept": kept[0],
    }
    return {name: found[name] for name in found if name not in left_out}


# Real images


def on_real_images(name: str, flags: str, batches: tuple[int, ...], bench: Bench) -> Any:
    """A method whose training set are the formula's batches, in order."""
    labels = (torch.arange(8) % 10).repeat(len(batches))
    split = ImageSplit(torch.cat(batches_of(*batches)) * 255, labels, [f"class {number}" for number in range(10)])
    bench.monkeypatch.setattr(methods.supervised, "load_split", lambda *what: split)
    bench.in_order()
    return bench.method(name, f"{SGD} {flags}")


def vanilla_kd(beta: float, bench: Bench) -> Outputs:
    method = on_real_images("vanilla_kd", f"--alpha 1 --beta {beta} --T 1", (9300,), bench)
    parts: list[float] = []
    loss_of = method.loss_of

    def in_parts(images: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            method.args.beta = 0.0
            parts.append(float(whole(logits, labels).detach()))
            method.args.beta = beta
            return whole(logits, labels)

        whole = loss_of(images)
        return loss

    method.loss_of = in_parts
    loss = method.train_iteration(0)["loss"]
    return {"losses": [loss], **state_after(method.network), "kld_weighted": parts[0], "ce_weighted": loss - parts[0]}


def scratch(bench: Bench) -> Outputs:
    method = on_real_images("scratch", "--teacher_ckpt no.pth", (9300, 9301), bench)
    method.train_iteration(0)
    return {"losses": numbers(bench.updates), **state_after(method.network)}


def schedule(name: str, flags: str, entry: str, bench: Bench) -> Outputs:
    method = on_real_images(name, f"--lr_decay_milestones 120,150,180 --lr 0.1 --epochs 200 {flags}", (9300,), bench)
    method.student.update = lambda images, labels, loss_of: (torch.zeros(()), torch.zeros(len(images), 10))
    method.loss_of = lambda images: None
    return {"rates": rates(method, ENTRIES[entry]["outputs"]["rates"])}


AGAINST = ("loss", "loss_adv", "gradient", "generator_after", "moved", "sample")
INSTEAD = "The code passes the teacher in its place"

CASES: dict[str, Case] = {
    "generative_dafl": Case("equal", partial(generative, "dafl")),
    "generative_dafl_against_student": Case("equal", partial(generative, "dafl")),
    "student_dafl": Case("equal", partial(student, "dafl")),
    "generative_zskt": Case("differs", partial(generative, "zskt"), INSTEAD, AGAINST, "methods.dfkd"),
    "generative_zskt_against_student": Case("equal", partial(generative, "zskt")),
    "student_zskt": Case("equal", partial(student, "zskt")),
    "generative_dfad": Case("differs", partial(generative, "dfad"), INSTEAD, AGAINST, "methods.dfkd"),
    "generative_dfad_against_student": Case("equal", partial(generative, "dfad")),
    "student_dfad": Case("equal", partial(student, "dfad")),
    "generative_dfq": Case("differs", partial(generative, "dfq"), INSTEAD, AGAINST, "methods.dfkd"),
    "student_dfq": Case("equal", partial(student, "dfq")),
    "cmi_one_step": Case("equal", partial(cmi_one_call, 12)),
    "cmi_empty_bank": Case("equal", partial(cmi_one_call, 0)),
    "cmi_bank_exactly_full": Case(
        "differs",
        cmi_full_bank,
        "While CMI's bank is exactly full the code takes it for empty, and its loss is nan for a call; ours draws from it.",
        ("call3/loss", "call3/loss_*", "call3/*_after"),
        "methods.dfkd",
    ),
    "cmi_resnet34_layers": Case("differs", cmi_resnet34, "four stages'", ("width", "bank_added"), "methods.dfkd"),
    "cmi_cr0": Case("nothing", note="an exception of the released code"),
    "deepinv_one_step": Case(
        "differs",
        partial(deep_inversion, "--adv 1 --tv 0 --l2 0 --g_steps 1 --lr_g 0.1", ("images_kept", "loss_tv", "loss_l2")),
        "DeepInversion's Jensen-Shannon divergence is the usual one",
        ("loss", "loss_adv", "gradient_first"),
        "methods.dfkd",
    ),
    "deepinv_no_adv": Case(
        "differs",
        partial(deep_inversion, "--adv 1e-300 --tv 0 --l2 0 --g_steps 1 --lr_g 0.1", ("loss_adv", "loss_tv", "loss_l2")),
        "DeepInversion keeps the images of its best step; the code's are those after the last one.",
        ("images_kept",),
        "methods.dfkd",
    ),
    "deepinv_priors": Case(
        "differs",
        partial(deep_inversion, "--adv 1 --tv 0.01 --l2 0.001 --g_steps 1 --lr_g 0.1", ("images_kept",)),
        "DeepInversion's --tv is the sum of four unsquared norms and --l2 the norm, both of images in [0, 1]; the code's are "
        "the mean absolute differences and the norm of normalised pixels. Both are 0 in its scripts.",
        ("loss", "loss_adv", "loss_tv", "loss_l2", "gradient_first"),
        "methods.dfkd",
    ),
    "deepinv_keeps_last": Case(
        "differs",
        partial(deep_inversion, "--adv 1 --tv 0 --l2 0 --g_steps 3 --lr_g 1", ("loss_tv", "loss_l2")),
        "DeepInversion keeps the images of its best step; the code's are those after the last one.",
        ("loss", "loss_*", "bn_*", "gradient_first", "images_kept"),
        "methods.dfkd",
    ),
    "deepinv_adv0": Case("nothing", note="an exception of the released code"),
    "vanilla_kd_a1_b0_T1": Case("equal", partial(vanilla_kd, 0.0)),
    "vanilla_kd_a1_b0.1_T1": Case("equal", partial(vanilla_kd, 0.1)),
    "scratch": Case("equal", scratch),
    "schedule_train_scratch": Case("equal", partial(schedule, "scratch", "--teacher_ckpt no.pth", "schedule_train_scratch")),
    "schedule_vanilla_kd": Case("equal", partial(schedule, "vanilla_kd", "", "schedule_vanilla_kd")),
}


def test_every_case_has_a_row() -> None:
    assert CASES.keys() == ENTRIES.keys()


@pytest.mark.parametrize("name", ENTRIES)
def test_case(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, Any], None]) -> None:
    check(CASES[name], ENTRIES[name], Bench(monkeypatch), record_property)
