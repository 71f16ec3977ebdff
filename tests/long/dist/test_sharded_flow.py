"""hardware=fsdp: on a flow transformer every method ends in two processes as it does without sharded weights."""

import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file
from toys.runs import LAUNCH

from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.options import shipped

pytestmark = pytest.mark.dist

# with a large epsilon a weight moves in proportion to its gradient; Adam makes a whole step of rounding
WORDS = ["model=tiny_sd3", "debug=smoke", "logger=none", "optim.eps=1", "optim.lr=1", "optim.weight_decay=0"]


@pytest.mark.parametrize("method", shipped("method"))
def test_a_sharded_run_ends_as_a_whole_one(method: str, tmp_path: Path) -> None:
    words, exports = [f"method={method}", *WORDS], []
    if problems := diagnose("train", [*words, "hardware=fsdp"]):
        assert method == "lrm" and all(line.startswith("tune=reward with hardware=fsdp: ") for line in problems)
        return
    for strategy in ("ddp", "fsdp"):
        run = [f"hardware={strategy}", "hardware.accelerator=cpu", "hardware.devices=2"]
        command = [*LAUNCH, *words, *run, f"hydra.run.dir={strategy}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        files = sorted((tmp_path / strategy / "export").rglob("*.safetensors"))
        exports.append({str(file.relative_to(tmp_path / strategy)): load_file(file) for file in files})
    whole, sharded = exports
    assert whole and sharded.keys() == whole.keys()
    for file, weights in whole.items():
        assert sharded[file].keys() == weights.keys()
        apart = max((weights[name] - sharded[file][name]).abs().max() for name in weights)
        assert apart < 1e-5, (file, apart)
