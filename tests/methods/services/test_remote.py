"""Models of servers that say little, or nothing, of themselves: played by a page of Starlette."""

import itertools
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from methods.services.answer_store import AnswerStore
from methods.services.form import ModelForm, from_classification
from methods.services.meter import Meter
from methods.services.protocol import JSON_LENGTH, Named, decode, encode
from methods.services.remote import RemoteModel
from methods.services.servers import Asking, models_of
from methods.teachers.manifest import read_manifest
from methods.teachers.pool import TeacherPool
from utils.errors import UserError

Served = Callable[..., Any]
SIZE, CLASSES = 4, ("ant", "bee", "cat")
IMAGES = torch.rand(7, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
RED = torch.stack([IMAGES[:, 0].mean((1, 2)) / 2, IMAGES[:, 1].mean((1, 2)) / 2], 1)
EXPECTED = torch.cat([RED, 1 - RED.sum(1, keepdim=True)], 1)  # what it answers: half of the mean red and green, and the rest


class Stub:
    """A model server. What it takes and gives is set by a test; it remembers what it was asked."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {"name": "m", "versions": ["3"]}
        self.server: dict[str, Any] = {"name": "stub", "extensions": []}
        self.index: list[dict[str, str]] | None = [{"name": "m", "state": "READY"}, {"name": "n", "state": "UNAVAILABLE"}]
        self.layout, self.scale, self.limit, self.shift = "nchw", 1.0, 100, 0.0
        self.outputs: Callable[[np.ndarray], list[Named]] = lambda answer: [Named("p", "FP32", answer)]
        self.asked: list[tuple[dict[str, Any], Named]] = []

    def app(self) -> Starlette:
        async def about(request: Request) -> Response:
            return JSONResponse(self.server)

        async def index(request: Request) -> Response:
            return JSONResponse(self.index) if self.index is not None else PlainTextResponse("no such path", 404)

        async def model(request: Request) -> Response:
            if request.path_params["name"] != "m":
                return JSONResponse({"error": "no such model"}, 404)
            return JSONResponse(self.metadata)

        async def infer(request: Request) -> Response:
            content, (given,) = decode("inputs", await request.body(), request.headers)
            self.asked.append((content, given))
            if len(given.values) > self.limit:
                return JSONResponse({"error": f"batch over {self.limit}"}, 400)
            pixels = given.values.astype("f8").reshape(len(given.values), *self.shape()) / self.scale
            if self.layout.endswith("nhwc"):
                pixels = pixels.transpose(0, 3, 1, 2)
            halves = pixels[:, :2].mean((2, 3)) / 2
            answer = np.concatenate([halves, 1 - halves.sum(1, keepdims=True)], 1)
            answer += np.array([self.shift, -self.shift, 0])
            body, headers = encode("outputs", self.outputs(answer.astype("f4")), JSON_LENGTH.lower() in request.headers, {})
            return Response(body, headers=headers)

        routes = [
            Route("/v2", about), Route("/v2/repository/index", index, methods=["POST"]), Route("/v2/models/{name}", model),
            Route("/v2/models/{name}/infer", infer, methods=["POST"]),
        ]  # fmt: skip
        return Starlette(routes=routes)

    def shape(self) -> tuple[int, ...]:
        return (SIZE, SIZE, 3) if self.layout.endswith("nhwc") else (3, SIZE, SIZE)


@pytest.fixture
def stub() -> Stub:
    return Stub()


def model_of(url: str, store: AnswerStore | None = None, **form: Any) -> RemoteModel:
    return RemoteModel(Asking().client(url), ModelForm("m", **form), len(CLASSES), SIZE, store)


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "flat", "flat_nhwc"])
@pytest.mark.parametrize("dtype", ["FP32", "UINT8"])
def test_images_are_sent_as_the_model_wants_them(served: Served, stub: Stub, layout: str, dtype: str) -> None:
    stub.layout, stub.scale = layout, 255.0 if dtype == "UINT8" else 1.0
    answer = model_of(served(stub.app()).url, layout=layout, dtype=dtype, input="x").ask(IMAGES, Meter())
    assert torch.allclose(answer, EXPECTED, atol=1e-6 if dtype == "FP32" else 0.5 / 255)
    (_, given), *_ = stub.asked
    assert (given.name, given.datatype) == ("x", dtype)
    assert given.values.ndim == (2 if layout.startswith("flat") else 4)


def test_what_the_server_says_fills_what_the_list_leaves_open(served: Served, stub: Stub) -> None:
    stub.metadata["inputs"] = [{"name": "pixels", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    stub.metadata["outputs"] = [{"name": "p", "datatype": "FP32", "shape": [-1, 3]}]
    stub.server["extensions"] = ["binary_tensor_data"]
    url = served(stub.app()).url
    assert model_of(url).contact() == "UINT8 nhwc in 'pixels', probabilities back, up to 32 images as bytes behind JSON"
    own = model_of(url, layout="nchw", dtype="FP32", input="x", batch=8, binary="no").contact()
    assert own == "FP32 nchw in 'x', probabilities back, up to 8 images as JSON"


def test_pixels_are_normalised_where_the_list_says_how(served: Served, stub: Stub) -> None:
    stub.outputs = lambda answer: [Named("p", "FP32", np.full_like(answer, 1 / 3))]
    form = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.25, 0.5)}
    model_of(served(stub.app()).url, **form).ask(IMAGES, Meter())
    sent = torch.from_numpy(np.concatenate([given.values for _, given in stub.asked]))
    mean, std = (torch.tensor(form[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert torch.allclose(sent, (IMAGES - mean) / std, atol=1e-6)


def test_probabilities_are_not_taken_for_logits(served: Served, stub: Stub) -> None:
    with pytest.raises(UserError, match="answers probabilities: write so in the column answers"):
        model_of(served(stub.app()).url, answers="logits").ask(IMAGES, Meter())


def test_logits_become_probabilities(served: Served, stub: Stub) -> None:
    stub.outputs = lambda answer: [Named("l", "FP32", np.log(answer) + 3)]
    assert torch.allclose(model_of(served(stub.app()).url, answers="logits").ask(IMAGES, Meter()), EXPECTED, atol=1e-6)


def test_an_output_is_chosen_by_name(served: Served, stub: Stub) -> None:
    stub.outputs = lambda answer: [Named("predict", "INT64", answer.argmax(1)), Named("predict_proba", "FP64", answer)]
    url = served(stub.app()).url
    with pytest.raises(UserError, match="answers predict, predict_proba; say in the column output"):
        model_of(url).ask(IMAGES, Meter())
    assert torch.allclose(model_of(url, output="predict_proba").ask(IMAGES, Meter()), EXPECTED, atol=1e-6)
    assert stub.asked[-1][0]["outputs"] == [{"name": "predict_proba"}]
    with pytest.raises(UserError, match=r"'predict' is of INT64, which are labels.*predict_proba"):
        model_of(url, output="predict").ask(IMAGES, Meter())


def test_tritons_classification_is_read(served: Served, stub: Stub) -> None:
    """The best two of each answer; what is not named shares the rest."""

    def classified(answer: np.ndarray) -> list[Named]:
        best = np.argsort(-answer)[:, :2]
        words = [[f"{row[i]:.6f}:{i}:{CLASSES[i]}" for i in some] for row, some in zip(answer, best, strict=True)]
        return [Named("p", "BYTES", np.array(words, dtype=object))]

    stub.outputs = classified
    url = served(stub.app()).url
    answer = model_of(url, answers="classification", output="p").ask(IMAGES, Meter())
    assert torch.allclose(answer, EXPECTED, atol=1e-5)  # of three the third is the rest
    assert stub.asked[-1][0]["outputs"][0]["parameters"]["classification"] == 3
    stub.outputs = lambda answer: [Named("p", "BYTES", np.array([["cat"]] * len(answer), dtype=object))]
    with pytest.raises(UserError, match="value:index:label"):
        model_of(url, answers="classification", output="p").ask(IMAGES, Meter())


def test_a_batch_that_is_too_large_is_halved_once(served: Served, stub: Stub) -> None:
    stub.limit, meter = 4, Meter()
    model = model_of(served(stub.app()).url, batch=7)
    assert torch.allclose(model.ask(IMAGES, meter), EXPECTED, atol=1e-6)
    assert [len(given.values) for _, given in stub.asked] == [7, 4, 3]
    assert meter.sent == 14  # what was refused left, too
    model.ask(IMAGES, meter)
    assert sorted(len(given.values) for _, given in stub.asked[3:]) == [3, 4]
    stub.limit = 2
    with pytest.raises(UserError, match="answered 400: batch over 2"):
        model_of(served(stub.app()).url, batch=7).ask(IMAGES, Meter())


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (lambda answer: [Named("p", "FP32", answer[:-1])], r"answered \(6, 3\) to 7 images; expected \(7, 3\)"),
        (lambda answer: [Named("p", "FP32", answer[0])], r"answered \(3,\)"),
        (lambda answer: [Named("p", "BYTES", np.array(["a"], dtype=object))], "of BYTES"),
    ],
)
def test_other_answers_are_refused_by_name(served: Served, stub: Stub, outputs: Any, words: str) -> None:
    stub.outputs = outputs
    server = served(stub.app())
    with pytest.raises(UserError, match=words) as caught:
        model_of(server.url).ask(IMAGES, Meter())
    assert str(caught.value).startswith(f"m at {server.url}")


def test_answers_are_kept_by_request(served: Served, stub: Stub, tmp_path: Path) -> None:
    server, meter = served(stub.app()), Meter()
    first = model_of(server.url, AnswerStore(tmp_path), batch=3).ask(IMAGES, meter)
    assert len(stub.asked) == 3
    again = model_of(server.url, AnswerStore(tmp_path), batch=3).ask(IMAGES, meter)
    assert torch.equal(first, again)
    assert len(stub.asked) == 3
    stub.metadata["versions"] = ["4"]
    model_of(server.url, AnswerStore(tmp_path), batch=3).ask(IMAGES, meter)
    assert len(stub.asked) == 6  # another version has other answers
    assert meter.sent == 14


def test_what_is_no_answer_is_not_kept(served: Served, stub: Stub, tmp_path: Path) -> None:
    """A server that failed once, and is mended, is asked again."""
    good, stub.outputs = stub.outputs, lambda answer: [Named("p", "FP32", np.full_like(answer, np.nan))]
    server = served(stub.app())
    with pytest.raises(UserError, match="no probabilities"):
        model_of(server.url, AnswerStore(tmp_path)).ask(IMAGES, Meter())
    stub.outputs = good
    assert torch.allclose(model_of(server.url, AnswerStore(tmp_path)).ask(IMAGES, Meter()), EXPECTED, atol=1e-6)


def test_a_batch_that_was_refused_is_remembered(served: Served, stub: Stub, tmp_path: Path) -> None:
    stub.limit = 4
    server, first, second = served(stub.app()), Meter(), Meter()
    model_of(server.url, AnswerStore(tmp_path), batch=8).ask(IMAGES, first)
    model_of(server.url, AnswerStore(tmp_path), batch=8).ask(IMAGES, second)
    assert (first.sent, second.sent) == (14, 0)


@pytest.mark.parametrize(
    "metadata",
    [
        {"versions": 3}, {"inputs": 5}, {"inputs": [3]}, {"parameters": [1]}, {"parameters": {"max_batch": True}},
        {"inputs": [{"shape": "wide"}]}, [],
    ],
)  # fmt: skip
def test_odd_metadata_says_nothing(served: Served, stub: Stub, metadata: Any) -> None:
    stub.metadata, stub.server = metadata, {"extensions": 5}
    assert torch.allclose(model_of(served(stub.app()).url).ask(IMAGES, Meter()), EXPECTED, atol=1e-6)


@pytest.mark.parametrize("said", [{"class_names": "abc"}, {"class_names": []}, {"class_names": ["a", "a"]}, {"image_size": -3}])
def test_a_server_whose_classes_cannot_be_meant_is_refused(served: Served, stub: Stub, said: dict[str, Any]) -> None:
    stub.metadata["parameters"] = {"class_names": ["a", "b"], "image_size": 4} | said
    with pytest.raises(UserError, match=r"list them in a teachers\.csv"):
        models_of(served(stub.app()).url, Asking())


def test_a_model_without_a_version_is_asked_whether_it_is_the_same(served: Served, stub: Stub, tmp_path: Path) -> None:
    """The first kept answer that is wanted is asked for again, the others are not."""
    del stub.metadata["versions"]
    server, meter = served(stub.app()), Meter(budget=14)
    for _ in range(2):
        model_of(server.url, AnswerStore(tmp_path), batch=2).ask(IMAGES, meter)
    assert len(stub.asked) == 4 + 1
    stub.shift = 0.05
    with pytest.raises(UserError, match=r"answers otherwise than before.*column fingerprint"):
        model_of(server.url, AnswerStore(tmp_path), batch=2).ask(IMAGES, Meter())
    model_of(server.url, AnswerStore(tmp_path), batch=2, fingerprint="mine-2").ask(IMAGES, Meter())


def test_a_server_that_names_no_classes_must_be_listed(served: Served, stub: Stub) -> None:
    server = served(stub.app())
    with pytest.raises(UserError, match=r"has m, and does not say what their classes are called.*docs/services.md"):
        models_of(server.url, Asking())
    stub.index = None
    with pytest.raises(UserError, match="does not list its models"):
        models_of(server.url, Asking())


def test_a_model_that_is_not_there_is_named_with_those_that_are(served: Served, stub: Stub) -> None:
    server = served(stub.app())
    with pytest.raises(UserError, match="has no model 'x'; it has m"):
        RemoteModel(Asking().client(server.url), ModelForm("x"), 3, SIZE, None).contact()


HEAD = "path,arch,model,class_names,image_size,layout,batch,mean,std,dtype\n"


def test_a_list_may_hold_services_beside_files(served: Served, stub: Stub, tmp_path: Path, data_root: Path) -> None:
    server = served(stub.app())
    local = next((data_root / "teachers/cifar100/conv4/3way-16px").glob("*.pt*"))
    line = f"{local},conv4,,x;y;z,16,,,0.5;0.5;0.5,0.5;0.5;0.5,\n"
    (tmp_path / "zoo.csv").write_text(HEAD + f"{server.url},service,m,ant;bee;cat,{SIZE},nchw,2,,,\n" + line)
    pool = TeacherPool(read_manifest(tmp_path / "zoo.csv"), torch.device("cpu"))
    answer = pool.black_box(0, Meter()).query(IMAGES)
    assert torch.allclose(answer, EXPECTED, atol=1e-6)
    assert len(stub.asked) == 4
    assert pool.black_box(1, Meter()).query(IMAGES).shape == (7, 3)
    assert pool.rows[0].path.as_posix() == f"{server.url.removeprefix('http://')}/m"


def test_a_list_may_not_have_every_secret_sent(tmp_path: Path) -> None:
    (tmp_path / "zoo.csv").write_text("path,arch,model,class_names,image_size,token\nhttp://x,service,m,a;b,4,AWS_SECRET_KEY\n")
    with pytest.raises(UserError, match=r"column token: 'AWS_SECRET_KEY'; expected DFML_TOKEN"):
        read_manifest(tmp_path / "zoo.csv")


def test_bytes_are_rounded_before_the_differences_are_taken(served: Served, stub: Stub, tmp_path: Path) -> None:
    stub.scale = 255.0
    (tmp_path / "zoo.csv").write_text(HEAD + f"{served(stub.app()).url},service,m,ant;bee;cat,{SIZE},nchw,,,,UINT8\n")
    pool = TeacherPool(read_manifest(tmp_path / "zoo.csv"), torch.device("cpu"))
    assert pool.takes_bytes(0)
    levels = 255 * pool.black_box(0, Meter()).as_sent(IMAGES)
    assert torch.allclose(levels, levels.round(), atol=1e-4)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("localhost:8000,service,m,a;b,4,,,,,", "column path: .*expected a server's URL"),
        ("http://x,service,,a;b,4,,,,,", "column model is empty"),
        ("http://x,service,m,,4,,,,,", "expected as many of both|class_names is empty"),
        ("http://x,service,m,a;b,4,chw,,,,", "column layout: 'chw'; expected one of nchw, nhwc"),
        ("http://x,service,m,a;b,4,,-3,,,", "column batch: -3"),
        ("http://x,service,m,a;b,4,,,0.5;0.5;0.5,,", "both, or neither"),
        ("http://bob:secret@x,service,m,a;b,4,,,,,", "a token goes into the environment"),
        ("http://x/?key=1,service,m,a;b,4,,,,,", "a token goes into the environment"),
        ("http://x,service,m,a;b,4,,,,,FP16", "column dtype: 'FP16'"),
        ("http://x,service,m,a;b,4,,,0.5;0.5;0.5,0.5;0.5;0.5,UINT8", "bytes are sent as they are"),
    ],
)
def test_a_list_that_is_wrong_is_told_so(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "zoo.csv").write_text(HEAD + line + "\n")
    with pytest.raises(UserError, match=words) as caught:
        read_manifest(tmp_path / "zoo.csv")
    assert "line 2" in str(caught.value)


ASKING = """
import sys
from pathlib import Path
import torch
from methods.services.answer_store import AnswerStore
from methods.services.meter import Meter
from methods.services.form import ModelForm
from methods.services.remote import RemoteModel
from methods.services.servers import Asking

url, folder = sys.argv[1], Path(sys.argv[2])
images = torch.rand(120, 3, 4, 4, generator=torch.Generator().manual_seed(0))
asking = Asking(3, AnswerStore(folder))
meter = Meter(budget=120 + 20 * 3 * 4).keep(folder)
answers = RemoteModel(asking.client(url), ModelForm("m", batch=4), 3, 4, asking.store).ask(images, meter)
torch.save(answers, folder / "answers.pt")
"""


@pytest.mark.slow
def test_no_paid_answer_is_lost_to_kill_9(served: Served, stub: Stub, tmp_path: Path) -> None:
    """Killed twenty times at random requests and started again: asked twice is what was under way, and the ledger has it."""
    kills = 20
    random, answered, killed = np.random.default_rng(0), [], set()
    child: list[subprocess.Popen] = []
    outputs, lock = stub.outputs, threading.Lock()
    left = sorted(random.choice(np.arange(1, 26), kills, replace=False).tolist())

    def answer_or_kill(answer: np.ndarray) -> list[Named]:
        with lock:
            if left and len(answered) >= left[0] and len(child) not in killed:
                left.pop(0)
                killed.add(len(child))
                child[-1].kill()
            answered.append(len(answer))
        return outputs(answer)

    stub.outputs = answer_or_kill
    server = served(stub.app())
    while not (tmp_path / "answers.pt").exists():
        child.append(subprocess.Popen([sys.executable, "-c", ASKING, server.url, str(tmp_path)]))
        assert child[-1].wait(600) in (0, -signal.SIGKILL)
    assert len(child) == kills + 1
    times = Counter(given.values.tobytes() for _, given in stub.asked)
    assert len(times) == 30  # all of them were asked
    twice = 4 * (sum(times.values()) - len(times))
    assert twice <= kills * 3 * 4  # in flight x batch, for each kill
    assert Meter().keep(tmp_path).sent >= 120 + twice  # and what never arrived
    assert Meter().keep(tmp_path).sent <= 120 + kills * 3 * 4
    images = torch.rand(120, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    halves = images[:, :2].mean((2, 3)) / 2
    assert torch.allclose(torch.load(tmp_path / "answers.pt")[:, :2], halves, atol=1e-6)


def test_how_a_model_is_asked_is_part_of_what_is_kept_of_it(served: Served, stub: Stub) -> None:
    """A list that is corrected asks anew; how many images go at once changes nothing."""
    url = served(stub.app()).url
    forms: list[dict[str, Any]] = [{}, {"layout": "nhwc"}, {"answers": "logits"}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}]
    asked = [model_of(url, **form).asked_as for form in forms]
    assert all(one != other for one, other in itertools.combinations(asked, 2))
    assert model_of(url, batch=2).asked_as == asked[0]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"parameters": {"class_names": ["bee", "ant", "cat"]}}, "has the classes in the order bee, ant, cat"),
        ({"parameters": {"image_size": 64}}, "says that its images have 64 pixels; it is listed with 4"),
        ({"inputs": [{"name": "x", "shape": [-1, 3, 64, 64]}]}, "says that its images have 64 pixels; it is listed with 4"),
        ({"inputs": [{"name": "x", "shape": ["-1", "3", "64", "64"]}]}, "says that its images have 64 pixels"),
        ({"parameters": {"image_size": "64"}}, "says that its images have 64 pixels; it is listed with 4"),
        ({"parameters": {"labels": "bee,ant,cat"}}, "has the classes in the order bee, ant, cat"),
        ({"parameters": {"id2label": {"string_value": '{"0": "bee", "1": "ant", "2": "cat"}'}}}, "in the order bee, ant, cat"),
        ({"outputs": [{"name": "y", "parameters": {"labels": ["bee", "ant", "cat"]}}]}, "in the order bee, ant, cat"),
    ],
)
def test_what_a_server_says_against_its_list(served: Served, stub: Stub, said: dict[str, Any], message: str) -> None:
    stub.metadata |= said
    model = RemoteModel(Asking().client(served(stub.app()).url), ModelForm("m"), 3, SIZE, None, CLASSES)
    with pytest.raises(UserError, match=message):
        model.contact()


def test_a_classifications_labels_are_held_against_the_list() -> None:
    words = np.array([["0.7:1:bee", "0.2:0:ant", "0.1:2:cat"]])
    assert from_classification(words, 3, CLASSES).tolist() == [[0.2, 0.7, 0.1]]
    assert from_classification(words, 3, ("x", "y", "z")).tolist() == [[0.2, 0.7, 0.1]]  # names of one's own
    with pytest.raises(ValueError, match="'bee' is its class 1; it is listed as class 0"):
        from_classification(words, 3, ("bee", "ant", "cat"))
    twice = np.array([["0.7:1:crane", "0.2:0:crane", "0.1:2:cat"]])  # as ImageNet's
    assert from_classification(twice, 3, ("crane", "crane machine", "cat")).tolist() == [[0.2, 0.7, 0.1]]
    with pytest.raises(ValueError, match="expected value:index:label of 3"):
        from_classification(np.array([["0.7:-1:bee"]]), 3)


def test_percentages_are_no_logits(served: Served, stub: Stub) -> None:
    stub.outputs = lambda answer: [Named("p", "FP32", 100 * answer)]
    with pytest.raises(UserError, match="answers percentages"):
        model_of(served(stub.app()).url, answers="logits").ask(IMAGES, Meter())


def test_a_server_that_only_counts_its_classes_contradicts_no_names(served: Served, stub: Stub) -> None:
    stub.metadata["parameters"] = {"class_names": ["#000", "#001", "#002"]}
    model = RemoteModel(Asking().client(served(stub.app()).url), ModelForm("m"), 3, SIZE, None, CLASSES)
    assert model.contact()
