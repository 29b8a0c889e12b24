"""A server that nobody here wrote: MLServer in an environment of its own, asked by methods that need nothing but answers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import urllib3

import main
from examples import mlserver_repository as repository
from methods.services.black_box import LocalService
from methods.services.meter import Meter
from methods.teachers.manifest import read_manifest
from methods.teachers.pool import TeacherPool

ROOT = Path(__file__).resolve().parents[2]
IMAGES = torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SKLEARN = """
import sys, joblib, numpy as np
from sklearn.linear_model import LogisticRegression
draws = np.random.default_rng(0)
images, labels = draws.random((60, 768)), np.arange(60) % 3
images[:, :256] += labels[:, None]
joblib.dump(LogisticRegression().fit(images, labels), sys.argv[1])
"""

pytestmark = pytest.mark.slow


def test_a_repository_is_what_mlserver_reads(data_root: Path, tmp_path: Path) -> None:
    teachers = data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv"
    repository.main([str(tmp_path), "--teachers", str(teachers), "--port", "8080", "--count", "1"])
    settings = json.loads((tmp_path / "teacher-000/model-settings.json").read_text())
    assert settings["parameters"]["extra"] == {"row": 0}
    (row,) = read_manifest(tmp_path / "zoo.csv")
    assert row.class_keys == read_manifest(teachers)[0].class_keys


def to_onnx(pool: TeacherPool, path: Path) -> None:
    network, form = pool[0].network, pool[0].form

    class Answers(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return network(form.prepare(images)).softmax(1)

    names = {"input_names": ["pixels"], "output_names": ["p"], "dynamic_axes": {"pixels": {0: "batch"}, "p": {0: "batch"}}}
    torch.onnx.export(Answers().eval(), (IMAGES,), str(path), dynamo=False, **names)


@pytest.fixture
def pool(data_root: Path) -> TeacherPool:
    rows = read_manifest(data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv")
    return TeacherPool(rows, torch.device("cpu"))


@pytest.fixture
def zoo(pool: TeacherPool, data_root: Path, tmp_path: Path, wait_until: Callable[..., None]) -> Iterator[Path]:
    """Two teachers by our runtime, the first also as ONNX, and a classifier by MLServer's own runtime; with their list."""
    if sys.version_info >= (3, 13):
        pytest.skip("MLServer needs Python below 3.13")
    subprocess.run(["bash", "-c", "source scripts/environment.sh; services_environment"], cwd=ROOT, check=True)
    environment = ROOT / ".venv-services/bin"
    folder, port = tmp_path / "served", repository.free_port(repository.HOST, 0)
    teachers = data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv"
    repository.main([str(folder), "--teachers", str(teachers), "--port", str(port)])
    to_onnx(pool, tmp_path / "m.onnx")
    repository.write_model(folder, "exported", "mlserver_runtime.Onnx", tmp_path / "m.onnx")
    subprocess.run([environment / "python", "-c", SKLEARN, tmp_path / "m.joblib"], check=True)
    repository.write_model(folder, "forest", "mlserver_sklearn.SKLearnModel", tmp_path / "m.joblib")
    url = f"http://127.0.0.1:{port}"
    with (folder / "zoo.csv").open("a") as file:
        file.write(f"{url},service,exported,x;y;z,16,cifar100,nchw,probabilities,probabilities\n")
        file.write(f"{url},service,forest,x;y;z,16,cifar100,flat,predict_proba,probabilities\n")
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(
        [environment / "mlserver", "start", folder],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}"}, stdout=log, stderr=log,
    )  # fmt: skip

    def ready() -> bool:
        try:
            return urllib3.request("GET", f"{url}/v2/health/ready", retries=False).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    wait_until(ready, lambda: server.poll() is None)
    yield folder / "zoo.csv"
    server.kill()
    server.wait(60)


def test_its_models_are_teachers(zoo: Path, pool: TeacherPool, tmp_path: Path, tiny: list[str]) -> None:
    remote = TeacherPool(read_manifest(zoo), torch.device("cpu"))
    for number in range(2):
        own = LocalService(pool[number].answering).query(IMAGES)
        assert torch.equal(remote.black_box(number, Meter()).query(IMAGES), own)
    exported, forest = (remote.black_box(number, Meter()).query(IMAGES) for number in (2, 3))
    assert torch.allclose(exported, LocalService(pool[0].answering).query(IMAGES), atol=1e-5)
    assert torch.allclose(forest.sum(1), torch.ones(10), atol=1e-6)
    where = [*tiny, "--dataset", "cifar100", "--teachers", str(zoo), "--no_floors"]
    main.main(["--method", "teacher_ncm", "--ncm_on", "answers", *where, "--run_name", "ncm"])
    images = ["--num_images", "48", "--epochs", "2", "--batch_size", "16", "--val_interval", "1"]
    main.main(["--method", "chorus", "--black_box", *where, *images, "--run_name", "chorus"])
    quick = ["--episode_train", "2", "--q", "2", "--inversion_steps", "2", "--num_sup_kd", "4", "--num_qur_kd", "4"]
    main.main(["--method", "bidf_mkd", "--ZO", *where, *quick, "--run_name", "bidf"])
    for name in ("ncm", "chorus", "bidf"):
        assert (tmp_path / "runs" / name / "result.json").is_file()
    asked = json.loads((tmp_path / "runs/chorus/result.json").read_text())["asked_of_services"]
    assert asked["queries"] == asked["sent"] == 4 * 2 * 48
