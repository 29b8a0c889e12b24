"""Other people's files: read right, or refused with what was found in them."""

import re
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from models import create_model
from models.foreign import Foreign
from models.said import Said, check_said
from models.state_dicts import Content, in_our_names, load_into, read_content
from utils.errors import UserError

Rename = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def test_four_kinds_of_files(papers_conv4: Rename) -> None:
    ours = create_model("conv4", 5, 32).state_dict()
    papers = papers_conv4(ours)
    kinds = {
        "with ids": ({"teacher": papers, "specific": [9, 3, 1, 0, 7]}, [9, 3, 1, 0, 7], None),
        "with accuracy": ({"teacher": papers, "specific": [1, 2, 3, 4, 5], "acc": torch.tensor(81.5)}, [1, 2, 3, 4, 5], 0.815),
        "bare": (papers, None, None),
        "state_dict": ({"state_dict": ours, "epoch": 3}, None, None),
    }
    for content, class_ids, accuracy in kinds.values():
        read = read_content(content, "file")
        assert in_our_names(read.state).keys() == ours.keys()
        assert read.class_ids == class_ids
        assert read.accuracy == pytest.approx(accuracy)
    for nonsense in ([1, 2], {"a": 1}, {}, "text"):
        with pytest.raises(UserError, match=r"file (holds a|is no checkpoint)"):
            read_content(nonsense, "file")


