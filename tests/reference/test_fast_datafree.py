"""Fast-Datafree (Fang et al., AAAI 2022): networks, generator, calls of generation, student, schedules, pool."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from reference.fast_datafree_pieces import (
    Bench,
    Case,
    Outputs,
    batches_of,
    check,
    classifier,
    rates,
    state_after,
    statistics_of,
)
from reference.formula import cases, fill, images, latents, value
from torch import nn

import methods.dfkd
from methods.inversion.by_generator import Recovered
from methods.inversion.pseudo_batch import PseudoBatch
from methods.memory.images import ImagePool
from models import create_classifier
from models.generator import Generator

pytestmark = pytest.mark.usefixtures("float64")
ENTRIES = cases("fast_datafree")
WEIGHTS = "--adv 1.1 --bn 10 --oh 0.4 --bn_mmt 0.9 --act 0 --balance 0 --tv 0 --l2 0 --T 20"
FAST = f"{WEIGHTS} --lr_g 0.003 --lr_z 0.01 --synthesis_batch_size 8 --batch_size 8 --reset_l0 0 --reset_bn 1"
GENERATOR = {  # theirs -> ours
    "l1.0": "expand",
    "conv_blocks.0": "layers.0",
    "conv_blocks.2": "layers.1",
    "conv_blocks.3": "layers.2",
    "conv_blocks.6": "layers.4",
    "conv_blocks.7": "layers.5",
    "conv_blocks.9": "layers.7",
}


def by_their_names(generator: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a generator, by the names of the papers' code."""
    own = dict(generator.named_parameters())
    return {
        f"{theirs}.{kind}": own[f"{ours}.{kind}"]
        for theirs, ours in GENERATOR.items()
        for kind in ("weight", "bias")
        if f"{ours}.{kind}" in own
    }


# How networks begin


def spread(weights: list[torch.Tensor], uniform: bool) -> dict[str, float]:
    """Means over weights of their deviation, in units of a start of their size, and of the bound of a uniform start.

    The largest of normal numbers is left to chance: more than 5 % between two draws.
    """
    numbers = torch.tensor(
        [
            [
                float(weight.std()) * math.sqrt(weight[0].numel()),
                float(weight.std()) * math.sqrt(len(weight) * weight[0, 0].numel()),
                float(weight.abs().max()) * math.sqrt(weight[0].numel()),
            ]
            for weight in weights
        ]
    )
    names = ("std_times_sqrt_fan_in", "std_times_sqrt_fan_out", "max_times_sqrt_fan_in")[: 3 if uniform else 2]
    return dict(zip(names, numbers.mean(0).tolist(), strict=False))


@torch.no_grad()
def initialisation(bench: Bench) -> Outputs:
    found = {}
    for name in ENTRIES["initialisation"]["outputs"]:
        torch.manual_seed(0)
        network = create_classifier(name, 10, 32)
        convs = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 2000]
        found[name] = {
            "conv": spread(convs, uniform="resnet" in name),
            "linear": spread([network.head.weight], uniform=name[:3] in ("wrn", "res")),
            "head_bias_is_zero": not bool(network.head.bias.any()),
        }
    return found


class Begun(Exception):
    """Enough is known of a call."""


def starts_of_cmi(count: int, bench: Bench) -> list[Generator]:
    """The generators that so many calls of CMI begin with."""
    begun: list[Generator] = []

    def note(teacher: Any, labels: torch.Tensor, generator: Generator, *more: Any) -> None:
        begun.append(generator)
        raise Begun

    bench.monkeypatch.setattr(methods.dfkd, "Generator", Generator)
    bench.monkeypatch.setattr(methods.dfkd, "invert_one", note)
    method = bench.method("cmi", "--cr 0")
    for _ in range(count):
        with pytest.raises(Begun):
            method.synthesize(0, 1)
    return begun


@torch.no_grad()
def initialisation_generator(bench: Bench) -> Outputs:
    torch.manual_seed(0)
    names = ENTRIES["initialisation_generator"]["outputs"]["as_built"]
    built, calls_of_cmi = by_their_names(Generator(32)), [by_their_names(one) for one in starts_of_cmi(12, bench)]
    scales = [in_cmi[f"conv_blocks.{number}.weight"] for number in (0, 3, 7) for in_cmi in calls_of_cmi]
    in_cmi = calls_of_cmi[0]
    return {
        "as_built": {name: float(built[name].std()) for name in names},
        "in_cmi": {name: float(in_cmi[name].std()) for name in names},
        "cmi_norm_scale_std": float(torch.cat(scales).std()),
        "cmi_biases_zero": not any(bool(tensor.any()) for name, tensor in in_cmi.items() if name.endswith("bias")),
    }


