"""Every published setting: it composes, passes the check, and has the numbers of the specifications' tables."""

import re
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from toys.instances import first

from lpo_platform.config import compose
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.options import shipped
from lpo_platform.config.schema import CONF
from lpo_platform.methods.optim import AdamW

SPM = "SPO-Diffusion-Models/Step-Aware_Preference_Models::{}_step-aware_preference_model.bin"
TABLE = {
    # the released configurations of Kwai-Kolors/LPO, RockeyCoss/SPO and Diffusion-DPO; batches are those of all GPUs
    # and accumulated micro-batches
    "lrm_sd15": {
        "method.batch": 8 * 16, "method.steps": 4000, "method.num_steps": 20, "optim.lr": 1e-5,
        "optim.weight_decay": 0.3, "optim.warmup_steps": 500, "optim.warmup": "log", "optim.schedule": "linear",
        "optim.clip": 1.0, "tune.guidance": 7.5, "data.strategy": 2, "method.noise": "independent",
        "tune.text_projection": "openai/clip-vit-large-patch14",
    },
    "lrm_sdxl": {
        "method.batch": 8 * 4, "method.steps": 8000, "optim.lr": 1e-5, "optim.weight_decay": 0.3,
        "optim.warmup_steps": 1000, "optim.warmup": "log", "optim.schedule": "linear", "tune.text_projection": None,
    },
    "lpo_sd15": {
        "method.candidates": 4, "method.num_steps": 20, "method.eta": 1.0, "method.guidance": 5.0,
        "method.threshold": [0.35, 0.5], "method.threshold_rule": "sigma", "method.beta": 500.0, "method.clip": 0.1,
        "method.prompts": 4 * 5, "method.batch": 4 * 10, "method.rounds": 5 * 200, "tune.rank": 4, "tune.alpha": 4,
        "optim.lr": 6e-5, "optim.weight_decay": 1e-4, "optim.clip": None, "optim.schedule": "constant",
        "method.refresh_reward": None, "reward.timestep": "current",
    },
    "lpo_sdxl": {
        "method.candidates": 4, "method.num_steps": 20, "method.guidance": 5.0, "method.threshold": [0.45, 0.6],
        "method.beta": 500.0, "method.clip": 0.1, "method.prompts": 4 * 4, "method.batch": 4 * 4,
        "method.rounds": 5 * 250, "tune.rank": 64, "tune.alpha": 64, "optim.lr": 1e-5, "optim.weight_decay": 1e-4,
        "optim.clip": None, "hardware.gradient_checkpointing": True,
    },
    "spo_sd15": {
        "method.candidates": 4, "method.inner_steps": 0, "method.skip_steps": 4, "method.threshold": 0.3,
        "method.beta": 10.0, "method.clip": 0.1, "method.prompts": 4 * 10, "method.batch": 4 * 10,
        "method.rounds": 10 * 100, "tune.rank": 4, "optim.lr": 6e-5, "optim.clip": None, "method.guidance": 5.0,
        "method.num_steps": 20, "method.eta": 1.0, "reward.weights": SPM.format("sd-v1-5"),
    },
    "spo_sdxl": {
        "method.candidates": 2, "method.inner_steps": 3, "method.skip_steps": 4, "method.threshold": 0.4,
        "method.beta": 10.0, "method.clip": 0.1, "method.prompts": 4 * 2, "method.batch": 4 * 2 * 2,
        "method.rounds": 10 * 500, "tune.rank": 64, "optim.lr": 1e-5, "optim.clip": None, "method.guidance": 5.0,
        "reward.weights": SPM.format("sdxl"),
    },
    "diffusion_dpo_sd15": {
        "method.beta": 5000.0, "method.drop_text": 0.2, "method.steps": 2000, "method.batch": 16 * 128,
        "optim.lr": 2.048e-5, "optim.warmup_steps": 500, "optim.weight_decay": 0.01, "optim.clip": 1.0,
        "optim.schedule": "constant", "optim.warmup": "from_zero",
        "optim._target_": "lpo_platform.methods.optim.AdamW",
        "tune._target_": "lpo_platform.models.tuning.Full",
    },
    "diffusion_dpo_sdxl": {
        "method.beta": 5000.0, "method.batch": 2048, "method.steps": 2000, "optim.warmup_steps": 200,
        "optim.lr": 2.048e-5, "optim._target_": "lpo_platform.methods.optim.Adafactor", "optim.clip": 1.0,
        "hardware.gradient_checkpointing": True,
    },
}  # fmt: skip
TABLE["lrm_sd35m"] = {
    "model.max_tokens": 128, "tune.blocks": 12, "method.noise": "shared", "method.form": "fidelity",
    "method.batch": 8 * 4, "optim.lr": 5e-5, "optim.weight_decay": 0.01, "optim.clip": 1.0,
    "optim.schedule": "constant",
}  # fmt: skip
TABLE["lpo_sd3"] = TABLE["lpo_sdxl"] | {"model.noise": "posterior", "method.window": [0, 19]}
TABLE["lpo_sd21"] = TABLE["lpo_sd15"] | {"model.reward": "casiatao/LRM::lrm_sd15"}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, list[str]]:
    """What each kind of experiment is told on the command line."""
    prompts = tmp_path / "prompts.json"
    prompts.touch()
    of_prompts = [f"data.path={prompts}"]
    return {"lrm": [f"data.scores={prompts}"], "diffusion": [], "lpo": of_prompts, "spo": of_prompts}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_an_experiment_has_the_published_numbers(name: str, given: dict[str, list[str]]) -> None:
    overrides = [f"experiment={name}", *given[name.split("_")[0]]]
    assert diagnose("train", overrides) == []
    cfg = OmegaConf.create(compose.compose("train", overrides, [], CONF).values)
    assert {key: OmegaConf.select(cfg, key) for key in TABLE[name]} == TABLE[name]
    data = {"lrm": "pickapic_v1", "diffusion": "pickapic_v2"}.get(name.split("_")[0], "pickapic_v1_no_images")
    assert f"yuvalkirstain/{data}" in (cfg.data.get("test_path") or cfg.data.path)
    assert cfg.hardware.precision == ("auto" if name.startswith("lrm") else "16-mixed")  # lrm: bf16, as auto is
    assert cfg.model.name == name.split("_")[-1]
    micro = cfg.hardware.micro_batch
    assert cfg.method.batch % micro == 0
    if "prompts" in cfg.method:
        assert cfg.method.rounds * cfg.method.prompts % 4000 == 0