class Own(nn.Module):
    """A person's network whose layers are called as papers' are, `linear` and `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.module(self.bn1(self.conv1(x))))


class Within(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = Own()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


def without_counters(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def under(prefix: str) -> Rename:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def in_the_type(dtype: torch.dtype) -> Rename:
    return lambda state: {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


CHANGES = {
    "as it is": dict,
    "before PyTorch 0.4.1": without_counters,
    "torch.compile": under("_orig_mod."),
    "two wrappers": under("module._orig_mod."),
    "Lightning": under("model."),
    "a name of the user's": under("backbone.student."),
    "half": in_the_type(torch.half),
    "bfloat16": in_the_type(torch.bfloat16),
}


@pytest.mark.parametrize("make", [Own, Within])
@pytest.mark.parametrize("change", CHANGES)
def test_what_fits_is_loaded(change: str, make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    source, target = make().eval(), Foreign(make(), 3).eval()
    assert load_into(target, Content(CHANGES[change](source.state_dict())), "file") == []
    for name, tensor in target.network.state_dict().items():
        assert torch.allclose(tensor, source.state_dict()[name], atol=1e-2)


def test_our_own_networks_take_what_wrappers_made_of_them() -> None:
    source, target = create_model("conv4", 3, 16), create_model("conv4", 3, 16)
    for change in CHANGES.values():
        load_into(target, Content(change(source.state_dict())), "file")
        assert torch.allclose(target.head.weight, source.head.weight, atol=1e-2)


def test_what_stands_beside_a_network_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    state = under("model.")(Own().state_dict())
    notes = load_into(Foreign(Own(), 3), Content(state | {"criterion.weight": torch.ones(3)}), "file")
    assert notes == ["1 tensors outside of 'model.' were left out (criterion.weight)"]
    with pytest.raises(UserError, match=r"fit under model\., teacher\."):
        load_into(Foreign(Own(), 3), Content(state | under("teacher.")(Own().state_dict())), "file")


def test_what_does_not_fit_is_named_with_what_is_there_instead() -> None:
    state = Own().state_dict()
    state["fc.weight"] = state.pop("linear.weight")
    with pytest.raises(UserError, match=r"lacks 'linear\.weight' and has 'fc\.weight' instead"):
        load_into(Foreign(Own(), 3), Content(state), "file")
    broken = Own().state_dict()
    broken["linear.bias"][0] = torch.inf
    with pytest.raises(UserError, match=r"'linear\.bias' holds numbers that are not finite"):
        load_into(Foreign(Own(), 3), Content(broken), "file")


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict", "model_dict", "weights"])
def test_weights_are_found_under_any_key(key: str) -> None:
    state = Own().state_dict()
    optimizer = torch.optim.SGD(Own().parameters(), 0.1, momentum=0.9).state_dict()
    content = read_content({key: state, "epoch": 3, "optimizer": optimizer, "best": 71.2}, "file")
    assert content.state.keys() == state.keys()


def test_which_of_several_weights_is_asked() -> None:
    state = Own().state_dict()
    average = {name: tensor + 1 for name, tensor in state.items()}
    whole = {"state_dict": state, "state_dict_ema": average}
    with pytest.raises(UserError, match="under state_dict, state_dict_ema: say which"):
        read_content(whole, "file")
    assert torch.equal(read_content(whole, "file", "state_dict_ema").state["linear.bias"], average["linear.bias"])
    with pytest.raises(UserError, match="no weights under 'ema'"):
        read_content(whole, "file", "ema")


def test_weights_are_found_at_any_depth_and_beside_small_things() -> None:
    state = Own().state_dict()
    small = {"rng_states": {"cpu": torch.ones(3), "cuda": torch.ones(3)}, "metrics": {"loss": torch.ones(1)}, "epoch": 3}
    for whole in (
        {"model": {"state_dict": state}},
        {"model_ema": {"module": state}},
        dict(state, epoch=3),
        {"state_dict": state},
    ):
        assert read_content(whole | small, "file").state.keys() == state.keys()
    both = {"model": state, "model_ema": {"module": {name: tensor + 1 for name, tensor in state.items()}}}
    with pytest.raises(UserError, match=r"under model, model_ema\.module: say which"):
        read_content(both, "file")
    for which in ("model_ema", "model_ema.module"):
        assert torch.equal(read_content(both, "file", which).state["linear.bias"], state["linear.bias"] + 1)
    quantised = {name: (tensor * 100).to(torch.int8) for name, tensor in state.items()}
    with pytest.raises(UserError, match="before it is quantised"):
        load_into(Foreign(Own(), 3), Content(quantised), "file")


def said_of(state: Any, **more: Any) -> Said:
    return read_content({"state_dict": state, **more}, "file").said


def test_what_a_file_says_of_its_classes() -> None:
    state = Own().state_dict()
    wanted = ["b", "a", "c"]
    forms = [
        {"class_to_idx": {"a": 1, "b": 0, "c": 2}}, {"classes": wanted}, {"class_names": wanted},
        {"idx_to_class": {0: "b", 1: "a", 2: "c"}}, {"classes": {0: "b", 2: "c", 1: "a"}},
        {"class_to_idx": {0: "b", 1: "a", 2: "c"}},
        {"hyper_parameters": {"class_to_idx": {"a": 1, "b": 0, "c": 2}}}, {"meta": {"CLASSES": tuple(wanted)}},
        {"config": {"id2label": {"0": "b", "1": "a", "2": "c"}}}, {"meta": {"dataset_meta": {"classes": wanted}}},
        {"hparams": {"label2id": {"a": 1, "b": 0, "c": 2}}},
        {"classes": {"0": ["n1", "b"], "1": ["n2", "a"], "2": ["n3", "c"]}},
        {"class_to_idx": {"a": torch.tensor(1), "b": 0, "c": 2}}, {"args": Namespace(classes=wanted)},
        {"categories": [{"id": 7, "name": "a"}, {"id": 9, "name": "c"}, {"id": 2, "name": "b"}]},
        {"class_to_idx": {"a": torch.tensor(1), "b": torch.tensor(0), "c": torch.tensor(2)}}, {"vocab": {"itos": wanted}},
        {"label_encoder": {"classes_": wanted}},
    ]  # fmt: skip
    for names in forms:
        assert said_of(state, **names).class_names == [wanted], names
    maybe = [
        {"labels": wanted}, {"names": {0: "b", 1: "a", 2: "c"}}, {"class_list": wanted},
        {"cat2idx": {"a": 1, "b": 0, "c": 2}}, {"metadata": {"labels_map": "b|a|c"}},
        {"cfg": {"species": "b a c"}}, {"train_args": {"label_json": '{"0": "b", "1": "a", "2": "c"}'}},
    ]  # fmt: skip
    for names in maybe:
        assert wanted in said_of(state, **names).maybe, names
        assert said_of(state, **names).class_names == []
    for wrong in ({"a": 1, "b": 2, "c": 3}, {"a": 0, "b": 0, "c": 1}):
        with pytest.raises(UserError, match="classes are numbered"):
            said_of(state, class_to_idx=wrong)
    assert said_of(state, class_to_idx={"1": 0, "10": 1, "2": 2}).class_names == [["1", "10", "2"]]
    assert said_of(state, classes=3) == Said()
    assert read_content({"checkpoint": {"state_dict": state, "classes": wanted}}, "file").said.class_names == [wanted]
    digits = {0: "2", 1: "0", 2: "1"}
    for names in ({"idx_to_class": digits}, {"id2label": {str(number): name for number, name in digits.items()}}):
        assert said_of(state, **names).class_names == [["2", "0", "1"]]
    deep = {"checkpoint": {"state_dict": state, "meta": {"dataset_meta": {"classes": wanted}}}}
    assert read_content(deep, "file").said.class_names == [wanted]
    numbers = said_of(state, classes=torch.tensor([1, 10, 2]))
    assert (numbers.class_names, numbers.maybe) == ([], [["1", "10", "2"]])


def test_words_beside_other_weights_are_not_this_networks() -> None:
    one = {"state_dict": Own().state_dict(), "classes": ["a", "b", "c"]}
    other = {"state_dict": Own().state_dict(), "classes": ["b", "a", "c"]}
    for which, wanted in (("one", "a"), ("other.state_dict", "b")):
        said = read_content({"one": one, "other": other, "meta": {"arch": "net"}}, "file", which).said
        assert (said.class_names[0][0], len(said.class_names), said.archs) == (wanted, 1, ["net"])


def test_a_copy_inside_the_weights_is_not_taken_for_them() -> None:
    state = Own().state_dict()
    for prefix in ("teacher.", "ema.", "a.b."):
        mixed = state | {f"{prefix}{name}": tensor + 1 for name, tensor in state.items()}
        with pytest.raises(UserError, match=r"weights that fit under .*no prefix"):
            load_into(Foreign(Own(), 3), read_content({"state_dict": mixed}, "file"), "file")
        network = Foreign(Own(), 3)
        load_into(network, read_content({"state_dict": mixed}, "file", prefix.strip(".")), "file")
        assert torch.equal(network.network.linear.weight, state["linear.weight"] + 1)
    shadow = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in state.items()}
    own = {f"model.{name}": tensor for name, tensor in state.items()}
    with pytest.raises(UserError, match="a running average, model_ema"):
        load_into(Foreign(Own(), 3), read_content({"state_dict": own | shadow}, "file"), "file")
    load_into(Foreign(Own(), 3), read_content({"state_dict": own | shadow}, "file", "state_dict.model"), "file")


def test_what_lies_elsewhere_may_be_of_something_else() -> None:
    """A base network's configuration, the history of training: only the very same names in another order count."""
    state = Own().state_dict()
    for beside in (
        {"pretrained_cfg": {"input_size": (3, 224, 224), "mean": [0.4] * 3, "std": [0.2] * 3, "label_names": ["x", "y"]}},
        {"datasets": {"pretraining": {"classes": ["x", "y"]}}}, {"stats": {"mean": [0.1] * 3, "std": [0.2] * 3}},
        {"class_counts": {"a": 1, "b": 0, "c": 2}}, {"categories_alphabetical": ["a", "b", "c"]},
        {"args": {"teacher": {"arch": "x1"}}},
    ):  # fmt: skip
        said = said_of(state, **beside)
        check_said(said, ["b", "a", "c"], 32, (0.5,) * 3, (0.25,) * 3, "conv4", "file")
    with pytest.raises(UserError, match="in the order a, b, c"):
        check_said(
            said_of(state, logs={"class_list": ["a", "b", "c"]}), ["b", "a", "c"], 32, (0.5,) * 3, (0.25,) * 3, "", "file"
        )


