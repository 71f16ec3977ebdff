"""Runs the platform on real pictures that come with packages (`make real`): builds them, prepares, trains.

Two sources, both free to use and both without a download page: the photographs inside the installed scikit-image,
cut into tiles, and the captioned Fluent 3D renders of an npm package (MIT), set on photographs and smooth colours.
The exact mask of every render is known and written to `<out>-masks`. Without npm it goes on with the photographs.
"""

import argparse
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

logger = logging.getLogger("real")

RENDERS = "@lobehub/fluent-emoji-3d@1.1.0"  # 3,391 files of 256 px, 16 MB
NAMES = "unicode-emoji-json@0.9.0"  # their Unicode names, 72 kB; none for skin tones, so 1,854 are left
PHOTOGRAPHS = {
    "astronaut.png": "an astronaut in an orange suit",
    "camera.png": "a man with a camera on a tripod",
    "chelsea.png": "a tabby cat",
    "coffee.png": "a cup of coffee on a saucer",
    "coins.png": "rows of old coins",
    "ihc.png": "stained tissue under a microscope",
    "motorcycle_left.png": "a red motorcycle in a garage",
    "page.png": "a printed page",
    "retina.jpg": "the retina of an eye",
    "rocket.jpg": "a rocket on its launch pad at dusk",
    "text.png": "handwriting on paper",
}
GROUNDS = {
    "brick.png": "a brick wall",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "a sky full of galaxies",
    "moon.png": "the surface of the moon",
}
TILES = 3  # a photograph gives TILES x TILES pictures that do not overlap, so none shows what another held out


@dataclass(frozen=True)
class Scene:
    """One picture for the folder; `mask` is where the render stands, uint8 0 to 255, None for a photograph."""

    name: str
    image: Image.Image
    caption: str
    source: str
    mask: Image.Image | None = None


def bundled(names: dict[str, str]) -> dict[str, Image.Image]:
    """Caption -> RGB photograph, for those files that lie inside the installed scikit-image; nothing is fetched."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(spec.submodule_search_locations[0]) / "data"
    found = {caption: folder / name for name, caption in names.items() if (folder / name).exists()}
    return {caption: Image.open(path).convert("RGB") for caption, path in found.items()}


def tiles(caption: str, photograph: Image.Image, size: int) -> Iterator[Scene]:
    """The TILES x TILES squares of a photograph's largest central square."""
    side = min(photograph.size) // TILES
    left, top = ((length - TILES * side) // 2 for length in photograph.size)
    for i in range(TILES * TILES):
        x, y = left + i % TILES * side, top + i // TILES * side
        tile = photograph.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
        yield Scene(f"photo {caption} {i}", tile, caption, "scikit-image")


def all_tiles(photographs: dict[str, Image.Image], count: int, size: int, rng: np.random.Generator) -> list[Scene]:
    """Up to `count` tiles of all photographs, drawn without repetition."""
    scenes = [tile for caption, photograph in photographs.items() for tile in tiles(caption, photograph, size)]
    return [scenes[i] for i in sorted(rng.permutation(len(scenes))[:count])]


def packed(package: str, folder: Path) -> Path:
    """The archive of an npm package, from `folder` or fetched into it.

    Raises OSError, subprocess.SubprocessError or StopIteration when npm is absent or has nothing to give.
    """
    target = folder / f"{package.strip('@').replace('/', '-').replace('@', '-')}.tgz"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            command = ["npm", "pack", package, "--fetch-retries", "1", "--loglevel", "error"]
            subprocess.run(command, check=True, timeout=300, capture_output=True, text=True, cwd=part)
            os.replace(next(Path(part).glob("*.tgz")), target)
    return target


def names_by_file(archive: Path) -> dict[str, tuple[str, str]]:
    """Code points such as `1f9ef`, without variation selectors -> (name, group)."""
    with tarfile.open(archive) as tar:
        rows = json.load(tar.extractfile("package/data-by-emoji.json"))
    keys = {symbol: "-".join(f"{ord(c):04x}" for c in symbol).replace("-fe0f", "") for symbol in rows}
    return {keys[symbol]: (row["name"], row["group"]) for symbol, row in rows.items()}


def renders(count: int, folder: Path, rng: np.random.Generator) -> list[tuple[str, Image.Image]]:
    """`count` renders with their names, drawn without repetition; fewer where there are fewer."""
    archive, names = packed(RENDERS, folder), names_by_file(packed(NAMES, folder))
    with tarfile.open(archive) as tar:
        files = {Path(m.name).stem.replace("-fe0f", ""): m for m in tar if m.name.endswith(".webp")}
        known = sorted(set(files) & set(names))
        chosen = {known[i] for i in rng.permutation(len(known))[:count]}
        order = sorted(chosen, key=lambda key: files[key].offset)  # one pass through the compressed archive
        contents = {key: tar.extractfile(files[key]).read() for key in order}
    return [(names[key][0], Image.open(io.BytesIO(contents[key])).convert("RGBA")) for key in sorted(chosen)]


def smooth(size: int, rng: np.random.Generator) -> Image.Image:
    """A soft field of colour."""
    corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((size, size), Image.Resampling.BICUBIC)


def ground(grounds: dict[str, Image.Image], size: int, rng: np.random.Generator) -> tuple[str, Image.Image]:
    """What a render stands on: a crop of a photograph, or as often a soft field of colour."""
    if not grounds or rng.random() < 0.5:
        return "a soft background", smooth(size, rng)
    caption = sorted(grounds)[rng.integers(len(grounds))]
    photograph = grounds[caption]
    side = int(min(photograph.size) * rng.uniform(0.4, 0.9))
    x, y = (int(rng.integers(length - side + 1)) for length in photograph.size)
    return caption, photograph.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))


