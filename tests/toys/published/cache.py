"""Folders in the layout in which huggingface_hub keeps what it has downloaded, read with HF_HUB_OFFLINE=1."""

import hashlib
import shutil
from pathlib import Path

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}


def publish(cache: Path, name: str, folder: Path, kind: str = "model", revision: str = "main") -> Path:
    """Moves the files of a folder into the cache as a revision of the repository `name`; returns its snapshot.

    As there, a snapshot has links to blobs, and `refs/<revision>` names the commit.
    """
    place = cache / f"{KINDS[kind]}--{name.replace('/', '--')}"
    commit = hashlib.sha1(f"{name}@{revision}".encode(), usedforsecurity=False).hexdigest()
    snapshot = place / "snapshots" / commit
    for part in (place / "refs", place / "blobs", snapshot):
        part.mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        inner = file.relative_to(folder)
        # with its name, so that equal files have blobs of their own and it is seen which one was read
        blob = place / "blobs" / hashlib.sha256(str(inner).encode() + file.read_bytes()).hexdigest()
        link = snapshot / inner
        link.parent.mkdir(parents=True, exist_ok=True)
        file.replace(blob)
        link.symlink_to(Path(*[".."] * len(link.relative_to(place).parts[:-1]), "blobs", blob.name))
    shutil.rmtree(folder)
    return snapshot
