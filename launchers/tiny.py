"""Makes the embedded tiny models again, in the order in which they need each other; states how long each part took.

    python launchers/tiny.py                      everything
    python launchers/tiny.py --parts base canny   only these; the others stay as they are

Tokenizer, judge, labeller, detector and autoencoder have loops of their own. The denoiser with its text encoder and
the ControlNets are trained by the platform's own command.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve a shared machine
logging.basicConfig(level=logging.INFO, format="%(message)s")
log = logging.getLogger("tiny")

Figures = dict[str, float]
RUNS = Path("outputs/tiny")
TINY = Path(__file__).parents[1] / "lpo_platform" / "assets" / "tiny"
TINY_FLUX, TINY_SD3 = TINY.with_name("tiny_flux"), TINY.with_name("tiny_sd3")
TASKS = ("canny", "hed", "lineart", "depth", "seg_ade20k", "seg_coco", "pose")
TRAIN = (sys.executable, str(Path(__file__).parent / "train.py"))

# How the platform trains denoisers and ControlNets; the moving average of the weights is what is kept.
BASE = (
    "control=none", "task=none", "tune=full", "tune.text_encoder=true", "data.num_train=8192", "method.steps=2400",
    "method.batch=32", "method.drop_text=0.1", "optim.lr=1.5e-3", "optim.warmup_steps=100", "optim.schedule=cosine",
    "callbacks.ema_decay=0.995", "callbacks.every=200", "callbacks.log_every=10",
)  # fmt: skip
CONTROL = (
    "control.weights=unet", "data.num_train=8192", "method.steps=1200", "method.batch=32",
    "optim.lr=2e-3", "optim.warmup_steps=20", "optim.schedule=cosine", "callbacks.ema_decay=0.99",
    "callbacks.every=100", "callbacks.log_every=10",
)  # fmt: skip
FROM_CANNY = ("control.weights=tiny/controlnet_canny", "method.steps=200")  # what edges are, the others need not learn
FLUX = (
    "model=tiny_flux", "control=none", "task=none", "tune=full", "tune.text_encoder=true", "data.num_train=4096",
    "method.steps=3000", "method.batch=16", "optim.lr=2e-3", "optim.warmup_steps=50", "optim.schedule=cosine",
    "callbacks.ema_decay=0.99", "callbacks.every=200", "callbacks.log_every=10",
)  # fmt: skip
SD3 = (
    "model=tiny_sd3", "control=none", "task=none", "tune=full", "tune.text_encoder=true", "data.num_train=4096",
    "method.steps=3500", "method.batch=16", "method.drop_text=0.1", "optim.lr=2e-3", "optim.warmup_steps=50",
    "optim.schedule=cosine", "callbacks.ema_decay=0.99", "callbacks.every=500", "callbacks.log_every=20",
)  # fmt: skip

SD3_CONTROL = (
    "model=tiny_sd3", "task=canny", "control.weights=unet", "data.num_train=4096", "method.steps=600",
    "method.batch=16", "optim.lr=2e-3", "optim.warmup_steps=20", "optim.schedule=cosine", "callbacks.ema_decay=0.98",
    "callbacks.every=100", "callbacks.log_every=10", "callbacks.sentinel=null",
)  # fmt: skip
SD3_LRM = (
    "model=tiny_sd3", "data.eta=0.7", "data.prompts.num_train=600", "data.prompts.num_test=100",
    "data.num_validation=50", "method.steps=400", "method.batch=16", "optim.lr=2e-3", "callbacks.every=100",
)  # fmt: skip


def make_parts() -> Figures:
    """Tokenizer, scheduler and every network with random weights."""
    from lpo_platform.models.tiny import stable_diffusion

    stable_diffusion.build()
    return {}


def make_judge() -> Figures:
    import torch

    from lpo_platform.models.tiny.judge import Judge, train_judge

    torch.manual_seed(0)
    judge = Judge()
    train_judge(judge)
    judge.save()
    images, captions = _held_out(200)
    return {"alignment of held-out scenes": Judge.load().alignment(images, captions).mean().item()}


def make_labeller() -> Figures:
    """Labels the reward model's training pairs: of another architecture and seed than the judge that measures."""
    import torch

    from lpo_platform.models.tiny.judge import Judge, train_judge
    from lpo_platform.rewards.toy import FOLDER

    torch.manual_seed(1)
    labeller = Judge((24, 40, 56, 64))
    train_judge(labeller, seed=29)
    labeller.save(FOLDER)
    images, captions = _held_out(200)
    return {"alignment of held-out scenes": Judge.load(FOLDER).alignment(images, captions).mean().item()}


