import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.applications import Starlette
from torch import nn
from torch.func import functional_call

import main
from methods.distillation.divergences import kl_divergence
from methods.inversion.pseudo_batch import PseudoBatch, labels_of
from methods.runs.serve import create_app
from methods.services.black_box import LocalService
from methods.services.client import Client
from methods.services.meter import LEDGER, Meter
from methods.services.remote import RemoteModel
from methods.teachers.manifest import read_manifest
from methods.teachers.pool import TeacherPool
from utils.errors import UserError
from utils.metrics import Patience

Flags = Callable[..., list[str]]
Build = Callable[..., Any]


def result_of(tmp_path: Path) -> dict:
    (path,) = (tmp_path / "runs").glob("*/result.json")
    return json.loads(path.read_text())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("steps", ["1", "3"])
def test_the_learner_moves_by_the_gradient_through_the_inner_loop(build: Build, steps: str) -> None:
    """The outer step against one that is written out here, on the sets that the method itself inverted."""
    method = build("bidf_mkd", "--inner_update_num_kd", steps).method
    start = {name: value.detach().clone().requires_grad_() for name, value in method.learner.params.items()}
    sets: list[Any] = []
    invert = method.invert
    method.invert = lambda *what: (sets.append(found := invert(*what)), found)[1]
    moved, accuracy, _ = method.learn_from_a_service(0)
    (support, _), (query, _) = sets
    teacher = next(method.teachers[i] for i in range(len(method.teachers)) if method.teachers[i].class_ids == support.class_ids)

    def loss(params: dict, batch: object) -> torch.Tensor:
        images = method.learner.prepare(batch.images)  # type: ignore[attr-defined]
        answers = teacher(batch.images).softmax(1).clamp(min=1e-6).log()  # type: ignore[attr-defined]
        return kl_divergence(answers, functional_call(method.learner.network, params, (images,)))

    fast = start
    for _ in range(int(steps)):
        gradients = torch.autograd.grad(loss(fast, support), list(fast.values()), create_graph=True)
        fast = {name: value - 0.01 * gradient for (name, value), gradient in zip(fast.items(), gradients, strict=True)}
    wanted = torch.autograd.grad(loss(fast, query), list(start.values()))
    for name, gradient in zip(start, wanted, strict=True):
        assert torch.allclose(moved[name], gradient, rtol=1e-9, atol=1e-12)
    answers = functional_call(method.learner.network, fast, (method.learner.prepare(query.images),))
    assert accuracy == float((answers.argmax(1) == query.labels).double().mean())


