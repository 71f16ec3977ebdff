"""The cache: what was written comes back, whatever was torn, altered, foreign or stale does not."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lpo_platform.data.prepared.cache import Cache, CacheError
from lpo_platform.runs.files import ABANDONED_AFTER, file_digest, fingerprint, write_atomically


def content(shard: range) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    items = torch.arange(shard.start, shard.stop)
    tensors = {
        "map": (items[:, None, None] % 256).to(torch.uint8).expand(-1, 4, 4),
        "latents": items[:, None].float() * torch.ones(1, 3),
        "half": items[:, None].to(torch.bfloat16),
        "flag": items % 2 == 0,
    }
    return tensors, {"caption": [f"item {i} é" for i in items.tolist()]}


def fill(cache: Cache) -> None:
    for shard in cache.missing():
        cache.write(shard, *content(shard))


def assert_holds_everything(cache: Cache) -> None:
    tensors, texts = cache.load()
    expected, expected_texts = content(range(cache.total))
    assert texts == expected_texts
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


@given(total=st.integers(0, 23), shard_size=st.integers(1, 9))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_comes_back(tmp_path_factory: pytest.TempPathFactory, total: int, shard_size: int) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"), "a" * 64, total, shard_size)
    assert [i for shard in cache.missing() for i in shard] == list(range(total))
    fill(cache)
    assert cache.complete()
    if total:
        assert_holds_everything(cache)
    else:
        assert cache.load() == ({}, {})


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


def test_a_changed_fingerprint_part_starts_an_empty_cache_and_keeps_the_other(tmp_path: Path) -> None:
    old = Cache(tmp_path, fingerprint("weights", 1), 6, 3)
    fill(old)
    new = Cache(tmp_path, fingerprint("weights", 2), 6, 3)
    assert new.missing() == [range(0, 3), range(3, 6)]
    with pytest.raises(CacheError, match=r"2 of 2 shards are not built yet.*lpo-prepare"):
        new.load()
    assert_holds_everything(Cache(tmp_path, fingerprint("weights", 1), 6, 3))


def test_a_cache_that_grows_keeps_its_whole_shards(tmp_path: Path) -> None:
    fill(Cache(tmp_path, "f" * 64, 7, 3))
    assert Cache(tmp_path, "f" * 64, 12, 3).missing() == [range(6, 9), range(9, 12)]


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_text(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"item 4", b"item 5"))


def from_another_cache(path: Path) -> None:
    other = Cache(path.parent / "other", "b" * 64, 6, 3)
    other.write(range(3, 6), *content(range(3, 6)))
    path.write_bytes(other.path(range(3, 6)).read_bytes())


def from_another_place(path: Path) -> None:
    path.write_bytes((path.parent / "00000000-00000003.safetensors").read_bytes())


def without_description(path: Path) -> None:
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    "damage",
    [flip_a_byte, cut, empty, other_text, from_another_cache, from_another_place, without_description],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_or_foreign_shard_is_missing_explained_and_rebuilt(tmp_path: Path, damage) -> None:
    cache = Cache(tmp_path, "a" * 64, 6, 3)
    fill(cache)
    assert cache.complete()
    damage(cache.path(range(3, 6)))
    for reader in (cache, Cache(tmp_path, "a" * 64, 6, 3)):
        assert reader.missing() == [range(3, 6)]
        with pytest.raises(CacheError, match=r"00000003-00000006\.safetensors: .*lpo-prepare"):
            reader.load()
    fill(cache)
    assert_holds_everything(cache)


WRITER = """
    import sys, torch
    from lpo_platform.data.prepared.cache import Cache
    cache = Cache(sys.argv[1], "a" * 64, 4, 2)
    print("ready", flush=True)
    while True:
        for shard in cache.shards:
            cache.write(shard, {"x": torch.full((2, 2_000_000), float(shard.start))}, {"t": ["a", "b"]})
"""


@pytest.mark.timeout(300)
def test_a_writer_killed_at_any_moment_leaves_whole_shards_or_none(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)]
    torn = 0
    for attempt in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
            until = time.monotonic() + 60
            while time.monotonic() < until and not list(tmp_path.glob("*/.*.tmp")):
                time.sleep(0.001)
            time.sleep(0.003 * attempt)
            writer.send_signal(signal.SIGKILL)
        torn += len(list(tmp_path.glob("*/.*.tmp")))
        cache = Cache(tmp_path, "a" * 64, 4, 2)
        for shard in set(cache.shards) - set(cache.missing()):
            assert torch.equal(load_file(cache.path(shard))["x"], torch.full((2, 2_000_000), float(shard.start)))
    assert torn, "no kill fell into a write: the test says nothing"
    for shard in cache.shards:
        cache.write(shard, *content(shard))
    assert_holds_everything(cache)


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


def test_two_processes_build_disjoint_shards(tmp_path: Path) -> None:
    code = """
        import sys, torch
        from lpo_platform.data.prepared.cache import Cache
        cache = Cache(sys.argv[1], "a" * 64, 40, 2)
        for shard in cache.shards[int(sys.argv[2])::2]:
            cache.write(shard, {"x": torch.arange(shard.start, shard.stop)}, {"t": [str(i) for i in shard]})
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    writers = [subprocess.Popen([*command, str(rank)]) for rank in (0, 1)]
    assert [writer.wait(180) for writer in writers] == [0, 0]
    tensors, texts = Cache(tmp_path, "a" * 64, 40, 2).load()
    assert tensors["x"].tolist() == list(range(40))
    assert texts["t"] == [str(i) for i in range(40)]


def test_tensors_that_share_storage_or_are_views_are_stored(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    cache = Cache(tmp_path, "a" * 64, 3, 3)
    cache.write(range(3), {"a": base, "b": base, "c": base[:, ::2], "d": base.t()[:3]}, {})
    tensors, _ = cache.load()
    assert torch.equal(tensors["c"], base[:, ::2]) and torch.equal(tensors["d"], base.t()[:3])


def test_misuse_is_refused_with_the_numbers(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "a" * 64, 6, 3)
    with pytest.raises(ValueError, match="is not a shard"):
        cache.write(range(2, 5), {}, {})
    with pytest.raises(ValueError, match=r"items 0-3 need first axes of 3, got \{'x': 2, 't': 4\}"):
        cache.write(range(3), {"x": torch.zeros(2), "y": torch.zeros(3)}, {"t": ["a"] * 4})
    with pytest.raises(ValueError, match="shard_size >= 1"):
        Cache(tmp_path, "a" * 64, 6, 0)


def test_shards_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "a" * 64, 6, 3)
    cache.write(range(3), {"x": torch.zeros(3, 2)}, {})
    cache.write(range(3, 6), {"x": torch.zeros(3, 4)}, {})
    with pytest.raises(CacheError, match=r"00000003-00000006.*delete .* and build it again"):
        cache.load()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file", "a" * 64, 1, 1)
    with pytest.raises(CacheError, match=r"00000000-00000001\.safetensors: cannot write .*run the command again"):
        cache.write(range(1), {"x": torch.zeros(1)}, {})
    assert cache.missing() == [range(1)]
