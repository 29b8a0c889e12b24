"""Files as the papers' code writes them: the same network must come out of every one."""

from collections.abc import Callable

import pytest
import torch

from models import create_classifier, create_model
from models.published import to_our_names
from models.state_dicts import load_into, read_content
from utils import checkpoint

Rename = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def papers_resnet(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "stem":
            new = ["trunk.0", parts[1]]
        elif parts[0] == "stem_norm":
            new = ["trunk.1", parts[1]]
        elif parts[0] == "head":
            new = [f"trunk.{blocks + 4}", parts[1]]
        else:
            layer = parts[2].replace("conv", "C").replace("norm", "BN")
            if layer == "shortcut" and len(parts) == 5:
                layer = "shortcut" if parts[3] == "0" else "BNshortcut"
            new = [f"trunk.{int(parts[1]) + 2}", layer, parts[-1]]
        renamed[".".join(new)] = value
    return renamed


@pytest.mark.parametrize("arch", ["conv4", "resnet10", "resnet18", "resnet50"])
def test_papers_names_are_understood(arch: str, papers_conv4: Rename) -> None:
    torch.manual_seed(0)
    source, target = create_model(arch, 5, 32).eval(), create_model(arch, 5, 32).eval()
    papers = (papers_conv4 if arch == "conv4" else papers_resnet)(source.state_dict())
    if arch == "conv4":
        assert len(papers) == 58
    checkpoint.load_weights(target, to_our_names(papers), "file")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(source(x), target(x))


def fast_datafrees_names(arch: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the names of Fast-Datafree's classifiers are: stages counted one by one, the head fc, linear or classifier."""
    head = {"wrn": "fc", "vgg": "classifier"}.get(arch[:3], "linear")
    depths = {"wrn16_2": (2, 2, 2), "resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "shufflenetv2": (4, 8, 4)}.get(arch, ())
    stages = [(stage, i) for stage, depth in enumerate(depths, start=1) for i in range(depth)]
    vgg = [(0, 0), (1, 0), (2, 0), (2, 3), (3, 0), (3, 3), (4, 0), (4, 3)]
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            stage, i = stages[int(parts[1])]
            rest = ".".join(parts[2:]).replace("norm", "bn")
            rest = rest.replace("shortcut", "convShortcut") if head == "fc" else rest
            renamed[f"block{stage}.layer.{i}.{rest}" if head == "fc" else f"layer{stage}.{i}.{rest}"] = value
        elif parts[0] in ("convs", "norms"):
            block, place = vgg[int(parts[1])]
            renamed[f"block{block}.{place + (parts[0] == 'norms')}.{parts[2]}"] = value
        else:
            first = {"stem": "conv1", "norm": "bn1", "stem_norm": "bn1", "last": "conv2", "last_norm": "bn2", "head": head}[
                parts[0]
            ]
            renamed[f"{first}.{parts[1]}"] = value
    return renamed


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("arch", ["wrn16_2", "vgg11", "resnet18", "resnet50", "shufflenetv2"])
def test_fast_datafrees_names_are_understood(arch: str, prefix: str) -> None:
    torch.manual_seed(0)
    source, target = create_classifier(arch, 5, 32).eval(), create_classifier(arch, 5, 32).eval()
    theirs = {prefix + name: value for name, value in fast_datafrees_names(arch, source.state_dict()).items()}
    content = read_content({"state_dict": theirs, "best_acc1": 70.0, "epoch": 3}, "a file")
    assert load_into(target, content, "a file") == []
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(source(x), target(x))
