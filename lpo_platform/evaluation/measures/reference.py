"""What FID compares with: the mean and the covariance of Inception's features of real pictures, stored or computed."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.evaluation.measures.inception import WIDTH, Inception
from lpo_platform.evaluation.statistics import moments
from lpo_platform.evaluation.what.clip_lpips import opened, pictures_in
from lpo_platform.runs.files import write_atomically

Moments = tuple[NDArray[np.float64], NDArray[np.float64]]
BATCH = 32


def moments_of(path: str, inception: Inception, device: torch.device) -> Moments:
    """Mean (2048,) and covariance (2048, 2048) of a folder of pictures, or as a file has them. Raises UserError."""
    place = Path(path).expanduser()
    return moments(features_of(path, inception, device)) if place.is_dir() else stored(place, inception)


def features_of(path: str, inception: Inception, device: torch.device) -> NDArray[np.float32]:
    """(N, 2048) of the pictures in a folder, in the order of their names. UserError for one that cannot be read."""
    files = list(pictures_in(path).values())
    if len(files) < 2:
        raise UserError(f"{path}: {len(files)} pictures; FID needs many, and a covariance two")
    found = []
    for start in tqdm(range(0, len(files), BATCH), desc=f"features of {Path(path).name}", unit="batch"):
        images = []
        for file in files[start : start + BATCH]:
            try:
                images.append(opened(file)[0].to(device))
            except (OSError, SyntaxError) as error:
                raise UserError(f"{file}: not readable; what works: the folder without it") from error
        found.append(inception(images).cpu().numpy())
    return np.concatenate(found)


def store(file: Path, known: Moments, count: int, inception: Inception) -> None:
    """As `mu` and `sigma` in float64, with the number of pictures and which Inception saw them."""
    tensors = {name: torch.from_numpy(value) for name, value in zip(("mu", "sigma"), known, strict=True)}
    write_atomically(file, save(tensors, {"count": str(count), "inception": inception.identity}))


def stored(file: Path, inception: Inception) -> Moments:
    """Of a .safetensors of store(), or of an .npz with mu and sigma, such as clean-fid's."""
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
