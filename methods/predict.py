"""`python -m methods.predict` is `methods.runs.predict`, where the classifier lives."""

from methods.runs.predict import FewShotClassifier, main
from utils import cli

__all__ = ["FewShotClassifier"]

if __name__ == "__main__":
    cli.exit_with_message(main)
