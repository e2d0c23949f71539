"""``python -m apps.classification VERB``."""

from apps.classification.config import TASK
from apps.core.cli.main import run

if __name__ == "__main__":
    run(TASK)
