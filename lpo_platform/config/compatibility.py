"""What goes with what: the table of combinations, and the problems of a choice that is not in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from lpo_platform.config.schema import CONF

# Arguments that build.py passes, by group; a configuration may not set them. Keyword-only arguments without a default
# whose annotation is not a plain scalar count as such without standing here.
RUNTIME: dict[str, frozenset[str]] = {
    "callbacks": frozenset({"folder"}),
    "data": frozenset({"resolution", "task"}),
    "method": frozenset({"policy", "optim", "seed", "task"}),
    "task": frozenset({"resolution", "toy"}),
}


# Arguments that name what must exist, relative to the current directory: class -> argument -> what it is.
PATHS = {
    "lpo_platform.data.captioned.Captioned": {"path": "file, folder or hub id"},
    "lpo_platform.data.folder.Folder": {"path": "folder"},
    "lpo_platform.data.image_pairs.ImagePairs": {"path": "folder or hub id", "scores": "file"},
    "lpo_platform.data.prompts.Prompts": {"path": "file", "test_path": "file"},
    "lpo_platform.evaluation.what.controllability.Controllability": {"originals": "folder", "generated": "folder"},
    "lpo_platform.evaluation.what.fid.FidOfFolder": {
        "pictures": "folder",
        "weights": "file",
        "reference": "file or folder",
    },
    "lpo_platform.evaluation.what.oks.Oks": {"original": "file or folder", "target": "file or folder"},
    "lpo_platform.evaluation.what.generate.Generate": {"csv": "file", "conditions": "folder"},
    "lpo_platform.evaluation.what.clip_lpips.ClipScore": {"images": "folder", "texts": "file or folder"},
    "lpo_platform.evaluation.what.clip_lpips.Lpips": {"originals": "folder", "generated": "folder", "weights": "file"},
    "lpo_platform.evaluation.what.prompt_sets.GenEval": {"metadata": "file"},
    "lpo_platform.evaluation.what.prompt_sets.T2ICompBench": {"prompts": "file"},
}


OF_A_RUN = ("generate", "geneval", "run", "t2i_compbench")  # options of what


OF_A_MODEL = ("model", "control", "task", "reward", "data")  # groups that lpo-eval reads where there is no run


NOT_NONE = "!none"


PICTURES = (
    "captioned", "captioned_ade20k", "captioned_cocopose", "captioned_cocostuff", "cpo_pairs",
    "cpo_pairs_ade20k", "cpo_pairs_coco", "cpo_pairs_multigen", "cpo_pairs_pose", "folder", "humanart", "jsonl",
    "multigen_20m", "multigen_20m_depth", "pose_dpo", "toy",
)  # fmt: skip


DIFFERENTIABLE = ("canny", "depth", "hed", "lineart", "seg_ade20k", "seg_coco")


PAIRS = ("image_pairs", "toy_pairs")


OF_PICTURES = (
    "aesthetic", "blend", "clip", "compressibility", "hps", "image_reward", "incompressibility", "pickscore", "spm",
    "toy", "vlm_bertscore", "vqa",
)  # fmt: skip


PROMPTS = ("folder", "prompts", "toy", "toy_prompts")


# For each method the combinations that it accepts: group -> options, or NOT_NONE. A group that is not named is free. An
# option that is not shipped here (a user's own) passes everywhere; a method that is not shipped has no row and is free.
COMPATIBILITY: dict[str, tuple[dict[str, str | tuple[str, ...]], ...]] = {
    "cpo": ({"control": NOT_NONE, "tune": ("control",), "task": NOT_NONE, "reward": ("none",), "data": PICTURES},),
    "control": (
        {"control": NOT_NONE, "tune": ("control",), "task": NOT_NONE, "reward": ("none",), "data": PICTURES},
        {"control": ("none",), "tune": ("full", "lora"), "task": ("none",), "reward": ("none",), "data": PICTURES},
    ),
    "control_reward": (
        {"control": NOT_NONE, "tune": ("control",), "task": DIFFERENTIABLE, "reward": ("none",), "data": PICTURES},
    ),
    "lrm": ({"tune": ("reward",), "control": ("none",), "task": ("none",), "reward": ("none",), "data": PAIRS},),
    "lpo": (
        {
            "tune": ("full", "lora"),
            "control": ("none",),
            "task": ("none",),
            "reward": ("lrm", "random"),
            "data": PROMPTS,
        },
    ),
    "spo": (
        {"tune": ("full", "lora"), "control": ("none",), "task": ("none",), "reward": OF_PICTURES, "data": PROMPTS},
    ),
    "dpo_control": (
        {
            "control": NOT_NONE,
            "tune": ("control",),
            "task": NOT_NONE,
            "reward": ("none", *OF_PICTURES),
            "data": PICTURES,
        },
    ),
    "diffusion_dpo": ({"tune": ("full", "lora"), "control": ("none",), "task": ("none",), "data": PAIRS},),
    "ddpo": (
        {"tune": ("full", "lora"), "control": ("none",), "task": ("none",), "reward": NOT_NONE, "data": PROMPTS},
        {"tune": ("control",), "control": NOT_NONE, "task": NOT_NONE, "reward": NOT_NONE, "data": PICTURES},
    ),
}


# Rewards that look for the condition in a picture, and whose maps they can read: class -> options of task.
OF_CONDITIONS: dict[str, str | tuple[str, ...]] = {
    "lpo_platform.rewards.consistency.Consistency": NOT_NONE,
    "lpo_platform.rewards.keypoint_cosine.KeypointCosine": ("pose",),
    "lpo_platform.rewards.oks.Oks": ("pose",),
    "lpo_platform.rewards.skeleton_dino.SkeletonDino": ("pose",),
}


# Models of full size: toy data below them teaches nothing, so it has to be asked for. What there is instead:
TOY = {
    "toy": "data=folder data.path=<folder of pictures>",
    "toy_prompts": "data=prompts data.path=<file of prompts>",
    "toy_pairs": "data=image_pairs data.path=<Pick-a-Pic: hub id or folder>",
}


FULL_SIZE = frozenset({"sd15", "sd21", "sdxl", "flux"})


# What does not go with FLUX: (group, option) -> why, and what to do.
FLUX = frozenset({"flux", "tiny_flux"})


UNET_ONLY: dict[tuple[str, str], str] = {
    ("method", "lrm"): "a latent reward model is half a UNet; use a model of Stable Diffusion's",
    ("method", "lpo"): "its reward model is half a UNet; use method=ddpo with a reward of pictures",
    ("method", "spo"): "its branches are DDIM's; use method=ddpo",
    ("method", "control_reward"): "its share of rewarded timesteps is DDIM's; use method=control or method=cpo",
    ("reward", "lrm"): "a latent reward model reads a UNet's latents; use a reward of pictures",
    ("control", "controlnet_dino"): "DINO is added to a UNet's ControlNet; use control=controlnet",
}


# What hardware=fsdp on several processes does not go with: (option or argument, value) -> why, and what to do. What
# does: tune=full and tune=control, every method, EMA, gradient checkpointing, 32-true and bf16-mixed, adamw.
UNSHARDED: dict[tuple[str, object], str] = {
    ("tune", "lora"): "adapters are a few MB, there is nothing to shard; use hardware=ddp",
    ("tune", "reward"): "a reward model is half a denoiser and fits a GPU whole; use hardware=ddp",
    ("tune.text_encoder", True): "a text encoder is not sharded; use hardware=ddp",
    ("optim", "adafactor"): "its factored state cannot be sharded; use optim=adamw",
    ("optim", "adamw8bit"): "its state is packed and cannot be sharded; use optim=adamw",
    ("hardware.precision", "16-mixed"): "the gradient scaler does not know sharded gradients; use bf16-mixed",
    ("hardware.compile", True): "compiled blocks are not sharded; use hardware.compile=false",
    ("method.refresh_reward", NOT_NONE): "the processes would draw unequal numbers of pictures; use hardware=ddp",
}


Choices = Mapping[str, str | None]


def shipped(group: str) -> tuple[str, ...]:
    """The options of a group that come with the platform."""
    return tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


def fits(group: str, option: str | None, allowed: str | tuple[str, ...]) -> bool:
    """Whether an option satisfies a cell of COMPATIBILITY."""
    if allowed == NOT_NONE:
        return option not in (None, "none")
    return option in allowed or option not in (None, *shipped(group))


def combination_problems(
    choices: Choices, overrides: Iterable[str] = (), *, unsure: frozenset[str] = frozenset()
) -> list[str]:
    """One line for each chosen option that does not go with the method; [] where the table agrees.

    A group of which no option is chosen counts as none; one that is `unsure` counts as fitting.
    """
    method = choices.get("method")
    rows = COMPATIBILITY.get(method or "", ())
    explicit = {key for key, _ in _pairs(overrides)}
    wrong = [[g for g, cell in row.items() if g not in unsure and not fits(g, choices.get(g), cell)] for row in rows]
    if not rows or not all(wrong):
        return []

    def cost(index: int) -> int:
        return sum(4 if group in explicit else 1 for group in wrong[index])

    best = min(range(len(rows)), key=cost)
    others = {group for index, groups in enumerate(wrong) if index != best for group in groups}
    fixed = [f"{group}={choices.get(group)}" for group in rows[best] if group in others - set(wrong[best])]
    context = f" with {' and '.join(fixed)}" if fixed else ""
    who = f"method={method}{context}"
    return [f"{who} {_need(group, choices.get(group) or 'null', rows[best][group])}" for group in wrong[best]]


def _need(group: str, option: str | None, allowed: str | tuple[str, ...]) -> str:
    if allowed == NOT_NONE:
        offers = " or ".join(f"{group}={name}" for name in shipped(group) if name != "none")
        return f"needs a {group}, but {group}={option}; add {offers}"
    return f"needs {' or '.join(f'{group}={name}' for name in allowed)}, not {group}={option}"


def _toy_problems(choices: Choices, overrides: Iterable[str] | None) -> list[str]:
    asked = overrides is None or any(key == "data" for key, _ in _pairs(overrides))
    toy = choices.get("data")
    if asked or toy not in TOY or choices.get("model") not in FULL_SIZE:
        return []
    return [
        f"model={choices['model']} with data={toy}: toy data under a full-size model must be asked for; "
        f"add {TOY[toy]}, or data={toy}"
    ]


def _flux_problems(choices: Choices) -> list[str]:
    if choices.get("model") not in FLUX:
        return []
    return [
        f"{group}={option} with model={choices['model']}: {reason}"
        for (group, option), reason in UNET_ONLY.items()
        if choices.get(group) == option
    ]


def _pairs(overrides: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in overrides:
        key, _, value = line.partition("=")
        yield key.lstrip("+~"), value