def test_every_experiment_of_these_methods_is_in_the_table() -> None:
    methods = ("lrm", "lpo", "spo", "diffusion")
    assert {name for name in shipped("experiment") if name.split("_")[0] in methods} == set(TABLE)


NO_HUB = {
    "data.path=<4k_training_prompts.json>": ("spo_sd15", "RockeyCoss/SPO (MIT), 4,000 prompts of Pick-a-Pic"),
    "data.scores=<score file, see lpo-score>": ("lrm_sdxl", "Kwai-Kolors/LPO; lpo-score makes one"),
    "data.path=<pairs>": ("cpo_hed_sd15", "which have no public id"),
    "control.weights=<export of control_dino_hed_sd15>": ("cpo_dino_hed_sd15", ""),
    "data.path=<manifest.jsonl>": ("pose_ddpo", "lpo-prepare task=pose pose=<photographs> export=<folder>"),
    "data.path=<pictures with captions>": ("control_flux_lineart", "a folder of pictures with captions"),
    "task.weights=<ViTPose of 133 keypoints>": ("pose_ddpo_paper", ""),
}


@pytest.mark.parametrize("asked", NO_HUB)
def test_what_no_hub_has_is_named_in_the_error(asked: str) -> None:
    """By what the recipe calls it and by the comment of its option; README.md of data/ tells the same."""
    name, said = NO_HUB[asked]
    lines = [line for line in diagnose("train", [f"experiment={name}"]) if f"; add {asked}" in line]
    assert len(lines) == 1 and said in lines[0]
    readme = (CONF.parent / "lpo_platform" / "data" / "README.md").read_text(encoding="utf-8")
    for word in re.findall(r"`data=(\w+)`", readme):
        assert word in shipped("data")


@pytest.mark.slow
def test_a_recipe_asks_for_what_no_hub_has_alone() -> None:
    asked = {line.split("; add ")[1].split(" (")[0] for name in shipped("experiment")
             for line in diagnose("train", [f"experiment={name}"])}  # fmt: skip
    exports = {line for line in asked if line.startswith("control.weights=<export of ")}
    assert asked - exports == NO_HUB.keys() - exports


