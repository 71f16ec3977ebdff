"""A dataset of the model hub as a local folder."""

from pathlib import Path

from lpo_platform.config.errors import UserError
from lpo_platform.config.paths import is_hub_id


def local_folder(path: str | Path, splits: list[str]) -> Path:
    """The folder `path`; where there is none and `path` is `owner/name`, that hub dataset's files of `splits`.

    Only then is a network asked, and not for what is in huggingface_hub's own cache. UserError where nothing is found.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if folder.is_file():
        raise UserError(f"data.path={path} is a file; what works: its folder, data.path={folder.parent}")
    if not is_hub_id(str(path)):
        raise UserError(f"data.path={path}: no such folder; what works: a folder, or the hub id <owner>/<name>")
    return _fetch(str(path), splits)


def local_file(setting: str, path: str) -> Path:
    """The file `path`; of `<hub id>::<file>` that file of a hub dataset. UserError where it cannot be fetched."""
    name, _, file = path.partition("::")
    if not file or not is_hub_id(name) or Path(path).expanduser().exists():
        return Path(path).expanduser()
    from lpo_platform.models.hub import OutOfReach, hub_file  # takes a second to import

    try:
        return hub_file(name, file, kind="dataset")
    except OutOfReach as error:
        raise UserError(
            f"{setting}={path}: this file of a hub dataset cannot be fetched; what works: network, or a file. "
            f"Reason: {error}"
        ) from error


def _fetch(name: str, splits: list[str]) -> Path:
    from lpo_platform.models.hub import OutOfReach, hub_folder  # takes a second to import

    forms = ("*{}-*", "{}.*", "*/{}.*", "{}/*", "*/{}/*")
    patterns = [form.format(split) + suffix for split in splits for form in forms for suffix in (".parquet", ".tar")]
    try:
        return hub_folder(name, kind="dataset", patterns=patterns)
    except OutOfReach as error:
        raise UserError(
            f"data.path={name}: neither a folder here nor a hub dataset that can be fetched; what works: network, or "
            f"the folder it was downloaded to. Reason: {error}"
        ) from error
