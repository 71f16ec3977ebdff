"""A W&B workspace from the list of metrics; from a clone: needs the dependencies, but no installation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lpo_platform.tracking.loggers.dashboard import main

if __name__ == "__main__":
    main()