# yifan123/flow_grpo and NVlabs/DiffusionNFT, with PickScore; the two rows of LPO's paper that have no code.
FLOW = {
    "ddpo_sd35m": {
        "method.group": 24, "method.prompts": 48, "method.num_steps": 10, "method.eta": 0.7, "method.guidance": 4.5,
        "method.window": [0, 9], "method.spread": "batch", "method.clip": 1e-4, "method.advantage_clip": 5.0,
        "method.batch": 48 * 24 * 9 // 2, "tune.rank": 32, "tune.alpha": 64, "optim.lr": 3e-4,
        "optim.weight_decay": 1e-4, "callbacks.ema_decay": 0.9, "model.resolution": 512, "model.max_tokens": 128,
        "model.noise": "sde", "method.weighting": "none", "method.baseline": "group",
    },
    "nft_sd35m": {
        "method.group": 24, "method.prompts": 48, "method.num_steps": 10, "method.guidance": 1.0,
        "method.strength": 1.0, "method.adaptive": True, "method.scale": 5.0, "method.advantage_clip": 5.0,
        "method.fraction": 0.99, "method.kl": 1e-4, "method.trail_rise": 0.001, "method.trail_most": 0.5,
        "method.batch": 48 * 24 * 9, "tune.rank": 32, "tune.alpha": 64, "optim.lr": 3e-4, "optim.weight_decay": 1e-4,
        "optim.clip": 1.0, "callbacks.ema_decay": 0.9, "model.resolution": 512, "metrics.num_steps": 40,
    },
    "step_grpo_sd15": {
        "method.candidates": 4, "method.clip": 0.1, "method.kl": 0.1, "method.num_steps": 20, "method.guidance": 5.0,
        "tune.rank": 4, "optim.lr": 6e-5, "method.rounds": 1000, "method.prompts": 20,
    },
    "cpo_canny_sd3": {
        "method.form": "soft", "method.beta": 5000.0, "method.margin": 0.005, "method.pretrain_weight": 0.05,
        "method.batch": 256, "optim.lr": 1e-8, "model.controls.canny": "InstantX/SD3-Controlnet-Canny",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FLOW))
def test_an_experiment_has_the_numbers_of_its_source(name: str, tmp_path: Path) -> None:
    place = tmp_path / "prompts.json"
    place.touch()
    overrides = [f"experiment={name}", f"data.path={tmp_path if name.startswith('cpo') else place}"]
    assert diagnose("train", overrides) == []
    cfg = OmegaConf.create(compose.compose("train", overrides, [], CONF).values)
    assert {key: OmegaConf.select(cfg, key) for key in FLOW[name]} == FLOW[name]
    assert cfg.model.name == name.split("_")[-1] and cfg.method.batch % cfg.hardware.micro_batch == 0


# The scripts of ZonglinL/CPO and of ControlNet++. A batch is 4 (ControlNet++: 8) GPUs x 8 pictures x accumulation; the
# real warm-up is that of the script x accumulation / GPUs.
PUBLIC, PLUS_PLUS = "lllyasviel/control_v11p_sd15_", "limingcv/reward_controlnet::checkpoints/"
AVERAGED, RAW = {"callbacks.ema_decay": 0.9999}, {"callbacks.ema_decay": None, "callbacks.evaluate": "raw"}
BF16 = ("cpo_pose_sd15", "control_pose_sd15")
CONTROL: dict[str, dict[str, object]] = {}
MULTIGEN = dict.fromkeys(("lineart", "canny", "hed"), "limingcv/MultiGen-20M_train")
CAPTIONED = {"depth": "limingcv/MultiGen-20M_depth", "seg_ade20k": "limingcv/Captioned_ADE20K",
             "seg_coco": "limingcv/Captioned_COCOStuff", "pose": "limingcv/Captioned_COCOPose"}  # fmt: skip
STARTS = {"canny": "canny", "hed": "softedge", "lineart": "lineart", "seg_ade20k": "seg", "seg_coco": "seg",
          "pose": "openpose"}  # fmt: skip
