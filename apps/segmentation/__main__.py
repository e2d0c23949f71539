"""``python -m apps.segmentation VERB``."""

from apps.core.cli.main import run
from apps.segmentation.config import TASK

if __name__ == "__main__":
    run(TASK)
