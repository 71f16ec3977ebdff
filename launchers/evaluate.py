"""lpo-eval from a clone: needs the dependencies, but no installation of this package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lpo_platform.commands.main import evaluate

if __name__ == "__main__":
    evaluate()