def scales_together(outputs: Outputs) -> Outputs:
    """64 to 128 numbers a layer are too few to say their deviation within 5 %: that of all layers' together."""
    each = zip(outputs["cmi_norm_scale_std"].values(), (128, 128, 64), strict=True)
    return {**outputs, "cmi_norm_scale_std": math.sqrt(sum(one * one * count for one, count in each) / 320)}


def formula(bench: Bench) -> Outputs:
    return {
        "value_k0_n5": value(0, 5, 1).tolist(),
        "value_k999_n5": value(999, 5, 1).tolist(),
        "value_k9200_n5": value(9200, 5, 1.5).tolist(),
    }


# Networks


@torch.no_grad()
def forward(name: str, bench: Bench) -> Outputs:
    entry = ENTRIES[f"forward_{name}"]
    shape, classes = entry["inputs"]["images"], entry["inputs"]["classes"]
    arch = name if "imagenet" in name else name.split("_64")[0].split("_96")[0]
    network = classifier(arch, 0, classes, shape[-1]).eval()
    features, logits = network.features_and_logits(images(9000, *shape))
    found = {
        "logits": logits,
        "features": features,
        "parameters": len(list(network.parameters())),
        "numbers": sum(parameter.numel() for parameter in network.parameters()),
    }
    return {key: found[key] for key in found if key in entry["outputs"]}


def generator_forward(bench: Bench) -> Outputs:
    generator = Generator(32)
    fill(generator, 4000)
    made = generator(latents(9100, 4, 256))
    (made * value(9101, made.numel(), 1).view_as(made)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in by_their_names(generator).items()}
    return {
        "images": made,
        "gradient": list(gradients.values()),
        "gradients": {name: float(gradient.norm()) for name, gradient in gradients.items()},
    }


# Calls of generation


def calls(name: str, flags: str, count: int, bench: Bench) -> Outputs:
    """`count` calls, one an epoch, with the formula's latents."""
    method = bench.method(name, f"{FAST} {flags}")
    bench.keep_optimizers()
    bench.draw(9200, 9201)
    invert, kept = method.invert, []
    method.invert = lambda *what: (kept.append(invert(*what)), kept[-1])[1]
    found = {}
    for call in range(count):
        bench.steps.clear()
        method.synthesize(call, call + 1)
        found[f"call{call + 1}"] = what_a_call_left(method, bench, kept[-1])
    return found | {"student_running_mean": statistics_of(method.network)[0]}


def what_a_call_left(method: Any, bench: Bench, recovered: Recovered) -> dict[str, Any]:
    steps, outer = bench.steps, [parameter.grad for parameter in method.generator.parameters()]
    asked = ("agree",) if all("agree" in step for step in steps) else ()
    found = bench.listed("loss", "loss_bn", "loss_oh", "loss_adv", *asked)
    same = [torch.equal(step["images"], recovered.batch.images) for step in steps]
    latent = bench.optimizers[-1].param_groups[1]["params"][0]
    found |= {"step_kept": same.index(True), "images_kept": recovered.batch.images, "latents_after": latent.detach().clone()}
    if hasattr(method, "generator_optimizer"):
        found["outer_gradient"] = [gradient.clone() for gradient in outer]
    found["generator_after"] = [parameter.detach().clone() for parameter in method.generator.parameters()]
    mean, var = zip(*method.statistics.average, strict=True)
    return found | {"statistics_kept": {"mean": mean, "var": var}}


def kind_of(tensor: torch.Tensor) -> list[Any]:
    """What a tensor was drawn from, as far as its numbers say."""
    if not bool(tensor.any()):
        return ["constant", 0]
    return ["normal", round(float(tensor.mean())), round(float(tensor.std()), 2)]


