"""Pictures in a folder against their texts, or against other pictures: CLIP score and LPIPS as papers have them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.data.picture_files import BadPicture, decode, resize
from lpo_platform.evaluation.what.oks import report
from lpo_platform.rewards.clip import Clip
from lpo_platform.runs.given_files import (
    BAD_NAME,
    PICTURES,
    by_name,
    files_below,
    is_unicode,
    read_bytes,
    shown,
    text_of,
    without_suffix,
)
from lpo_platform.runs.record import write_json

SMALLEST = 35  # px
SEVERAL = "several files of one name"
TEXTS = (".txt", ".caption")
NO_TEXT = "no readable text"


def pictures_in(path: str) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Returns (the pictures of a folder by name, as given_files names them; the files that are left out, by reason)."""
    return _named(path, PICTURES)


def _named(path: str, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], dict[str, list[str]]]:
    folder = Path(path).expanduser()
    files = [name for name in files_below(folder) if name.lower().endswith(suffixes)]
    named, several = by_name({name: without_suffix(name, suffixes) for name in files if is_unicode(name)})
    left_out = {SEVERAL: several, BAD_NAME: [shown(name) for name in files if not is_unicode(name)]}
    found = {name: folder / file for name, file in named.items()}
    return found, {reason: names for reason, names in left_out.items() if names}


def pairs_of(
    one: str, first: str, other: str, second: str
) -> tuple[dict[str, tuple[Path, Path]], dict[str, list[str]]]:
    """Returns (the two pictures of every name that both folders have; what is left out, by reason).

    Args:
        one: what the report calls the first folder.
        first: the first folder.
        other: what the report calls the second folder.
        second: the second folder.
    """
    (found, bad), (further, worse) = pictures_in(first), pictures_in(second)
    left_out = {
        f"missing in {other}": sorted(set(found) - set(further)),
        f"missing in {one}": sorted(set(further) - set(found)),
    }
    for word, reasons in ((one, bad), (other, worse)):
        left_out |= {f"{reason} in {word}": names for reason, names in reasons.items()}
    return {name: (found[name], further[name]) for name in found if name in further}, left_out


def over(names: list[str], measure: Callable[[str], dict[str, float]], left_out: dict[str, list[str]]) -> dict:
    """Calls measure(name) for every name. Names whose files cannot be read are added to `left_out`."""
    items = {}
    for name in tqdm(names, unit="img"):
        try:
            items[name] = measure(name)
        except BadPicture as error:
            left_out.setdefault(error.reason, []).append(shown(name))
    return items


def opened(file: Path, resolution: int | None = None) -> Tensor:
    """Reads (1, 3, H, W) in [0, 1]; with a resolution R the largest central square, (1, 3, R, R). Raises BadPicture."""
    image = decode(file, **({} if resolution is None else {"side": resolution})).image
    image = image if resolution is None else resize(image, "center", resolution)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


