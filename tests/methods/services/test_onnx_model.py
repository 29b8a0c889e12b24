"""Classifiers in ONNX files, written node by node."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.services.meter import Meter
from methods.services.onnx_model import OnnxModel, digest_of
from methods.teachers.manifest import read_manifest
from methods.teachers.pool import TeacherPool
from utils.errors import UserError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
WEIGHT = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
HALF, QUARTER = (0.5,) * 3, (0.25,) * 3


def write(
    path: Path, end: str = "", batch: int | str = "B", layout: Sequence[int] = (3, 6, 6), weight: np.ndarray = WEIGHT
) -> Path:
    """A classifier of four classes: the mean of each channel, a matrix, and `end`."""
    from onnx import TensorProto, helper, numpy_helper

    axes = [1, 2] if layout[-1] == 3 else [2, 3]
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "weight"], ["logits"]),
        *([helper.make_node(end, ["logits"], ["answer"])] if end else []),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *layout])],
        [helper.make_tensor_value_info("answer" if end else "logits", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array(axes), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


def wanted(images: Tensor) -> Tensor:
    return (((images - 0.5) / 0.25).mean((2, 3)) @ torch.from_numpy(WEIGHT).to(images)).softmax(1)


@pytest.mark.parametrize("end", ["", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("batch", ["B", 1, 4])
@pytest.mark.parametrize("layout", [(3, 6, 6), (6, 6, 3)])
def test_the_answers_are_probabilities_whatever_the_file_gives(
    end: str, batch: int | str, layout: Sequence[int], tmp_path: Path
) -> None:
    model, images = OnnxModel(write(tmp_path / "m.onnx", end, batch, layout), 4, 6, HALF, QUARTER), torch.rand(6, 3, 6, 6)
    assert torch.allclose(model.query(images), wanted(images), atol=1e-5)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    images = torch.rand(6, 3, 6, 6)
    with pytest.raises(UserError, match="take the sigmoid at its end off"):
        OnnxModel(write(tmp_path / "m.onnx", "Sigmoid"), 4, 6, HALF, QUARTER).query(images)
    with pytest.raises(UserError, match=r"answered \(6, 4\) for 3 classes"):
        OnnxModel(write(tmp_path / "m.onnx"), 3, 6, HALF, QUARTER).query(images)
    with pytest.raises(UserError, match=r"m\.onnx fails on images"):
        OnnxModel(write(tmp_path / "m.onnx"), 4, 6, HALF, QUARTER).query(torch.rand(6, 3, 7, 7))
    names = onnx.helper.make_node("ArgMax", ["x"], ["answer"], axis=1)
    shape = (onnx.TensorProto.FLOAT, ["B", 3, 6, 6]), (onnx.TensorProto.INT64, ["B", 1, 6, 6])
    values = [onnx.helper.make_tensor_value_info(name, *one) for name, one in zip(("x", "answer"), shape, strict=True)]
    model = onnx.helper.make_model(onnx.helper.make_graph([names], "g", values[:1], values[1:]), ir_version=10)
    model.opset_import[0].version = 18
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"answers answer \(tensor\(int64\)\), of which none"):
        OnnxModel(tmp_path / "m.onnx", 4, 6, HALF, QUARTER).query(images)
    for names, words in ((("logits", "aux"), ""), (("main", "aux"), "of which several may be the logits")):
        one, other = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", 4]) for name in names]
        model = onnx.load(write(tmp_path / "m.onnx"))
        made = [onnx.helper.make_node("Neg", ["logits"], [other.name]), onnx.helper.make_node("Identity", ["logits"], ["main"])]
        model.graph.node.extend(made)
        del model.graph.output[:]
        model.graph.output.extend([other, one])
        onnx.save(model, tmp_path / "m.onnx")
        if not words:
            assert torch.allclose(OnnxModel(tmp_path / "m.onnx", 4, 6, HALF, QUARTER).query(images), wanted(images), atol=1e-5)
            continue
        with pytest.raises(UserError, match=words):
            OnnxModel(tmp_path / "m.onnx", 4, 6, HALF, QUARTER).query(images)
    (tmp_path / "m.onnx").write_text("nothing")
    with pytest.raises(UserError, match="cannot be read as ONNX"):
        OnnxModel(tmp_path / "m.onnx", 4, 6, HALF, QUARTER).query(images)


def test_what_a_file_says_of_its_classes_is_held_against_its_list(tmp_path: Path) -> None:
    model = onnx.load(write(tmp_path / "m.onnx"))
    onnx.helper.set_model_props(model, {"names": "{0: 'b', 1: 'a', 2: 'c', 3: 'd'}", "task": "classify"})
    onnx.save(model, tmp_path / "m.onnx")
    images = torch.rand(2, 3, 6, 6)
    OnnxModel(tmp_path / "m.onnx", 4, 6, HALF, QUARTER, ("b", "a", "c", "d")).query(images)
    with pytest.raises(UserError, match="in the order b, a, c, d"):
        OnnxModel(tmp_path / "m.onnx", 4, 6, HALF, QUARTER, ("a", "b", "c", "d")).query(images)


def test_it_stands_in_a_list_as_a_black_box(tmp_path: Path) -> None:
    write(tmp_path / "m.onnx")
    path = tmp_path / "zoo.csv"
    path.write_text("path,arch,class_names,image_size,mean,std\nm.onnx,onnx,a;b;c;d,6,0.5;0.5;0.5,0.25;0.25;0.25\n")
    pool, images = TeacherPool(read_manifest(path), torch.device("cpu")), torch.rand(2, 3, 6, 6)
    pool.check(inside=False)
    assert torch.allclose(pool.black_box(0, Meter()).query(images), wanted(images), atol=1e-5)
    assert pool.fingerprint() == TeacherPool(read_manifest(path), torch.device("cpu")).fingerprint()
    with pytest.raises(UserError, match="choose a black-box method"):
        pool.check()
    path.write_text(path.read_text().replace("m.onnx", "gone.onnx"))
    with pytest.raises(UserError, match=r"gone\.onnx does not exist"):
        read_manifest(path)


def test_weights_outside_of_the_file_are_part_of_it(tmp_path: Path) -> None:
    model, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    model.write_bytes(b"a graph, with the location of its numbers, m.onnx.data")
    (tmp_path / "other.txt").write_text("no part of it")
    data.write_bytes(b"one")
    first = digest_of(model)
    (tmp_path / "other.txt").write_text("changed")
    assert digest_of(model) == first
    data.write_bytes(b"two")
    assert digest_of(model) != first


def test_a_file_that_answers_every_image_alike(tmp_path: Path) -> None:
    model = OnnxModel(write(tmp_path / "m.onnx", weight=np.zeros_like(WEIGHT)), 4, 6, HALF, QUARTER)
    with pytest.raises(UserError, match="answers every image alike"):
        model.query(torch.rand(6, 3, 6, 6))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_size", "8", "says that its images have 8 pixels; it is listed with 6"),
        ("classes", "b;a;c;d", "has the classes in the order b, a, c, d"),
    ],
)
def test_what_a_file_says_in_words_is_held_against_its_list(tmp_path: Path, key: str, value: str, message: str) -> None:
    model = onnx.load(write(tmp_path / "m.onnx"))
    entry = model.metadata_props.add()
    entry.key, entry.value = key, value
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=message):
        OnnxModel(tmp_path / "m.onnx", 4, 6, HALF, QUARTER, ("a", "b", "c", "d")).query(torch.rand(6, 3, 6, 6))