def make_detector() -> Figures:
    """Finds the condition of every task but canny; another network, on other scenes, than the judge and labeller."""
    import torch

    from lpo_platform.tasks.toy_detector import ToyDetector, train_detector

    torch.manual_seed(1)
    detector = ToyDetector()
    train_detector(detector)
    detector.save()
    return measure_detector()


def make_second_detector() -> Figures:
    """Judges poses that the first detector has rewarded: of another size, seed and scenes."""
    import torch

    from lpo_platform.tasks.toy_detector import SECOND, ToyDetector, train_detector

    torch.manual_seed(2)
    detector = ToyDetector((24, 32, 48))
    train_detector(detector, steps=800, num_scenes=3072, seed=31)
    detector.save(SECOND)
    return measure_detector(SECOND)


def make_vae() -> Figures:
    import torch

    from lpo_platform.models.tiny import stable_diffusion

    torch.manual_seed(0)
    vae = stable_diffusion.build_vae()
    stable_diffusion.train_vae(vae)
    stable_diffusion.save_half(vae, stable_diffusion.FOLDER / "vae")
    return measure_vae()


def make_flux() -> Figures:
    """The tiny FLUX, on the latents and with the pooled text of the tiny Stable Diffusion."""
    from lpo_platform.models.tiny import flux

    flux.build()
    return trained("flux", FLUX, {part: TINY_FLUX / part for part in ("transformer", "text_encoder_2")})


def make_sd3() -> Figures:
    """The tiny Stable Diffusion 3, on the latents and with the CLIP of the tiny Stable Diffusion."""
    from lpo_platform.models.tiny import stable_diffusion_3

    stable_diffusion_3.build()
    return trained("sd3", SD3, {part: TINY_SD3 / part for part in ("transformer", "text_encoder_3")})


def make_control(task: str) -> Figures:
    """The ControlNet of a task, the others' started from canny's."""
    start = () if task == "canny" else FROM_CANNY
    return trained(task, (f"task={task}", *CONTROL, *start), {"controlnet": TINY / f"controlnet_{task}"})


def trained(name: str, options: tuple[str, ...], places: dict[str, Path], *, method: str = "control") -> Figures:
    """Runs the platform's command and stores parts of its export, in half precision, in `places`; returns its metrics.

    Raises CalledProcessError if the command fails.
    """
    run = RUNS / name
    shutil.rmtree(run, ignore_errors=True)
    subprocess.run([*TRAIN, f"method={method}", *options, "logger=none", f"hydra.run.dir={run}"], check=True)
    for part, place in places.items():
        _keep(run / "export" / f"{part}_{'best' if method == 'lrm' else 'ema'}", place)
    metrics = json.loads((run / "result.json").read_text(encoding="utf-8"))["metrics"]
    return {name: values["after"] for name, values in metrics.items()}


def _keep(exported: Path, place: Path) -> None:
    """Stores an exported network, or the parts of a reward model, among the assets."""
    import diffusers
    import transformers

    from lpo_platform.models.tiny.stable_diffusion import save_half, save_half_reward

    if not (exported / "config.json").exists():
        return save_half_reward(exported, place)
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    name = config.get("_class_name") or config["architectures"][0]
    save_half(getattr(diffusers if "_class_name" in config else transformers, name).from_pretrained(exported), place)