@torch.no_grad()
def resets(name: str, bench: Bench) -> Outputs:
    """What is drawn anew in calls that move nothing else."""
    method = bench.method(name, f"{FAST} --reset_l0 1 --warmup 20 --epochs 220 --kd_steps 1 --ep_steps 1 --bn_mmt 0")
    nothing = PseudoBatch(images(0, 1, 3, 32, 32), torch.zeros(1, dtype=torch.long), (0,))
    method.invert = lambda *what: Recovered(nothing, torch.zeros(()), [])
    method.distil = lambda steps: method.student.optimizer.step() or {}
    tried, found, own = ENTRIES[f"reset_{name}"]["inputs"]["calls_tried"], {}, by_their_names(method.generator)
    torch.manual_seed(0)
    for call in range(1, 142):
        before = {key: parameter.clone() for key, parameter in own.items()}
        method.train_iteration(call - 1)
        moved = [[key, *kind_of(now)] for key, now in own.items() if not torch.equal(now, before[key])]
        if call in tried:
            found[f"call_{call}"] = moved
    return found


# The student


def student_kd(bench: Bench) -> Outputs:
    method = bench.method("fast_meta", f"{FAST} --lr 0.002 --momentum 0.9 --weight_decay 1e-4")
    batches = iter(batches_of(9300, 9301))
    method.sample = lambda count: next(batches)
    method.distil(2)
    return {"losses": [float(loss) for loss in bench.updates], **state_after(method.network)}


def schedule(name: str, flags: str, bench: Bench) -> Outputs:
    method = bench.method("fast_meta", f"{FAST} --kd_steps 1 --ep_steps 1 {flags}")
    method.synthesize = lambda iteration, call: {}
    method.distil = lambda steps: {}
    return {"rates": rates(method, ENTRIES[name]["outputs"]["rates"])}


# ImageNet


def imagenet_script(bench: Bench) -> Outputs:
    with torch.device("meta"):
        generator = Generator(224)
    return {"generator_numbers": sum(parameter.numel() for parameter in generator.parameters())}


def flat_generator() -> Generator:
    """Ours has no latent maps: it gets the same numbers in a row."""
    generator = Generator(32, 3, 32, 4)
    fill(generator, 4000)
    return generator


@torch.no_grad()
def imagenet_generator(bench: Bench) -> Outputs:
    return {"images": flat_generator()(latents(9700, 2, 8, 2, 2).flatten(1))}


def imagenet_calls(count: int, bench: Bench) -> Outputs:
    flags = "--adv 0.1 --bn 0.1 --oh 0.1 --lr_g 0.002 --g_steps 3 --is_maml 0 --reset_l0 1"
    method = bench.method("fast_meta", f"{FAST} {flags}")
    method.generator = flat_generator()
    method.generator_optimizer = torch.optim.Adam(method.generator.parameters(), 0.001, betas=(0.5, 0.999))
    bench.draw(9700, 9701, 9702)
    found = {}
    for call in range(count):
        bench.steps.clear()
        method.synthesize(call, call + 1)
        found[f"call{call + 1}"] = bench.listed("loss")
    return found


# The pool


def pool(bench: Bench) -> Outputs:
    first, second = images(9800, 4, 3, 8, 8), images(9801, 2, 3, 8, 8)
    stored = ImagePool(8, torch.device("cpu"), 100)
    stored.add(first)
    stored.add(second)
    kept = stored.newest(6)[:4]
    return {
        "bytes": kept.double(),
        "equal_to_floor": bool((kept == (255 * first).floor()).all()),
        "equal_to_round": bool((kept == (255 * first).round()).all()),
        "mean_of_stored_minus_true": float((kept / 255 - first).mean()),
        "batch_sizes_of_4_from_6_pictures": [len(stored.sample(4)) for _ in range(6)],
    }


FORWARD: dict[str, Callable[[Bench], Outputs]] = {
    name: partial(forward, name[8:]) for name in ENTRIES if name.startswith("forward")
}
IMAGENET = "On ImageNet the code has a script of its own, which is not built here"