@pytest.mark.parametrize("name", ["exp_avg_slow", "m_avg", "update_avg", "squared_avg", "grad_ema"])
def test_averages_of_gradients_are_none_of_the_weights(name: str) -> None:
    state = Own().state_dict()
    moments = {number: {name: tensor} for number, tensor in enumerate(state.values())}
    assert read_content({"state_dict": state, "optimizer": {"state": moments}}, "file").state.keys() == state.keys()
    losses = {"ema_losses": [torch.ones(1)] * 3, "semantic": [torch.ones(2)] * 3}
    assert read_content({"state_dict": state, **losses}, "file").state.keys() == state.keys()


def test_the_file_itself_may_be_meant() -> None:
    state = Own().state_dict()
    content = {**state, "ema": {name: tensor + 1 for name, tensor in state.items()}}
    with pytest.raises(UserError, match=r"weights under \., ema"):
        read_content(content, "file")
    assert torch.equal(read_content(content, "file", ".").state["linear.weight"], state["linear.weight"])


def test_weights_that_are_chosen_need_not_be_the_largest() -> None:
    state, large = Own().state_dict(), {str(number): torch.ones(1) for number in range(100)}
    assert read_content({"student": state, "teacher": large}, "file", "student").state.keys() == state.keys()
    assert read_content({"optimal_weights": state}, "file").state.keys() == state.keys()


def test_an_average_without_names_is_not_passed_over() -> None:
    state = Own().state_dict()
    for average in (
        {"ema": {"decay": 0.9, "shadow_params": list(state.values())}},
        {"callbacks": {"EMA": {"w": [*state.values()]}}},
        {"avg_params": list(state.values())},
        {"polyak": torch.cat([tensor.flatten() for tensor in state.values()])},
        {"optimizer": {"state": {number: {"ax": tensor} for number, tensor in enumerate(state.values())}}},
    ):
        with pytest.raises(UserError, match="a running average of them without names under"):
            read_content({"model": state} | average, "file")
        assert read_content({"model": state} | average, "file", "model").state.keys() == state.keys()


