"""A learner as a folder that can be handed on: config.json, model.safetensors, and a card, README.md. No pickle."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from methods.evaluation.yardsticks import CEILINGS
from utils import checkpoint
from utils.errors import UserError
from utils.files import new_folder, write_text

FORMAT = 1
OF_ENSEMBLES = ("teachers", "view")  # what the state of teachers side by side has beside a learner's
UNSEEN = "It was made without any data of the classes its teachers knew."
CARD = """# A few-shot learner

It tells new classes apart from a few labelled images each. {made}

{facts}

```python
from methods.predict import FewShotClassifier  # of the program that made it

classifier = FewShotClassifier.load("{name}"){fit}
names = classifier.predict(other_images)  # tensors, arrays, Pillow pictures or paths
```

{scores}
**Before you hand it on**: what it knows comes from its teachers, whose licences and terms of service may restrict what is
made of them; images that were recovered from them may show what their training data looked like. The program checks neither.
"""


def write_folder(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write what `FewShotClassifier.save` hands over into a new folder, whole or not at all."""
    learner = content["learner"]
    tensors = {f"params.{name}": value for name, value in learner["params"].items()}
    tensors |= {name: content[name] for name in ("support", "labels") if name in content}
    if learner["readout"]["matrix"] is not None:
        tensors["readout.matrix"] = learner["readout"]["matrix"]
    config = {
        "format": FORMAT,
        "spec": learner["spec"],
        "mirror": learner["readout"]["mirror"],
        **{name: learner[name] for name in OF_ENSEMBLES if name in learner},
        **{name: content[name] for name in ("metalearner", "inner_lr", "test_inner_steps", "temperature")},
        "classes": content.get("classes", []),
        "about": content["about"],
    }
    with new_folder(folder) as temporary:
        checkpoint.save_tensors(tensors, temporary / "model.safetensors")
        write_text(temporary / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        write_text(temporary / "README.md", card(config, folder.name))
    return folder


def read_folder(folder: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """What `write_folder` was given. Raises `UserError` where a file is missing or damaged, or of a later format."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["format"] > FORMAT:
            raise UserError(f"{folder} was written by a later version of the program (format {config['format']})")
        tensors = checkpoint.load(folder / "model.safetensors", device)
        params = {name.removeprefix("params."): value for name, value in tensors.items() if name.startswith("params.")}
        readout = {"mirror": config["mirror"], "matrix": tensors.get("readout.matrix")}
        content = {name: config[name] for name in ("metalearner", "inner_lr", "test_inner_steps", "classes", "about")}
        content["temperature"] = config.get("temperature")  # earlier versions kept none
        if config["classes"]:
            content |= {"support": tensors["support"], "labels": tensors["labels"]}
        teachers = {name: config[name] for name in OF_ENSEMBLES if name in config}
        return content | {"learner": {"spec": config["spec"], "params": params, "readout": readout, **teachers}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no learner that can be read ({type(error).__name__}: {error})") from error


def about_run(folder: Path) -> dict[str, Any]:
    """What a card says of the run that made a learner: method, data, scores and floors; {} where there is no result."""
    path = folder / "result.json"
    try:
        result = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError, RecursionError):
        print(f"note: {path} is damaged: what the run's scores were is not known", file=sys.stderr)
        return {}
    if not result:
        return {}
    names = ("method", "paper", "dataset", "testdataset", "teachers", "selected_on", "way", "shot", "accuracy", "examined")
    about = {name: result[name] for name in names if result.get(name)}
    return about | {
        "floors": {
            label: {name: {key: score[key] for key in ("mean", "half_width")} for name, score in by_set.items()}
            for label, by_set in result.get("yardsticks", {}).items()
        }
    }


def card(config: Mapping[str, Any], name: str) -> str:
    """The page that goes with a learner: what it was made from, how good it is beside floors, how it is used."""
    about, spec = config["about"], config["spec"]
    facts = [
        f"- method: {about.get('method', 'not known')}" + (f" ({about['paper']})" if about.get("paper") else ""),
        f"- teachers: {about.get('teachers', 'not known')}, of {about.get('dataset') or 'own models'}",
        f"- network: {spec['arch']}, images of {spec['image_size']} pixels; read by {config['metalearner']}",
    ]
    if config["classes"]:
        facts.append(f"- shown {len(config['classes'])} classes: {', '.join(map(str, config['classes']))}")
    rows = [(about.get("method", ""), about.get("accuracy", {})), *about.get("floors", {}).items()]
    lines = [
        f"| {label} | {image_set} | {100 * score['mean']:.2f} ± {100 * score['half_width']:.2f} |"
        for label, by_set in rows
        for image_set, score in by_set.items()
    ]
    title = f"{about.get('way')}-way {about.get('shot')}-shot, selected on {about.get('selected_on')}, accuracy in %"
    scores = "\n".join([f"| {title} | | |", "|---|---|---|", *lines]) + "\n" if lines else "Not evaluated.\n"
    fit = "" if config["classes"] else '.fit(images, ["cat", "cat", "dog", "dog"])'
    real = about.get("method") in CEILINGS or "real" in about.get("examined", "")
    made = f"It was made with real images of {about.get('dataset')}." if real else UNSEEN
    return CARD.format(made=made, facts="\n".join(facts), name=name, fit=fit, scores=scores)