PARTS: dict[str, Callable[[], Figures]] = {
    "parts": make_parts,
    "judge": make_judge,
    "labeller": make_labeller,
    "detector": make_detector,
    "second_detector": make_second_detector,
    "vae": make_vae,
    "base": partial(trained, "base", BASE, {part: TINY / part for part in ("unet", "text_encoder")}),
    # on pictures that the base model draws
    "lrm": partial(trained, "lrm", (), {"reward": TINY / "lrm"}, method="lrm"),
    **{task: partial(make_control, task) for task in TASKS},
    "flux": make_flux,
    "sd3": make_sd3,
    "sd3_canny": partial(trained, "sd3_canny", SD3_CONTROL, {"controlnet": TINY_SD3 / "controlnet_canny"}),
    "sd3_lrm": partial(trained, "sd3_lrm", SD3_LRM, {"reward": TINY_SD3 / "lrm"}, method="lrm"),
}


def measure_detector(folder: Path | None = None) -> Figures:
    """What a detector finds in 200 held-out scenes, read from the committed half-precision weights."""
    import torch

    from lpo_platform.data.toy import Toy
    from lpo_platform.tasks.detector import Embedded
    from lpo_platform.tasks.oks import oks
    from lpo_platform.tasks.pose import Pose
    from lpo_platform.tasks.toy_detector import FOLDER, edges_of, lines_of

    split = Toy(0, 200).test
    scenes = [split.scene(i) for i in range(len(split))]
    images = torch.stack([scene.image for scene in scenes]).float() / 255
    parts, depth, joints = (torch.stack([getattr(s, name) for s in scenes]) for name in ("parts", "depth", "keypoints"))
    pose = Pose(toy=True, resolution=64)
    pose.detector = Embedded(folder or FOLDER)
    found, people = pose.detector(images), pose.detect(images)
    shown = joints.flatten(1).any(1)
    similar = [oks(a, b[None]).item() for a, b in zip(people[shown], joints[shown], strict=True)]
    return {
        "parts, share of pixels": (found.parts.argmax(1) == parts).float().mean().item(),
        "depth, mean absolute error": (found.depth[:, 0] - depth).abs().mean().item(),
        "edges, mean absolute error": (found.edges[:, 0] - edges_of(parts)).abs().mean().item(),
        "lines, mean absolute error": (found.lines[:, 0] - lines_of(parts).float()).abs().mean().item(),
        "joints, OKS": sum(similar) / len(similar),
        "joints, people seen where there are none": people[~shown][..., 2].flatten(1).any(1).float().mean().item(),
    }


def measure_vae() -> Figures:
    """How much of 200 held-out scenes survives the autoencoder, read from the committed half-precision weights."""
    import torch
    from diffusers import AutoencoderKL

    from lpo_platform.models.tiny.judge import Judge
    from lpo_platform.models.tiny.stable_diffusion import FOLDER
    from lpo_platform.tasks.canny import Canny, f1

    images, captions = _held_out(200)
    vae, task = AutoencoderKL.from_pretrained(FOLDER / "vae").float().eval(), Canny()
    with torch.no_grad():
        latents = [vae.encode(2 * part - 1).latent_dist.mean for part in images.split(25)]
        decoded = torch.cat([vae.decode(part).sample for part in latents])
    decoded = (decoded / 2 + 0.5).clamp(0, 1)
    noise = -10 * torch.log10((decoded - images).square().mean((1, 2, 3)))
    edges = f1(task.detect(decoded) > 0.5, task.detect(images) > 0.5)
    return {
        "PSNR, dB": noise.mean().item(),
        "alignment of reconstructions": Judge.load().alignment(decoded, captions).mean().item(),
        "Canny F1 of reconstructions": edges.mean().item(),
    }