CPO_PAIRS = {"seg_ade20k": "ucfzl/Segmentation_Reward_DPO_cond", "seg_coco": "ucfzl/COCOstuff",
             "pose": "ucfzl/Pose_Reward_DPO_cond"}  # fmt: skip
for task, (accumulation, lr, weight, margin, steps) in {
    "lineart": (8, 3e-9, 0.02, 3e-2, 10000), "canny": (8, 1e-8, 0.05, 5e-3, 10000), "hed": (8, 1e-8, 0.05, 1e-2, 10000),
    "depth": (2, 1e-8, 0.05, 1e-2, 4000), "seg_ade20k": (2, 1e-8, 0.05, 1e-2, 2000),
    "seg_coco": (8, 1e-8, 0.05, 1e-2, 10000), "pose": (1, 1e-7, 0.10, 1e-2, 10000),
}.items():  # fmt: skip
    CONTROL[f"cpo_{task}_sd15"] = AVERAGED | {
        "method.form": "soft", "method.beta": 5000.0, "method.pretrain_weight": weight, "method.margin": margin,
        "method.steps": steps, "method.batch": 4 * 8 * accumulation, "optim.lr": lr, "data.caption": "prompt",
        "optim.warmup_steps": 100 * accumulation // 4, "data.condition": "winner", "data.loser": "loser",
    }  # fmt: skip
    if task in CPO_PAIRS:
        CONTROL[f"cpo_{task}_sd15"]["data.path"] = CPO_PAIRS[task]
    else:
        CONTROL[f"cpo_{task}_sd15"] |= {"data.condition": "winner_{task}", "data.loser": "loser_{task}"}
for task, (steps, batch, warmup) in {
    "lineart": (20000, 256, 1000 * 8 / 4), "canny": (20000, 256, 0), "hed": (20000, 256, 1000 * 8 / 4),
    "depth": (20000, 256, 1000 * 8 / 4), "seg_ade20k": (5000, 256, 1000 * 8 / 4),
    "seg_coco": (20000, 256, 500 * 8 / 4), "pose": (20000, 4 * 14, 3),
}.items():  # fmt: skip
    CONTROL[f"control_dino_{task}_sd15"] = RAW | {
        "control._target_": "lpo_platform.models.control.ControlNetDino", "method.steps": steps, "method.batch": batch,
        "control.weights": f"{PUBLIC}{STARTS[task]}" if task in STARTS else "auto", "optim.lr": 1e-5,
        "optim.warmup_steps": warmup, **({"data.path": CAPTIONED[task]} if task in CAPTIONED else {"data.loser": None}),
    }  # fmt: skip
for task, (lr, weight, margin, steps, warmup) in {
    "lineart": (3e-9, 0.02, 1e-2, 4000, 1000), "canny": (1e-8, 0.1, 5e-3, 10000, 0),
    "hed": (1e-8, 0.1, 1e-2, 10000, 1000), "depth": (1e-8, 0.05, 1e-2, 4000, 1000),
    "seg_ade20k": (1e-8, 0.05, 1e-2, 4000, 500), "seg_coco": (1e-8, 0.05, 1e-2, 2000, 500),
    "pose": (1e-8, 0.1, 1e-2, 2000, 1000),
}.items():  # fmt: skip
    CONTROL[f"cpo_dino_{task}_sd15"] = RAW | {
        "control._target_": "lpo_platform.models.control.ControlNetDino", "method.form": "hard", "method.beta": 5000.0,
        "method.pretrain_weight": weight, "method.margin": margin, "method.steps": steps, "method.batch": 4 * 8 * 8,
        "optim.lr": lr, "optim.warmup_steps": warmup * 8 // 4, "data.loser": None,
    }  # fmt: skip
for name in ("control_dino_canny_sd15", "cpo_dino_canny_sd15"):
    CONTROL[name] |= {"task.low": 0.15, "task.high": 0.3, "task.form": "binary", "task.train_form": "magnitude"}
    CONTROL[name] |= {"data.condition": None, "data.test.path": "limingcv/MultiGen-20M_canny_eval"}
DEPTH_EVALUATION = {
    "data.test.path": "limingcv/MultiGen-20M_depth_eval", "data.test.split": "validation", "data.test.caption": "text",
    "data.test.condition": "control_depth", "data.test.loser": None,
}  # fmt: skip
for name in ("cpo_depth_sd15", "cpo_dino_depth_sd15"):
    CONTROL[name] |= DEPTH_EVALUATION