def test_the_numbers_of_an_optimizer_are_no_weights() -> None:
    state = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    moments = {number: {"step": torch.ones(()), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)} for number in range(2)}
    assert read_content({"state_dict": state, "optimizer": {"state": moments}}, "file").state.keys() == state.keys()


class Normalising(nn.Module):
    """Keeps mean and std of its own, beside the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.2))
        self.register_buffer("classes", torch.tensor([3, 1, 2]))
        self.linear = nn.Linear(3, 3)


def test_a_networks_own_buffers_say_nothing_of_the_list() -> None:
    for content in (Normalising().state_dict(), {"state_dict": Normalising().state_dict()}):
        assert read_content(content, "file").said == Said()
    said = read_content({"state_dict": Normalising().state_dict(), "mean": torch.ones(3), "std": torch.ones(3)}, "file").said
    assert len(said.forms) == 1


def test_an_average_as_pairs_or_numbers_or_an_optimizers() -> None:
    state = Own().state_dict()
    for average in (
        {"ema": list(state.items())},
        {"ema": dict(enumerate(state.values()))},
        {"optimizer_state": {"ema": dict(state)}},
    ):
        with pytest.raises(UserError, match="a running average"):
            read_content({"state_dict": state} | average, "file")


class Renaming(nn.Module):
    """Takes files of before, in which its layer had another name, and keeps more than tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def _load_from_state_dict(self, state: dict, prefix: str, *rest: Any) -> None:
        for name in ("weight", "bias"):
            if f"{prefix}old_{name}" in state:
                state[f"{prefix}layer.{name}"] = state.pop(f"{prefix}old_{name}")
        super()._load_from_state_dict(state, prefix, *rest)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 2}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_what_a_network_takes_by_its_own_rules() -> None:
    source, target = Renaming(), Foreign(Renaming(), 3)
    assert load_into(target, read_content(source.state_dict(), "file"), "file") == []
    torch.testing.assert_close(target.network.layer.weight, source.layer.weight)
    old = {"old_weight": torch.ones(3, 3), "old_bias": torch.zeros(3), "_extra_state": {"version": 1}}
    load_into(target, read_content(old, "file"), "file")
    assert bool((target.network.layer.weight == 1).all())
    with pytest.raises(UserError, match="not finite"):
        load_into(target, read_content(old | {"old_bias": torch.full((3,), torch.nan)}, "file"), "file")


def test_layers_that_take_their_size_from_the_file() -> None:
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    weights = {"1.weight": torch.ones(3, 12), "1.bias": torch.zeros(3)}
    load_into(Foreign(network, 3), read_content(weights, "file"), "file")
    assert network(torch.ones(2, 3, 2, 2)).shape == (2, 3)


def test_a_masks_infinities_are_no_damage() -> None:
    network = nn.Linear(3, 3)
    network.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    load_into(Foreign(network, 3), read_content(network.state_dict(), "file"), "file")


@pytest.mark.parametrize("tensor", [torch.ones(3, 3, device="meta"), torch.ones(3, 3).to_sparse()], ids=["meta", "sparse"])
def test_tensors_that_hold_no_plain_numbers(tensor: torch.Tensor) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_into(Foreign(nn.Linear(3, 3), 3), read_content({"weight": tensor, "bias": torch.ones(3)}, "file"), "file")


def test_a_network_whose_names_hang_on_a_version() -> None:
    """torchvision's mnasnet asks the file's version, which a dict has lost."""
    network = create_model("torchvision/mnasnet0_5", 3, 32)
    load_into(network, read_content(dict(network.loadable.state_dict()), "file"), "file")


def test_names_of_parts_that_were_wrapped_and_what_a_profiler_counts() -> None:
    state = {f"{name.split('.')[0]}._orig_mod.{name.split('.')[1]}": tensor for name, tensor in Own().state_dict().items()}
    state |= {"linear.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    assert load_into(Foreign(Own(), 3), Content(state), "file") == []


def test_the_names_in_torchvisions_files_of_densenets() -> None:
    network = create_model("torchvision/densenet121", 3, 32)
    state = dict(network.loadable.state_dict())
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): tensor for name, tensor in state.items()}
    assert old.keys() != state.keys()
    target = create_model("torchvision/densenet121", 3, 32)
    assert load_into(target, read_content(old, "file"), "file") == []
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.loadable.state_dict().items())


def test_heads_that_only_training_uses_may_be_there_or_not() -> None:
    network = create_model("torchvision/googlenet", 3, 64)
    state = dict(network.loadable.state_dict())
    assert load_into(network, read_content(state, "file"), "file") == []
    more = state | {"aux1.conv.bn.bias": torch.ones(128), "aux2.fc2.bias": torch.ones(1000)}
    assert load_into(network, read_content(more, "file"), "file") == []
