"""What FID compares with: the mean and the covariance of Inception's features of real pictures, stored or computed."""

import logging
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.data.picture_files import BadPicture
from lpo_platform.evaluation.frechet import moments
from lpo_platform.evaluation.measures.inception import WIDTH, Inception
from lpo_platform.evaluation.what.clip_lpips import opened
from lpo_platform.runs.files import write_atomically
from lpo_platform.runs.given_files import PICTURES, files_below, shown

Moments = tuple[NDArray[np.float64], NDArray[np.float64]]
BATCH = 32
log = logging.getLogger(__name__)


def moments_of(path: str, inception: Inception, device: torch.device) -> Moments:
    """Returns mean (2048,) and covariance (2048, 2048) of a folder of pictures, or of a file. Raises UserError."""
    place = Path(path).expanduser()
    if not place.is_dir():
        return stored(place, inception)
    features, left_out = features_of(path, inception, device)
    for reason, names in left_out.items():
        log.warning("%s: %d pictures left out, %s: %s", path, len(names), reason, ", ".join(names[:3]))
    return moments(features)


def features_of(
    path: str, inception: Inception, device: torch.device
) -> tuple[NDArray[np.float32], dict[str, list[str]]]:
    """((N, 2048) of the pictures in a folder, in the order of their names; the other ones by reason).

    Raises UserError where fewer than two can be read.
    """
    folder = Path(path).expanduser()
    files = [folder / name for name in files_below(folder) if name.lower().endswith(PICTURES)]
    found: list[NDArray[np.float32]] = []
    left_out: dict[str, list[str]] = {}
    for start in tqdm(range(0, len(files), BATCH), desc=f"features of {Path(path).name}", unit="batch"):
        images = []
        for file in files[start : start + BATCH]:
            try:
                images.append(opened(file)[0].to(device))
            except BadPicture as error:
                left_out.setdefault(error.reason, []).append(shown(file.relative_to(folder).as_posix()))
        found += [inception(images).cpu().numpy()] if images else []
    count = sum(map(len, found))
    if count < 2:
        reasons = "".join(f", {len(names)} {reason}" for reason, names in left_out.items())
        raise UserError(f"{path}: {count} pictures{reasons}; FID needs many, and a covariance two")
    return np.concatenate(found), left_out


def store(file: Path, known: Moments, count: int, inception: Inception) -> None:
    """Stores the moments as `mu` and `sigma` in float64, with the number of pictures and which Inception saw them."""
    tensors = {name: torch.from_numpy(value) for name, value in zip(("mu", "sigma"), known, strict=True)}
    write_atomically(file, save(tensors, {"count": str(count), "inception": inception.identity}))


def stored(file: Path, inception: Inception) -> Moments:
    """Reads the moments from a .safetensors of store(), or from an .npz with mu and sigma, such as clean-fid's."""
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as found:
                known, seen = (found["mu"], found["sigma"]), inception.identity
        else:
            with safe_open(file, "np") as found:
                known = (found.get_tensor("mu"), found.get_tensor("sigma"))
                seen = (found.metadata() or {}).get("inception")
    except (OSError, KeyError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: no stored reference of FID ({error}); what works: lpo-eval what=fid") from error
    if seen != inception.identity:
        raise UserError(f"{file}: made with other weights of Inception; what works: those, or lpo-eval what=fid again")
    if [value.shape for value in known] != [(WIDTH,), (WIDTH, WIDTH)]:
        raise UserError(f"{file}: mu and sigma of {WIDTH} features wanted, not {known[0].shape} and {known[1].shape}")
    return known