# who judges pictures: as published where transformers can load it, and never who made losers or gave rewards
JUDGES = {"seg_ade20k": "facebook/mask2former-swin-large-ade-semantic", "pose": "usyd-community/vitpose-plus-huge",
          "seg_coco": "facebook/mask2former-swin-base-coco-panoptic"}  # fmt: skip
for task, (weight, steps, warmup) in {
    "seg_ade20k": (0.5, 5000, 200), "seg_coco": (0.2, 5000, 10), "canny": (1.0, 10000, 0), "hed": (1.0, 10000, 10),
    "lineart": (0.5, 10000, 10), "depth": (1.0, 10000, 10),
}.items():  # fmt: skip
    start = {"depth": "lllyasviel/control_v11f1p_sd15_depth"}.get(task, f"{PUBLIC}{STARTS.get(task)}")
    CONTROL[f"controlnetpp_{task}_sd15"] = AVERAGED | {
        "method.reward_weight": weight, "method.max_timestep": 200, "method.steps": steps, "method.batch": 8 * 8 * 4,
        "optim.lr": 1e-5, "optim.warmup_steps": warmup * 4 // 8, "data.path": (MULTIGEN | CAPTIONED)[task],
        **({} if task.startswith("seg_") else {"control.weights": start}),
    }  # fmt: skip
FINE_TUNED = {"method.batch": 256, "optim.lr": 1e-5}
CONTROL["control_seg_ade20k_sd15"] = RAW | FINE_TUNED | {
    "method.steps": 5000, "optim.warmup_steps": 200 * 4 // 8, "control.weights": f"{PUBLIC}seg",
    "data.path": CAPTIONED["seg_ade20k"],
}  # fmt: skip
CONTROL["control_seg_coco_sd15"] = CONTROL["control_seg_ade20k_sd15"] | {"data.path": CAPTIONED["seg_coco"]}
CONTROL["controlnetpp_depth_sd15"] |= {
    "task.weights": "Intel/dpt-hybrid-midas", "metrics.task.weights": "Intel/dpt-large",
}  # fmt: skip
CONTROL["control_pose_sd15"] = AVERAGED | FINE_TUNED | {
    "method.steps": 20000, "control.weights": f"{PUBLIC}openpose", "data.path": "ucfzl/Pose_Reward_DPO",
    "data.caption": "caption", "data.condition": "control_pose", "data.labels": "pose",
    "data.test.path": "limingcv/Captioned_COCOPose", "data.test.split": "validation", "data.test.caption": "prompt",
}  # fmt: skip

# bf16 in the two scripts of poses, fp16 in all others
CONTROL = {
    name: values | {"hardware.precision": "bf16-mixed" if name in BF16 else "16-mixed"}
    for name, values in CONTROL.items()
}

# What an experiment asks for: pairs that were never published, and a start that is another experiment's result.
OWN = ("lineart", "canny", "hed", "depth")
ASKS = (
    {f"cpo_{task}_sd15": ["data.path"] for task in OWN}
    | {f"control_dino_{task}_sd15": ["data.path"] for task in OWN[:3]}
    | {name: ["control.weights"] for name in CONTROL if name.startswith(("cpo_dino", "cpo_pose", "controlnetpp_seg"))}
    | {f"cpo_dino_{task}_sd15": ["control.weights", "data.path"] for task in OWN}
)


