"""The published detectors and the models of rewards at toy size, under their classes and file names."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from toys import rewards
from toys.published.diffusion import WORDS, tokenizer_of_words
from transformers import (
    BertConfig,
    BertModel,
    BitConfig,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    SegformerImageProcessor,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
)

from lpo_platform.rewards.spm import SPM
from lpo_platform.tasks.depth import small as dpt_config
from lpo_platform.tasks.detector import with_random_weights
from lpo_platform.tasks.hed import HedNetwork
from lpo_platform.tasks.lineart import LineNetwork

Maker = Callable[[Path], None]
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": 32}


def hed(folder: Path) -> None:
    folder.mkdir(parents=True)
    torch.save(with_random_weights(HedNetwork).state_dict(), folder / "ControlNetHED.pth")


def lineart(folder: Path) -> None:
    folder.mkdir(parents=True)
    torch.save(with_random_weights(LineNetwork).state_dict(), folder / "model.pth")


def dpt(folder: Path) -> None:
    _save(DPTForDepthEstimation, dpt_config(), folder)
    DPTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def dpt_hybrid(folder: Path) -> None:
    """A transformer on a small ResNet, as MiDaS 3 has it."""
    backbone = BitConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 32], depths=[1, 1, 1, 1], num_groups=4, layer_type="bottleneck",
        global_padding="same", embedding_dynamic_padding=True, out_features=["stage1", "stage2", "stage3"],
    )  # fmt: skip
    config = DPTConfig(
        is_hybrid=True, backbone_config=backbone, backbone_featmap_shape=[1, 32, 4, 4], image_size=64, patch_size=16,
        neck_ignore_stages=[0, 1], readout_type="project", reassemble_factors=[1, 1, 1, 0.5],
        backbone_out_indices=[0, 0, 0, 1], neck_hidden_sizes=[8, 16, 32, 32], fusion_hidden_size=16, **LAYERS,
    )  # fmt: skip
    _save(DPTForDepthEstimation, config, folder)
    DPTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def _swin() -> SwinConfig:
    return SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def upernet(folder: Path) -> None:
    config = UperNetConfig(
        backbone_config=_swin(), hidden_size=16, pool_scales=[1, 2], num_labels=150, auxiliary_in_channels=64,
        auxiliary_channels=8,
    )  # fmt: skip
    _save(UperNetForSemanticSegmentation, config, folder)
    SegformerImageProcessor().save_pretrained(folder)


def mask2former(classes: int) -> Maker:
    def make(folder: Path) -> None:
        config = Mask2FormerConfig(
            backbone_config=_swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
            dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=8,
            num_labels=classes,
        )  # fmt: skip
        _save(Mask2FormerForUniversalSegmentation, config, folder)
        Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)

    return make


def vitpose(keypoints: int = 17, experts: int = 1) -> Maker:
    """experts: those of ViTPose++, whose last layers differ by data set."""

    def make(folder: Path) -> None:
        backbone = VitPoseBackboneConfig(
            image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            mlp_ratio=2, out_features=["stage2"], num_experts=experts, part_features=8 if experts > 1 else 0,
        )  # fmt: skip
        _save(VitPoseForPoseEstimation, VitPoseConfig(backbone_config=backbone, num_labels=keypoints), folder)
        VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)

    return make


def rtdetr(folder: Path) -> None:
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, num_queries=6, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
        decoder_layers=1, decoder_attention_heads=2, id2label={0: "person", 1: "bicycle"}, num_denoising=0,
    )  # fmt: skip
    _save(RTDetrForObjectDetection, config, folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def clip(*, processor: bool = True) -> Maker:
    """processor: PickScore's weights come without one."""

    def make(folder: Path) -> None:
        text = LAYERS | {"vocab_size": len(WORDS["vocab"]), "max_position_embeddings": 77, "projection_dim": 32}
        text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
        vision = LAYERS | {"image_size": 32, "patch_size": 16}
        _save(CLIPModel, CLIPConfig(text_config=text, vision_config=vision, projection_dim=32), folder)
        if processor:
            CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
                folder
            )
            tokenizer_of_words(folder / "words")
            for file in (folder / "words").iterdir():
                file.replace(folder / file.name)
            (folder / "words").rmdir()

    return make


def dino(folder: Path) -> None:
    config = Dinov2Config(num_hidden_layers=2, num_attention_heads=2, hidden_size=32, image_size=28, patch_size=14)
    _save(Dinov2Model, config, folder)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)


def bert(folder: Path) -> None:
    """Twelve layers, for BERTScore reads the ninth. What kind of tokenizer it is stands in config.json alone."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *rewards.WORDS]
    sizes = LAYERS | {"num_hidden_layers": 12, "vocab_size": len(words), "max_position_embeddings": 64}
    _save(BertModel, BertConfig(**sizes), folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')


def llava_next(folder: Path) -> None:
    """LLaVA 1.6: it looks at a picture as a whole and in tiles, and Mistral answers."""
    words = len(rewards.SPECIAL) + len(rewards.WORDS)
    text = LAYERS | {"model_type": "mistral", "num_key_value_heads": 1, "vocab_size": words}
    vision = LAYERS | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16, "projection_dim": 32}
    tiles = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=4, image_grid_pinpoints=tiles,
        vision_feature_layer=-2,
    )  # fmt: skip
    _save(LlavaNextForConditionalGeneration, config, folder)
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=tiles
    )
    LlavaNextProcessor(
        pictures, rewards.llava_tokenizer(), chat_template=rewards.CHAT, patch_size=16,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip


def image_reward(folder: Path) -> None:
    folder.mkdir(parents=True)
    rewards.image_reward(folder)


def hps(folder: Path) -> None:
    """Both versions. open_clip gets a toy architecture under the name of the published one."""
    folder.mkdir(parents=True)
    torch.manual_seed(6)
    import open_clip

    small_open_clip(folder.parent)
    state = open_clip.create_model("ViT-H-14", load_weights=False).state_dict()
    for name in ("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt"):
        torch.save({"epoch": 1, "state_dict": state}, folder / name)


def small_open_clip(folder: Path) -> None:
    """Makes open_clip's ViT-H-14 small in this process."""
    import open_clip

    place = folder / "open_clip"
    place.mkdir(exist_ok=True)
    (place / "ViT-H-14.json").write_text(json.dumps(rewards.HPS))
    open_clip.add_model_config(place)


def spm(cache: Callable[[str], Path]) -> Maker:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        pickscore, processor = cache("yuvalkirstain/PickScore_v1"), cache("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
        state = SPM(None, str(pickscore), str(processor)).model.state_dict()
        for name in ("sd-v1-5", "sdxl"):
            named = {f"model.{key}": value for key, value in state.items()}
            torch.save(named, folder / f"{name}_step-aware_preference_model.bin")

    return make


def _save(kind: type[PreTrainedModel], config: object, folder: Path) -> None:
    torch.manual_seed(7)
    made = kind(config)
    for weight in made.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.1)
    made.save_pretrained(folder)
