"""How tests start lpo-train in a process of its own, and read the weights that it leaves."""

import hashlib
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


LAUNCH = [sys.executable, str(REPO / "launchers" / "train.py")]


def weights(run: Path) -> dict[str, str]:
    files = sorted((run / "export").rglob("*.safetensors"))
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