@pytest.mark.parametrize("name", first(sorted(CONTROL), keep=10))
def test_an_experiment_of_control_has_the_published_numbers(name: str, tmp_path: Path) -> None:
    asked = diagnose("train", [f"experiment={name}"])
    assert sorted(line.split(":")[0] for line in asked) == ASKS.get(name, [])
    given = {"data.path": tmp_path, "control.weights": "w"}
    overrides = [f"experiment={name}", *(f"{key}={given[key]}" for key in ASKS.get(name, []))]
    assert diagnose("train", overrides) == []
    cfg = OmegaConf.create(compose.compose("train", overrides, [], CONF).values)
    assert {key: OmegaConf.select(cfg, key) for key in CONTROL[name]} == CONTROL[name]
    assert cfg.optim.warmup == ("from_zero" if cfg.optim.warmup_steps else "linear")
    kind, task = re.fullmatch("(control_dino|cpo_dino|controlnetpp|control|cpo)_(.+)_sd15", name).groups()
    if task in JUDGES:
        assert cfg.metrics.task.weights == JUDGES[task] != cfg.task.weights
    if task == "pose":
        assert cfg.task.drawing == "opencv"
    method = {"controlnetpp": "ControlReward"}.get(kind, {"cpo": "CPO", "con": "Control"}[kind[:3]])
    assert (cfg.model.name, cfg.method._target_.split(".")[-1]) == ("sd15", method)
    assert cfg.task._target_.split(".")[-2] == task
    assert cfg.method.batch % cfg.hardware.micro_batch == 0


def test_every_experiment_of_control_is_in_the_table() -> None:
    others = [name for name in shipped("experiment") if "flux" in name or name in FLOW]
    named = {name for name in shipped("experiment") if name.startswith(("cpo", "control"))} - {*others}
    assert named == set(CONTROL)


# What a recipe cannot do as published: its result prints it.
DEPARTS = {
    "seg_coco": "published: DeepLabV3-R101 (171 classes)", "pose": "published: DEKR (HRNet-w32)",
    "controlnetpp_seg_ade20k_sd15": "published: UperNet-R50", "controlnetpp_seg_coco_sd15": "published: DeepLabV3-R50",
    "cpo_dino_pose_sd15": "published: YOLO11x-pose", "cpo_dino_seg_coco_sd15": "published: MaskFormer (Swin-L)",
    "diffusion_dpo": "published: anew in each pass", "pose_ddpo_paper": "published: OpenPose",
}  # fmt: skip


def test_recipes_say_what_is_not_as_published() -> None:
    for name in shipped("experiment"):
        text = (CONF / "experiment" / f"{name}.yaml").read_text()
        departures = OmegaConf.create(yaml.safe_load(text)).get("departures", [])
        wanted = [line for part, line in DEPARTS.items() if re.search(rf"(^|_){part}(_sd15|_sdxl|$)", name)]
        assert all(any(line in departure for departure in departures) for line in wanted), name
        assert bool(departures) == bool(wanted) == ("see departures below" in text.partition("defaults:")[0]), name


def test_pose_rl_has_the_published_prompts_reward_and_test_photographs() -> None:
    assert diagnose("train", ["experiment=pose_ddpo_paper", "data.path=owner/poses"]) == [
        "task.weights: required by task=pose; add task.weights=<ViTPose of 133 keypoints> (folder or hub id of a "
        "ViTPose)"
    ]
    words = ["experiment=pose_ddpo_paper", "data.path=m.jsonl", "task.weights=w"]
    cfg = OmegaConf.create(compose.compose("train", words, [], CONF).values)
    assert (cfg.data.num_test, cfg.metrics.num_samples, cfg.data.num_phrases, len(cfg.data.phrases)) == (
        1000,
        1000,
        3,
        11,
    )
    assert cfg.data.suffix == "realsitic, High-resolution, highly detailed" and cfg.task.whole_body
    assert cfg.hardware.precision == "16-mixed" and cfg.optim.lr == 2e-6


@pytest.mark.parametrize("name", ["diffusion_dpo_sd15", "diffusion_dpo_sdxl"])
def test_diffusion_dpo_crops_and_flips(name: str) -> None:
    cfg = OmegaConf.create(compose.compose("train", [f"experiment={name}"], [], CONF).values)
    assert (cfg.data.crop, cfg.data.flip) == ("center", True)
    lrm = OmegaConf.create(compose.compose("train", ["experiment=lrm_sd15"], [], CONF).values)
    assert (lrm.data.crop, lrm.data.flip) == ("squash", False)


def test_rates_of_the_schedules() -> None:
    """Diffusion-DPO: from 0 over 500 steps, then constant; LPO: constant from the first step on."""
    dpo = AdamW(warmup_steps=500, warmup="from_zero")
    assert [dpo.factor(step, 2000) for step in (0, 250, 499, 500, 1999)] == [0, 0.5, 499 / 500, 1.0, 1.0]
    assert {AdamW().factor(step, 1000) for step in range(1000)} == {1.0}
