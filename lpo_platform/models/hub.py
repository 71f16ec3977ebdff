"""Whether a model hub can give what an id names. The answer comes within seconds, with or without a network."""

from functools import cache
from typing import Literal

from huggingface_hub import HfApi, constants, snapshot_download
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


@cache
def only_local(name: str, *, kind: Kind = "model", revision: str | None = None) -> bool:
    """Whether only the files of `name` that were downloaded before are within reach.

    The hub is asked once, with one short request: its own downloads try again for half a minute before they fail.
    Raises OutOfReach where the hub has no such id, or cannot be reached and nothing was downloaded.
    """
    where = constants.ENDPOINT
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
        return False
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
        snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise OutOfReach(reason) from None
    return True


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
