"""Files that are whole or not there, and fingerprints that are the same tomorrow."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from lpo_platform.runs.files import ABANDONED_AFTER, file_digest, fingerprint, write_atomically


def test_fingerprint_is_stable_and_depends_on_every_part() -> None:
    assert fingerprint("a", {"x": 1, "y": [2, None]}) == fingerprint("a", {"y": [2, None], "x": 1})
    # A literal value: fingerprints of today must be found by the process of tomorrow.
    assert fingerprint("a", 1) == hashlib.sha256(b'["a",1]').hexdigest()
    different = {fingerprint(*p) for p in (("a", "b"), ("ab",), ("b", "a"), (["a", "b"],), ("a", 1), ("a", "1"))}
    assert len(different) == 6
    with pytest.raises(TypeError):
        fingerprint({"a", "b"})


def test_file_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x").startswith("ba7816bf8f01cfea")


def test_what_a_killed_writer_left_is_removed_and_a_living_writer_is_not_disturbed(tmp_path: Path) -> None:
    dead, living = tmp_path / ".x.json.dead.tmp", tmp_path / ".x.json.living.tmp"
    other = tmp_path / ".y.json.dead.tmp"
    for path in (dead, living, other):
        path.write_text("half")
    long_ago = time.time() - ABANDONED_AFTER - 1
    for path in (dead, other):
        os.utime(path, (long_ago, long_ago))
    write_atomically(tmp_path / "x.json", json.dumps([1]).encode())
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", living.name, other.name}