def _held_out(num: int) -> tuple:
    import torch

    from lpo_platform.data.toy import Toy

    samples = [Toy(0, num).test[i] for i in range(num)]
    return torch.stack([sample.image for sample in samples]), [sample.caption for sample in samples]


def remember(part: str, seconds: float, figures: Figures) -> None:
    """Writes what is known about each part to figures.json, and from all of it the model card."""
    path = TINY / "figures.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[part] = {"seconds": round(seconds), **{name: round(value, 4) for name, value in figures.items()}}
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    (TINY / "README.md").write_text(card(known, TINY.parent), encoding="utf-8")


def card(known: dict[str, Figures], folder: Path) -> str:
    """The model card of all that a folder holds."""
    sizes = {file: file.stat().st_size for file in sorted(folder.rglob("*.safetensors"))}
    weights = [f"| `{file.relative_to(folder)}` | {size / 1e6:.2f} |" for file, size in sizes.items()]
    measured = [
        f"| {part} | {name} | {value:.3f} |"
        for part in PARTS
        for name, value in known.get(part, {}).items()
        if name != "seconds"
    ]
    times = [f"| {part} | {known[part]['seconds'] / 60:.1f} |" for part in PARTS if part in known]
    return CARD.format(
        weights="\n".join(weights),
        total=sum(sizes.values()) / 1e6,
        measured="\n".join(measured),
        times="\n".join(times),
    )


CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# The embedded tiny models

`tiny/` is a Stable Diffusion at toy size in the usual diffusers layout: 64 px pictures, an f = 4 autoencoder with 4
latent channels, a UNet of about 1 million weights, a two-layer CLIP text encoder with a tokenizer, and ControlNets.
Beside them `judge/`, a small network that reads parts, colours and poses from a picture and compares them with the
caption; `labeller/`, another of its kind that labels training pairs; `detector/`, a third network that finds the
condition of every task but canny; `second_detector/`, which judges poses that the first one has rewarded; and `lrm/`,
a latent reward model. `tiny_flux/` is a FLUX of the same size on the same latents: a transformer and a T5, with CLIP
and autoencoder read from here. `tiny_sd3/` is a Stable Diffusion 3 likewise: a transformer, a T5, and a CLIP that is
this one with a projection.

They exist so that every method of the platform runs, and measurably improves something, within minutes on two CPU
cores. UNet and ControlNets are mediocre on purpose: a method needs something left to improve. They are good for
nothing else; they know six colours, three shapes and cartoon people, and no photograph.

**Data.** Procedural scenes of `lpo_platform/data/toy.py`, drawn from code; about a tenth of the captions is held out
and was never trained on. No picture by anybody else was used. **Licence.** Apache-2.0, as the rest of the repository.

**Made by** `make tiny` (`launchers/tiny.py`): tokenizer, judge, labeller, detector and autoencoder with short loops of
their own, UNet with text encoder and ControlNets with `lpo-train method=control`, the reward model with `lpo-train
method=lrm`. Another machine rounds differently and gives other weights of the same quality.

| weights (half precision, read as float32) | MB |
|---|---|
{weights}
| together | {total:.2f} |

| part | minutes to make it, on two shared CPU cores |
|---|---|
{times}

| part | measured on held-out captions | |
|---|---|---|
{measured}

The judge sees no generated picture while it learns, and no method optimises it. It reads blurred and noisy scenes
about as well as sharp ones; it grades presence, colours, direction, pose, background and purity, none of which larger
objects improve.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    wanted = parser.parse_args().parts
    for part, make in PARTS.items():
        if part in wanted:
            started = time.monotonic()
            figures = make()
            seconds = time.monotonic() - started
            remember(part, seconds, figures)
            log.info("%s: %.0f s %s", part, seconds, {name: round(value, 4) for name, value in figures.items()})


if __name__ == "__main__":
    main()
