"""The names that the papers' code gives to the tensors of its networks, and ours for them."""

import re

import torch

# The papers register each conv4 layer twice; the second name of a tensor carries nothing.
ALIAS = re.compile(r"^trunk\.\d+\.trunk\.")
RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"^trunk\.(\d+)\.C\.", r"blocks.\1.conv."),
        (r"^trunk\.(\d+)\.BN\.", r"blocks.\1.norm."),
        (r"^trunk\.(\d+)\.C(\d)\.", r"blocks.<\1>.conv\2."),
        (r"^trunk\.(\d+)\.BN(\d)\.", r"blocks.<\1>.norm\2."),
        (r"^trunk\.(\d+)\.shortcut\.", r"blocks.<\1>.shortcut.0."),
        (r"^trunk\.(\d+)\.BNshortcut\.", r"blocks.<\1>.shortcut.1."),
    ]
]
AFTER_STEM = re.compile(r"<(\d+)>")  # ResNet blocks are numbered behind the stem's two layers


SMALL = {"conv1": "stem", "bn1": "stem_norm", "conv2": "last", "bn2": "last_norm", "linear": "head"}
# Fast-Datafree's classifiers: a name that only this family has -> where a layer stands, and the names outside of blocks
FAST_FAMILIES = {
    "block1.layer.0.bn1.weight": (re.compile(r"^block(\d)\.layer\.(\d+)\."), {"conv1": "stem", "bn1": "norm", "fc": "head"}),
    "linear.weight": (re.compile(r"^layer(\d)\.(\d+)\."), SMALL),
    "block0.0.weight": (re.compile(r"^block(\d)\.(\d+)\."), {"classifier": "head"}),
}


def _from_fast(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Our names for Fast-Datafree's wide ResNets, ResNets, ShuffleNet and VGG; `None` for anything else.

    Their stages are numbered one by one; our blocks (and the layers of VGG) are counted through.
    """
    family = next((FAST_FAMILIES[name] for name in FAST_FAMILIES if name in state), None)
    if family is None:
        return None
    place, outside = family
    places = {(int(match[1]), int(match[2])) for name in state if (match := place.match(name))}
    vgg = "classifier" in outside
    if vgg:  # in a block of VGG convolutions are 0 and 3, their normalisations 1 and 4
        places = {(block, layer) for block, layer in places if layer % 3 == 0}
    number = {at: str(count) for count, at in enumerate(sorted(places))}
    renamed = {}
    for name, tensor in state.items():
        match = place.match(name)
        if match is None:
            first, _, rest = name.partition(".")
            renamed[f"{outside.get(first, first)}.{rest}"] = tensor
            continue
        block, layer, rest = int(match[1]), int(match[2]), name[match.end() :]
        if vgg:
            kind = "convs" if layer % 3 == 0 else "norms"
            renamed[f"{kind}.{number[block, layer // 3 * 3]}.{rest}"] = tensor
        else:
            rest = re.sub(r"^bn(\d)", r"norm\1", rest).replace("convShortcut", "shortcut")
            renamed[f"blocks.{number[block, layer]}.{rest}"] = tensor
    return renamed


def to_our_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the papers' parameters to ours; a state_dict that has our names already is returned as it is."""
    from_fast = _from_fast(state)
    if from_fast is not None:
        return from_fast
    if not any(name.startswith("trunk.") for name in state):
        return state
    residual = "trunk.0.weight" in state
    shortcut_norms = any(".BNshortcut." in name for name in state)
    layers = [int(match.group(1)) for name in state if (match := re.match(r"trunk\.(\d+)\.", name))]
    fixed = {f"trunk.{max(layers)}.": "head."}
    if residual:
        fixed |= {"trunk.0.": "stem.", "trunk.1.": "stem_norm."}
    renamed = {}
    for name, tensor in state.items():
        if ALIAS.match(name):
            continue
        prefix = ".".join(name.split(".")[:2]) + "."
        if prefix in fixed:
            name = fixed[prefix] + name[len(prefix) :]
        for pattern, replacement in RENAMES:
            name = pattern.sub(replacement, name)
        name = AFTER_STEM.sub(lambda match: str(int(match.group(1)) - 2), name)
        if not shortcut_norms:
            name = name.replace(".shortcut.0.", ".shortcut.")
        renamed[name] = tensor
    return renamed
