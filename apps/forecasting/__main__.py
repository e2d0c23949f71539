"""``python -m apps.forecasting VERB``."""

from apps.core.cli.main import run
from apps.forecasting.config import TASK

if __name__ == "__main__":
    run(TASK)
