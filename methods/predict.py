"""`python -m methods.predict` is `methods.runs.predict`, and the classifier is that of `methods.runs.classifier`."""

from methods.runs.classifier import FewShotClassifier
from methods.runs.predict import main
from utils import cli

__all__ = ["FewShotClassifier"]

if __name__ == "__main__":
    cli.exit_with_message(main)
