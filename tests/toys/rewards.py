"""The models behind the rewards as real classes at toy size with random weights, saved as the published ones are."""

import json
from collections.abc import Iterable
from pathlib import Path

import open_clip
import torch
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from lpo_platform.models.weights import ASSETS

WORDS = [
    *("Yes", "yes", "no", "Does", "this", "figure", "show", "Please", "answer", "or", "USER", "ASSISTANT", ":"),
    *("a", "red", "blue", "cat", "dog", "on", "?", ",", ".", '"'),
]
SPECIAL = ["<unk>", "<pad>", "<s>", "</s>", "<image>"]
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": 32}
CHAT = (
    "{% for m in messages %}USER : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT :{% endif %}"
)


def clip(folder: Path, *, width: int = 768, seed: int = 0) -> Path:
    """A CLIP that reads 224 px pictures in patches of 32 and embeds in `width` numbers."""
    torch.manual_seed(seed)
    text = LAYERS | {"vocab_size": 613, "max_position_embeddings": 24, "eos_token_id": 612, "bos_token_id": 611}
    config = CLIPConfig(text_config=text, vision_config=LAYERS | {"patch_size": 32}, projection_dim=width)
    processor = CLIPProcessor(CLIPImageProcessor(), CLIPTokenizer.from_pretrained(ASSETS / "tiny" / "tokenizer"))
    return _save(_loud(CLIPModel(config)), processor, folder)


def llava(folder: Path, *, chat: bool = True) -> Path:
    """A LLaVA of 32 px pictures: a decoder that reads picture and question and goes on writing."""
    torch.manual_seed(1)
    text = LAYERS | {"model_type": "llama", "num_key_value_heads": 2, "vocab_size": len(SPECIAL) + len(WORDS)}
    vision = LAYERS | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    layout = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaProcessor(pictures, llava_tokenizer(), chat_template=CHAT if chat else None, **layout)
    return _save(_loud(LlavaForConditionalGeneration(config)), processor, folder)


def blip2(folder: Path) -> Path:
    """A BLIP-2 of 32 px pictures on T5: an encoder reads, a decoder answers; no chat template."""
    torch.manual_seed(2)
    vocabulary = len(SPECIAL) + len(WORDS)
    config = Blip2Config(
        vision_config=LAYERS | {"image_size": 32, "patch_size": 8},
        qformer_config=LAYERS | {"encoder_hidden_size": 32, "vocab_size": vocabulary},
        text_config={"model_type": "t5", "vocab_size": vocabulary, "d_model": 32, "d_kv": 16, "d_ff": 64}
        | {"num_layers": 2, "num_heads": 2, "pad_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 3},
        num_query_tokens=8,
        image_token_index=4,
    )
    pictures = BlipImageProcessor(size={"height": 32, "width": 32})
    processor = Blip2Processor(pictures, llava_tokenizer(), num_query_tokens=8)
    return _save(_loud(Blip2ForConditionalGeneration(config)), processor, folder)


def bert(folder: Path) -> Path:
    """A BERT of three layers, whose texts begin with <s> and end with </s>."""
    torch.manual_seed(4)
    tokenizer = llava_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    tokenizer.cls_token, tokenizer.sep_token = "<s>", "</s>"
    sizes = LAYERS | {"num_hidden_layers": 3, "vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 24}
    return _save(_loud(BertModel(BertConfig(**sizes, pad_token_id=1))), tokenizer, folder)


def dino(folder: Path) -> Path:
    """A DINOv2 of 28 px pictures in patches of 14."""
    torch.manual_seed(5)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "image_size": 28, "patch_size": 14}
    processor = BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return _save(_loud(Dinov2Model(Dinov2Config(**sizes))), processor, folder)


HPS = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def hps(folder: Path) -> Path:
    """Weights of an open_clip "toy-hps", in a file as HPSv2 has it."""
    folder.mkdir()
    (folder / "toy-hps.json").write_text(json.dumps(HPS))
    open_clip.add_model_config(folder)
    torch.manual_seed(6)
    state = _loud(open_clip.create_model("toy-hps", load_weights=False)).state_dict()
    torch.save({"epoch": 1, "state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    return folder / "HPS_v2.1_compressed.pt"


def image_reward(folder: Path, *, vision: int = 128, text: int = 64) -> Path:
    """ImageReward.pt: weights of BLIP under its own names, with heads that nothing reads; 32 px in patches of 16."""
    torch.manual_seed(7)
    visual = VisionTransformer(32, 16, num_classes=0, embed_dim=vision, depth=2, num_heads=vision // 64, mlp_ratio=2)
    state = {f"blip.visual_encoder.{name}": weight for name, weight in visual.state_dict().items()}
    shapes = {"embeddings.word_embeddings": (len(SPECIAL) + len(WORDS), text)}
    shapes |= {"embeddings.position_embeddings": (40, text), "embeddings.LayerNorm": (text,)}
    for layer in range(2):
        for attention, width in (("attention", text), ("crossattention", vision)):
            at = f"encoder.layer.{layer}.{attention}"
            shapes |= {f"{at}.self.query": (text, text), f"{at}.self.key": (text, width)}
            shapes |= {f"{at}.self.value": (text, width), f"{at}.output.dense": (text, text)}
            shapes |= {f"{at}.output.LayerNorm": (text,)}
        at = f"encoder.layer.{layer}"
        shapes |= {f"{at}.intermediate.dense": (2 * text, text), f"{at}.output.dense": (text, 2 * text)}
        shapes |= {f"{at}.output.LayerNorm": (text,)}
    for name, shape in shapes.items():
        state[f"blip.text_encoder.{name}.weight"] = torch.randn(shape) * 0.2 + (len(shape) == 1)
        if not name.endswith("_embeddings"):
            state[f"blip.text_encoder.{name}.bias"] = torch.randn(shape[0]) * 0.2
    state |= {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None], "blip.temp": torch.ones(())}
    state |= {"blip.vision_proj.weight": torch.randn(8, vision), "blip.text_proj.bias": torch.randn(8)}
    state |= {f"mlp.{name}": weight for name, weight in predictor(width=text).items()}
    torch.save(state, folder / "ImageReward.pt")
    return folder / "ImageReward.pt"


def predictor(*, seed: int = 3, width: int = 768) -> dict[str, torch.Tensor]:
    """State of an aesthetic predictor, in the names of the published file."""
    torch.manual_seed(seed)
    sizes = {0: (width, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    state = {f"layers.{i}.weight": torch.randn(b, a) / a**0.5 for i, (a, b) in sizes.items()}
    return state | {f"layers.{i}.bias": torch.randn(b) for i, (_, b) in sizes.items()}


def _loud(model: nn.Module) -> nn.Module:
    """Weights large enough for different inputs to give different outputs."""
    with torch.no_grad():
        for weight in _matrices(model.parameters()):
            weight.normal_(std=0.2)
    return model


def _matrices(parameters: Iterable[nn.Parameter]) -> Iterable[nn.Parameter]:
    return (weight for weight in parameters if weight.ndim > 1)


def llava_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of WORDS."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    names = dict(zip(("unk_token", "pad_token", "bos_token", "eos_token"), SPECIAL, strict=False))
    return PreTrainedTokenizerFast(tokenizer_object=words, additional_special_tokens=SPECIAL[4:], **names)


def _save(model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
