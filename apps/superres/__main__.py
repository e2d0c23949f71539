"""``python -m apps.superres VERB``."""

from apps.core.cli.main import run
from apps.superres.config import TASK

if __name__ == "__main__":
    run(TASK)