def compose(
    name: str, render: Image.Image, grounds: dict[str, Image.Image], size: int, rng: np.random.Generator
) -> Scene:
    """`render` somewhere on a ground, by its alpha; the mask is that alpha."""
    where, image = ground(grounds, size, rng)
    side = int(size * rng.uniform(0.55, 0.9))
    x, y = (int(v) for v in rng.integers(size - side + 1, size=2))
    layer = Image.new("RGBA", (size, size))
    layer.paste(render.resize((side, side), Image.Resampling.BICUBIC), (x, y))
    whole = Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
    return Scene(f"render {name}", whole, f"{name} on {where}", f"npm {RENDERS}", layer.getchannel("A"))


def scenes(count: int, size: int, seed: int, folder: Path) -> list[Scene]:
    """`count` scenes: at most half of them photographs, the rest renders where npm can give them."""
    rng = np.random.default_rng(seed)
    photographs, grounds = bundled(PHOTOGRAPHS), bundled(GROUNDS)
    result = all_tiles(photographs, count // 2, size, rng)
    try:
        chosen = renders(count - len(result), folder, rng)
    except (OSError, subprocess.SubprocessError, StopIteration, tarfile.TarError, KeyError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        logger.warning("npm gave no renders (%s): going on with the photographs of scikit-image", " ".join(why[:3]))
        return all_tiles(photographs | grounds, count, size, rng)
    bar = tqdm(chosen, desc="composing", unit=" pictures", disable=None, leave=False)
    return result + [compose(name, render, grounds, size, rng) for name, render in bar]


def write(scenes: list[Scene], out: Path) -> None:
    """Pictures and `captions.jsonl` below `out`, masks under the same names below `<out>-masks`."""
    masks = out.with_name(out.name + "-masks")
    remove_earlier(out, masks)
    out.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, scene in enumerate(scenes):
        file = f"{i:05d}-{'-'.join(''.join(c if c.isalnum() else ' ' for c in scene.name).split())}.png"
        scene.image.save(out / file)
        if scene.mask is not None:
            scene.mask.save(masks / file)
        rows.append({"file_name": file, "text": scene.caption, "source": scene.source})
    (out / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def remove_earlier(out: Path, masks: Path) -> None:
    """Remove what an earlier call wrote, and nothing else: the files that its captions name."""
    captions = out / "captions.jsonl"
    if not captions.exists():
        return
    for line in captions.read_text(encoding="utf-8").splitlines():
        for folder in (out, masks):
            (folder / Path(json.loads(line)["file_name"]).name).unlink(missing_ok=True)
    captions.unlink()


def commands(out: Path, extra: list[str]) -> list[list[str]]:
    """The two command lines that anybody would type for a folder of their own."""
    job = ["method=cpo", "task=canny", "data=folder", f"data.path={out}", *extra]
    return [["lpo-prepare", *job], ["lpo-train", *job]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="pictures in all (default 400)")
    parser.add_argument("--size", type=int, default=256, help="their side in px (default 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/data/real"))
    parser.add_argument("--npm-cache", type=Path, default=Path("outputs/cache/npm"))
    parser.add_argument("--only-data", action="store_true", help="build the pictures and stop")
    parser.add_argument("overrides", nargs="*", help="passed on to both commands, e.g. method.steps=60")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    built = scenes(options.count, options.size, options.seed, options.npm_cache)
    if not built:
        sys.exit("no pictures: install scikit-image (it is in the dev extra), or npm for the renders")
    write(built, options.out)
    logger.info("%d captioned pictures in %s", len(built), options.out)
    for command in commands(options.out, options.overrides):
        logger.info("$ %s", " ".join(command))
        if not options.only_data:
            program = Path(sys.executable).with_name(command[0])
            code = subprocess.run([str(program), *command[1:]], check=False).returncode
            if code:
                sys.exit(code)


if __name__ == "__main__":
    main()
