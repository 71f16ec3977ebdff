"""Uploads what lpo-export has written and verified to a repository of a model hub.

The token is the one of huggingface_hub: HF_TOKEN, or what `hf auth login` has stored. It is written nowhere.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import validate_repo_id

from lpo_platform.config.errors import UserError
from lpo_platform.runs.files import file_digest
from lpo_platform.runs.record import redact

T = TypeVar("T")


def check_access(repo: str, *, private: bool) -> None:
    """UserError where nothing should be uploaded: there is no valid token, or the repository is public already."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"repo={repo}: {_first(error)}") from error
    if get_token() is None:
        raise UserError("to=hub: no token; log in with `hf auth login`, or set HF_TOKEN to a token that may write")
    api = HfApi()
    _asked(api.whoami)
    if private and _asked(lambda: api.repo_exists(repo)) and not _asked(lambda: api.model_info(repo)).private:
        raise UserError(f"repo={repo}: exists and is public; leave private=true out, or take another repository")


def push(folder: Path, repo: str, *, private: bool, title: str) -> str:
    """Creates the repository if it does not exist, uploads the folder as one commit and compares what has arrived.

    Returns the address of the commit. A repository that exists keeps its visibility and its other files.
    """
    api = HfApi()
    _asked(lambda: api.create_repo(repo, private=private, exist_ok=True))
    commit = _asked(lambda: api.upload_folder(repo_id=repo, folder_path=folder, commit_message=title))
    arrived = _asked(lambda: api.model_info(repo, revision=commit.oid, files_metadata=True))
    _compare(folder, {file.rfilename: file for file in arrived.siblings or ()}, repo)
    return str(commit.commit_url)


def _compare(folder: Path, arrived: dict[str, RepoSibling], repo: str) -> None:
    """UserError where a file of the folder is not in the repository as it is here."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        file = arrived.get(name)
        large = file is not None and file.lfs is not None
        same = file is not None and (
            file.lfs.sha256 == file_digest(path) if large else file.blob_id == _git_digest(path.read_bytes())
        )
        if not same:
            raise UserError(f"repo={repo}: {name} is there in another form than here; upload again")


def _git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _asked(request: Callable[[], T]) -> T:
    """The answer of the hub; UserError where it has none."""
    try:
        return request()
    except OfflineModeIsEnabled as error:
        raise UserError("to=hub: HF_HUB_OFFLINE is set") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = "; the token must be valid and may have to have write access" if status in (401, 403) else ""
        raise UserError(f"to=hub: {constants.ENDPOINT} answers {status}: {_first(error)}{advice}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"to=hub: {constants.ENDPOINT}: {_first(error)}") from error
    except Exception as error:
        if "httpx" not in type(error).__module__:
            raise
        raise UserError(f"to=hub: {constants.ENDPOINT} cannot be reached: {_first(error)}") from error


def _first(error: BaseException) -> str:
    """The first line of its text that says something, without secrets."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redact((lines or [type(error).__name__])[0])[:200]
