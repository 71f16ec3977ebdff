"""A checkpoint that is broken is passed over; what a run leaves may be read by whom the umask says."""

import logging
import os
import stat
from pathlib import Path

import pytest
import torch
from toys import policy as toy_policy

from lpo_platform.config.errors import UserError
from lpo_platform.models.export import export
from lpo_platform.tracking.callbacks.checkpoint import newest

BROKEN = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "noise": lambda content: b"no archive",
}


def save(folder: Path, step: int, state: dict) -> Path:
    file = folder / f"step={step:08d}.ckpt"
    torch.save({"state_dict": state}, file)
    return file


@pytest.mark.parametrize("how", BROKEN)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert newest(tmp_path) is None
    first = save(tmp_path, 2, {"policy.x": torch.ones(1000)})
    second = save(tmp_path, 4, {"policy.x": torch.ones(1000)})
    assert newest(tmp_path) == second
    second.write_bytes(BROKEN[how](second.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == first
    (said,) = caplog.messages
    assert said.startswith(f"{second}: not a readable checkpoint of this platform (") and "\n" not in said
    assert said.endswith("; the run goes on from step=00000002.ckpt")
    first.write_bytes(BROKEN[how](first.read_bytes()))
    with pytest.raises(UserError, match=r"delete .* to start again"):
        newest(tmp_path)


def test_a_checkpoint_of_something_else_is_passed_over(tmp_path: Path) -> None:
    first = save(tmp_path, 2, {"policy.x": torch.ones(1)})
    save(tmp_path, 4, {"model.x": torch.ones(1)})
    assert newest(tmp_path) == first


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_exports_have_the_mode_that_the_umask_gives(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        export(toy_policy.control_policy(), tmp_path / "export")
    finally:
        os.umask(before)
    files = [file for file in (tmp_path / "export").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {mode}