@pytest.mark.usefixtures("float64")
def test_an_outer_step_adds_distillation_and_episodes(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """One Adam sees the sum over all tasks of a step: one service and the episodes of memory beside it."""
    method = build("bidf_mkd", "--episode_batch", "3").method
    service, episodes, total = method.learn_from_a_service, method.outer.gradient, {}
    parts: list[Any] = []
    monkeypatch.setattr(method, "learn_from_a_service", lambda i: (parts.append(found := service(i)), found)[1])
    monkeypatch.setattr(
        method.outer, "gradient", lambda some: (parts.append((*(found := episodes(some)), len(some))), found)[1]
    )
    monkeypatch.setattr(method.outer, "follow", total.update)
    numbers = method.train_iteration(0)
    (distilled, accuracy, _), (replayed, _, replay_accuracy, count) = parts
    assert count == 2
    assert numbers["accuracy"] == pytest.approx((accuracy + 2 * replay_accuracy) / 3, rel=1e-12)
    for name, value in total.items():
        assert torch.allclose(value, distilled[name] + replayed[name], rtol=1e-12)


def test_a_new_service_comes_when_patience_ends(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accuracy of the drawing update is the first best; three updates that are no better end the wait."""
    method = build("bidf_mkd", "--patience", "3").method
    accuracies, note = iter([0.5, 0.6, 0.6, 0.6, 0.6, 0.9, 0.1, 0.1, 0.1]), method.patience.note
    monkeypatch.setattr(method.patience, "note", lambda accuracy: note(next(accuracies)))
    visits = ["inversion_loss" in method.train_iteration(iteration) for iteration in range(9)]
    assert visits == [True, False, False, False, False, True, False, False, False]
    assert method.progress.due


@pytest.mark.parametrize("flags", [[], ["--ZO"]])
def test_white_and_black_boxes(flags_for: Flags, tmp_path: Path, flags: list[str]) -> None:
    main.main([*[flag for flag in flags_for("bidf_mkd") if flag != "--ZO"], *flags])
    result = result_of(tmp_path)
    if not flags:
        assert result["asked_of_services"] == {}
        assert "one frozen teacher (mean)" in result["yardsticks"]
        return
    one_set = 3 * 8 * (2 * (2 + 1) + 1)  # images x (steps x (q + 1) + the answers for distillation)
    assert result["asked_of_services"]["queries"] == 2 * one_set == result["asked_of_services"]["queries_of_a_visit"]
    assert result["asked_of_services"]["queries_per_image"] == one_set / 24
    assert "waiting for services" not in result["seconds"]  # there was none
    assert "one frozen teacher (mean), answers alone" in result["yardsticks"]


def test_a_visit_asks_what_was_said_looking_both_ways_too(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("bidf_mkd", 1), "--q", "3", "--zo_estimator", "antithetic"])
    asked = result_of(tmp_path)["asked_of_services"]
    assert asked["queries"] == asked["queries_of_a_visit"]


def test_a_spent_budget_ends_inversion_and_the_run_goes_on(
    flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an accuracy that never rises a service is visited at every second update, until the budget for two is spent."""
    note = Patience.note
    monkeypatch.setattr(Patience, "note", lambda self, accuracy: note(self, 0.25))
    main.main([*flags_for("bidf_mkd", 12), "--query_budget", "700"])
    result = result_of(tmp_path)
    assert 600 < result["asked_of_services"]["queries"] <= 700
    lines = [json.loads(line) for line in next((tmp_path / "runs").glob("*/metrics.jsonl")).read_text().splitlines()]
    assert ["inversion_loss" in line for line in lines] == [True, False] * 2 + [False] * 8
    assert all("accuracy" in line for line in lines)


def test_a_budget_for_nothing_is_an_error(flags_for: Flags) -> None:
    with pytest.raises(UserError, match="raise it, or lower --q"):
        main.main([*flags_for("bidf_mkd"), "--query_budget", "30"])


def test_steps_that_eight_bits_cannot_carry_are_refused(flags_for: Flags, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="try --mu ") as caught:
        main.main([*flags_for("bidf_mkd"), "--api_dtype", "uint8"])
    proposed = str(caught.value).split("try --mu ")[1].split()[0]
    main.main([*flags_for("bidf_mkd"), "--api_dtype", "uint8", "--mu", str(1.05 * float(proposed))])
    assert result_of(tmp_path)["asked_of_services"]["queries"] > 0


def test_the_border_is_with_the_learner_as_adapted(build: Build) -> None:
    method = build("bidf_mkd", "--advstartit", "0", "--patience", "1").method
    borders, invert = [], method.invert
    method.invert = lambda teacher, count, against=None: (borders.append(against), invert(teacher, count, against))[1]
    for iteration in (0, 1):
        method.progress.due = True
        method.train_iteration(iteration)
    assert [against is None for against in borders] == [True, True, True, False]
    adapted = borders[-1]
    assert any(not torch.equal(adapted[name], value) for name, value in method.learner.params.items())


def test_a_term_that_a_service_cannot_show_is_refused(flags_for: Flags) -> None:
    with pytest.raises(UserError, match="--ZO --bn: a service gives answers alone"):
        main.parse_args([*flags_for("bidf_mkd"), "--bn", "1"])


def app(data_root: Path) -> Starlette:
    """A pool behind HTTP."""
    rows = read_manifest(data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv")
    return create_app(TeacherPool(rows, torch.device("cpu")))


class OnTheWire(LocalService):
    """A local service whose images and answers pass through the 32 bits that go over the wire."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        answer = self.query
        self.query = lambda images: answer(images.float().double()).float()


@pytest.mark.usefixtures("float64")
def test_over_http_the_run_is_the_local_one(
    served: Callable[..., Any], data_root: Path, flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as locally:
        locally.setattr("methods.teachers.pool.LocalService", OnTheWire)
        main.main([*flags_for("bidf_mkd"), "--run_name", "local"])
    where = ["--dataset", "cifar100", "--teachers", served(app(data_root)).url]
    main.main([*flags_for("bidf_mkd"), *where, "--price_per_1000", "2", "--run_name", "http"])
    local, http = (json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("local", "http"))
    asked, queries = http["asked_of_services"], local["asked_of_services"]["queries"]
    assert asked["queries"] == asked["sent"] == queries
    assert asked["price"] == pytest.approx(2 * queries / 1000)
    assert http["seconds"]["waiting for services"] > 0
    one, other = (torch.load(tmp_path / "runs" / name / "best.pt") for name in ("local", "http"))
    for name, value in one["learner"]["params"].items():
        assert torch.allclose(value, other["learner"]["params"][name], rtol=0, atol=1e-9)


def test_what_was_answered_is_not_asked_again(
    served: Callable[..., Any], data_root: Path, flags_for: Flags, tmp_path: Path
) -> None:
    """A second run with the same flags takes every answer from the store, and counts its queries all the same."""
    where = ["--dataset", "cifar100", "--teachers", served(app(data_root)).url, "--no_floors"]
    for name in ("first", "second"):
        main.main([*flags_for("bidf_mkd"), *where, "--run_name", name])
    first, second = (json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("first", "second"))
    assert first["asked_of_services"]["sent"] == first["asked_of_services"]["queries"]
    assert second["asked_of_services"] == first["asked_of_services"] | {"sent": 0}
    assert not (tmp_path / "runs/second" / LEDGER).exists()
    assert first["accuracy"] == second["accuracy"]


def test_a_server_that_comes_back_is_waited_for(
    served: Callable[..., Any],
    flags_for: Flags,
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes away at the run's fifth question, and is back on the same port once the run has met a closed door."""
    server, refused = served(app(data_root)), threading.Event()
    asked: list[int] = []
    ask, request = RemoteModel.ask, Client._request

    def leaving(self: RemoteModel, images: torch.Tensor, meter: Meter) -> torch.Tensor:
        asked.append(len(images))
        if len(asked) == 5:
            server.stop()
        return ask(self, images, meter)

    def noticed(self: Client, *what: Any) -> Any:
        try:
            return request(self, *what)
        except Exception:
            if not refused.is_set():
                refused.set()
                served(app(data_root), server.port)
            raise

    monkeypatch.setattr(RemoteModel, "ask", leaving)
    monkeypatch.setattr(Client, "_request", noticed)
    main.main([*flags_for("bidf_mkd", 4), "--dataset", "cifar100", "--teachers", server.url, "--no_floors"])
    assert refused.is_set()
    result = result_of(tmp_path)["asked_of_services"]
    assert result["queries"] == sum(asked)
    assert result["sent"] > result["queries"]  # what met a closed door left twice, and is counted


def test_methods_that_look_inside_refuse_services(served: Callable[..., Any], data_root: Path, flags_for: Flags) -> None:
    with pytest.raises(UserError, match="choose a black-box method"):
        main.main([*flags_for("free"), "--teachers", served(app(data_root)).url])


def test_services_are_measured_by_their_answers(
    served: Callable[..., Any], data_root: Path, flags_for: Flags, tmp_path: Path
) -> None:
    where = ["--teachers", served(app(data_root)).url, "--dataset", "cifar100"]
    main.main([*flags_for("teacher_ncm"), *where, "--ncm_on", "probabilities", "--run_name", "http"])
    main.main([*flags_for("teacher_ncm"), "--ncm_on", "probabilities", "--run_name", "local"])
    http, local = (json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("http", "local"))
    assert http["episodes"] == local["episodes"]


def test_what_the_judge_asks_counts_apart(build: Build) -> None:
    method = build("bidf_mkd").method
    (batch,) = method.recover([1])
    assert batch.images.shape == (24, 3, 16, 16)
    assert method.meter == Meter(None, method.clock)


def test_twenty_sets_of_a_class_are_kept_whatever_they_are(build: Build) -> None:
    """Support and query sets take turns in one ring; that they have different sizes must not change how many stay."""
    method = build("bidf_mkd", "--num_sup_kd", "2", "--num_qur_kd", "5").method
    teacher = method.teachers[0]
    for number in range(13):
        for per_class in (2, 5):
            images = torch.full((per_class * teacher.way, 3, 16, 16), number / 255)
            method.memory.add(PseudoBatch(images, labels_of(teacher, per_class), teacher.class_ids))
    kept = method.memory.images[teacher.class_ids[0], :, 0, 0, 0]
    assert sorted(kept.tolist()) == sorted(number for number in range(3, 13) for _ in range(7))