CASES: dict[str, Case] = {
    "initialisation": Case("equal", initialisation, tolerance=5e-2, relative=True),
    "initialisation_generator": Case("equal", initialisation_generator, tolerance=5e-2, relative=True, read=scales_together),
    "conventions": Case("equal", formula),
    "forward_wrn16_1": Case("equal", FORWARD["forward_wrn16_1"]),
    "forward_vgg11": Case("equal", FORWARD["forward_vgg11"]),
    "forward_resnet18": Case("equal", FORWARD["forward_resnet18"]),
    "forward_resnet50": Case("equal", FORWARD["forward_resnet50"]),
    "forward_mobilenetv2": Case("equal", FORWARD["forward_mobilenetv2"]),
    "forward_resnet18_imagenet": Case("equal", FORWARD["forward_resnet18_imagenet"]),
    "forward_resnet50_imagenet": Case("equal", FORWARD["forward_resnet50_imagenet"]),
    "forward_mobilenetv2_imagenet": Case("equal", FORWARD["forward_mobilenetv2_imagenet"]),
    "forward_vgg11_64": Case("equal", FORWARD["forward_vgg11_64"]),
    "forward_vgg11_96": Case(
        "differs",
        FORWARD["forward_vgg11_96"],
        "Fast-Datafree's code halves a fourth time at a side of exactly 64 only; ours from 64 on.",
        ("logits",),
        "models.vgg",
    ),
    "generator_forward": Case("equal", generator_forward),
    "fast_meta_maml1": Case("equal", partial(calls, "fast_meta", "--g_steps 5 --warmup 0 --is_maml 1", 2)),
    "fast_meta_maml0": Case("equal", partial(calls, "fast_meta", "--g_steps 5 --warmup 0 --is_maml 0", 2)),
    "fast": Case("equal", partial(calls, "fast", "--g_steps 5 --warmup 0", 2)),
    "fast_meta_warmup2": Case(
        "differs",
        partial(calls, "fast_meta", "--g_steps 2 --warmup 2 --epochs 4 --is_maml 1", 2),
        "not one epoch earlier",
        ("call2/loss", "call2/loss_adv", "call2/outer_gradient", "call2/generator_after", "call2/latents_after"),
    ),
    "reset_fast_meta": Case("equal", partial(resets, "fast_meta")),
    "reset_fast": Case("equal", partial(resets, "fast")),
    "student_kd": Case("equal", student_kd),
    "schedule_warmup20_epochs220": Case(
        "equal", partial(schedule, "schedule_warmup20_epochs220", "--warmup 20 --epochs 220 --lr 0.2")
    ),
    "schedule_warmup0_epochs200": Case(
        "equal", partial(schedule, "schedule_warmup0_epochs200", "--warmup 0 --epochs 200 --lr 0.2")
    ),
    "schedule_warmup0_epochs100": Case(
        "differs",
        partial(schedule, "schedule_warmup0_epochs100", "--warmup 0 --epochs 100 --lr 0.2"),
        "the code's cosine always takes 200 epochs",
        ("rates/[1-9]*",),
    ),
    "imagenet_script": Case(
        "differs",
        imagenet_script,
        IMAGENET,
        ("generator_numbers",),
    ),
    "imagenet_generator": Case("differs", imagenet_generator, IMAGENET, ("images",)),
    "imagenet_reptile": Case(
        "differs",
        partial(imagenet_calls, 2),
        "Its Reptile follows the bare difference at a rate of 1e-4",
        ("call*/loss",),
    ),
    "imagenet_reinit": Case(
        "differs",
        partial(imagenet_calls, 3),
        "latent and outer Adam begin anew every 50 calls",
        ("call*/loss",),
    ),
    "imagenet_fomaml": Case("nothing", note="an exception of the released code: its generator has a layer without gradients"),
    "schedule_imagenet": Case(
        "differs",
        partial(schedule, "schedule_imagenet", "--warmup 0 --epochs 400 --lr 0.1"),
        "Its student's rate falls to 0, ours to 2e-4",
        ("rates/[1-9]*",),
    ),
    "imagenet_recipe": Case("nothing", note="a description of logs and transforms"),
    "pool": Case(
        "differs",
        pool,
        "Pixels are rounded to bytes; the code truncates them, which makes them half a grey level darker",
        ("bytes", "equal_to_*", "mean_of_stored_minus_true", "batch_sizes_of_4_from_6_pictures"),
    ),
}


def test_every_case_has_a_row() -> None:
    assert CASES.keys() == ENTRIES.keys()


@pytest.mark.parametrize("name", ENTRIES)
def test_case(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, Any], None]) -> None:
    check(CASES[name], ENTRIES[name], Bench(monkeypatch), record_property)
