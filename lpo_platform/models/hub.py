"""Whether a model hub can give what an id names. The answer comes within seconds, with or without a network."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

TIMEOUT = 3.0  # seconds for the connection and again for the answer
Kind = Literal["model", "dataset", "space"]


class OutOfReach(Exception):
    """Neither the hub nor what was downloaded before has it; the text says why."""


@dataclass(frozen=True)
class Repository:
    """What there is of a hub repository.

    Args:
        folder: where it was downloaded to before; None where the hub answers and can be asked for files.
        files: the names of its files.
    """

    folder: Path | None
    files: tuple[str, ...]


@cache
def look(name: str, *, kind: Kind = "model", revision: str | None = None) -> Repository:
    """What a hub has of `name`, else what was downloaded before.

    The hub is asked once, with one short request: its own downloads try again for half a minute before they fail.
    Raises OutOfReach where the hub has no such id, or cannot be reached and nothing was downloaded.
    """
    where = constants.ENDPOINT
    try:
        found = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
        return Repository(None, tuple(file.rfilename for file in found.siblings or ()))
    except RepositoryNotFoundError:
        reason = f"{where} has no {kind} of this id, or it is private and needs `hf auth login`"
    except RevisionNotFoundError:
        reason = f"{where} has this id, but not its revision {revision!r}"
    except HFValidationError as error:
        raise OutOfReach(f"it has not the form of a hub id: {_first(error)}") from error
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set, and the id was not downloaded before"
    except HfHubHTTPError as error:
        reason = f"{where} answers with an error: {_first(error)}"
    except Exception as error:  # each transport has its own exceptions, and one answer fits them all
        reason = f"{where} cannot be reached ({_first(error)}), and the id was not downloaded before"
    try:
        folder = Path(snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise OutOfReach(reason) from None
    return Repository(folder, tuple(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))


def hub_file(name: str, file: str, *, kind: Kind = "model", subfolder: str | None = None) -> Path:
    """One file of a hub repository. Raises OutOfReach."""
    local = look(name, kind=kind).folder is not None
    return _download(hf_hub_download, name, file, repo_type=kind, subfolder=subfolder, local_files_only=local)


def hub_folder(name: str, *, kind: Kind = "model", patterns: str | list[str] | None = None) -> Path:
    """The files of a hub repository whose names match. Raises OutOfReach."""
    local = look(name, kind=kind).folder is not None
    return _download(snapshot_download, name, repo_type=kind, allow_patterns=patterns, local_files_only=local)


def _download(function: Callable[..., str], *names: str, **options: Any) -> Path:
    try:
        return Path(function(*names, **options))
    except Exception as error:  # the hub, its cache and the network have an exception each
        raise OutOfReach(_first(error)) from error


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