class ClipScore:
    """Measures 100 times the cosine of picture and text, the mean over pairs (as Taited/clip-score).

    Texts over CLIP's 77 tokens are cut, and counted in the report as `cut`.

    Args:
        images: a folder of pictures.
        texts: a folder with a .txt for each picture, or one .txt for all.
        weights: a CLIP in the layout of transformers.
    """

    paths: ClassVar[dict[str, str]] = {"images": "folder", "texts": "file or folder"}

    def __init__(self, images: str, texts: str, weights: str = "openai/clip-vit-base-patch32") -> None:
        self.images, self.texts, self.weights = images, texts, weights

    def __call__(self, folder: Path, device: torch.device) -> dict[str, Any]:
        (pictures, bad), (texts, broken) = pictures_in(self.images), self._texts()
        clip = Clip(self.weights).to(device)
        left_out = {
            "missing in texts": sorted(set(pictures) - set(texts)) if isinstance(texts, dict) else [],
            "missing in images": sorted(set(texts) - set(pictures)) if isinstance(texts, dict) else [],
        }
        left_out |= {f"{reason} in images": names for reason, names in bad.items()}
        left_out |= {f"{reason} in texts": names for reason, names in broken.items()}
        said = texts if isinstance(texts, dict) else dict.fromkeys(pictures, texts)
        longest = clip.model.config.text_config.max_position_embeddings

        def score(name: str) -> dict[str, float]:
            cosine = clip(opened(pictures[name]).to(device), [said[name]])
            cut = len(clip.processor.tokenizer(said[name]).input_ids) > longest
            return {"clip": float(cosine * clip.model.logit_scale.exp()), "cut": float(cut)}

        items = over([name for name in pictures if name in said], score, left_out)
        settings = {"what": "clip", "images": self.images, "texts": self.texts, "weights": self.weights}
        result = report(items, settings, left_out)
        write_json(folder / "report.json", result)
        return result

    def _texts(self) -> tuple[dict[str, str] | str, dict[str, list[str]]]:
        """Returns (the text by the name of its file, or the only one; the files that are left out, by reason)."""
        path = Path(self.texts).expanduser()
        if not path.is_dir():
            try:
                return text_of(read_bytes(path)).strip(), {}
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"what.texts={self.texts}: {NO_TEXT} ({reason}); what works: .txt in UTF-8") from error
        files, broken = _named(self.texts, TEXTS)
        texts: dict[str, str] = {}
        for name, file in files.items():
            try:
                texts[name] = text_of(read_bytes(file)).strip()
            except (OSError, ValueError):
                broken.setdefault(NO_TEXT, []).append(name)
        return texts, broken


class Lpips:
    """Measures LPIPS v0.1 on AlexNet of pictures in [-1, 1] at their size, the mean over pairs of one name.

    A generated picture is resized to its original where they differ.

    Args:
        originals: a folder of pictures.
        generated: a folder of pictures of the same names.
        weights: a file with torchvision's AlexNet (`alexnet-owt-*.pth`, or safetensors); the heads come with
            torchmetrics.
    """

    paths: ClassVar[dict[str, str]] = {"originals": "folder", "generated": "folder", "weights": "file"}

    def __init__(self, originals: str, generated: str, weights: str) -> None:
        self.originals, self.generated, self.weights = originals, generated, weights

    def __call__(self, folder: Path, device: torch.device) -> dict[str, Any]:
        pairs, left_out = pairs_of("originals", self.originals, "generated", self.generated)
        network = lpips(self.weights).to(device)

        @torch.no_grad()
        def distance(name: str) -> dict[str, float]:
            first, second = (opened(file).to(device) for file in pairs[name])
            if min(first.shape[-2:]) < SMALLEST:
                raise BadPicture(f"smaller than {SMALLEST} px, of which AlexNet sees nothing")
            if first.shape != second.shape:
                second = torch.nn.functional.interpolate(second, first.shape[-2:], mode="bicubic", antialias=True)
            return {"lpips": float(network(first * 2 - 1, second.clamp(0, 1) * 2 - 1))}

        items = over(list(pairs), distance, left_out)
        settings = {"what": "lpips", "originals": self.originals, "generated": self.generated, "weights": self.weights}
        result = report(items, settings, left_out)
        write_json(folder / "report.json", result)
        return result


def lpips(weights: str) -> _LPIPS:
    """Builds the network, its backbone from a file of torchvision's AlexNet. Raises UserError for another file."""
    from lpo_platform.tasks.detector import UNREADABLE, read_weights

    network = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    try:
        found: Mapping[str, Tensor] = read_weights(Path(weights).expanduser())
        own = network.net.state_dict()
        network.net.load_state_dict({name: found["features." + name.split(".", 1)[1]] for name in own})
    except (*UNREADABLE, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"weights={weights}: no file of torchvision's AlexNet. Reason: {reason}") from error
    return network.eval().requires_grad_(False)
