"""Rewards of pictures against transformers' own processors and models, and against the predictor worked out by hand."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from toys import rewards as toy_rewards
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BertModel,
    CLIPModel,
    CLIPProcessor,
)

from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import UserError
from lpo_platform.config.options import shipped
from lpo_platform.rewards.aesthetic import Aesthetic
from lpo_platform.rewards.bertscore import TokenEmbeddings, recall
from lpo_platform.rewards.clip import Clip
from lpo_platform.rewards.hps import Hps
from lpo_platform.rewards.image_reward import MEAN, STD, ImageReward
from lpo_platform.rewards.pickscore import PickScore
from lpo_platform.rewards.pretrained import Pretrained
from lpo_platform.rewards.reward import Asked, checked
from lpo_platform.rewards.vlm_bertscore import VlmBertscore
from lpo_platform.rewards.vqa import Vqa

PROMPTS = ["a red cat", "a blue dog on a red cat", "a red cat", "no dog, " * 30]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    torch.save(toy_rewards.predictor(), root / "sac+logos+ava1-l14-linearMSE.pth")
    return {
        "clip": toy_rewards.clip(root / "clip"),
        "llava": toy_rewards.llava(root / "llava"),
        "plain": toy_rewards.llava(root / "plain", chat=False),
        "blip2": toy_rewards.blip2(root / "blip2"),
        "bert": toy_rewards.bert(root / "bert"),
        "hps": toy_rewards.hps(root / "hps"),
        "image_reward": toy_rewards.image_reward(root),
        "predictor": root / "sac+logos+ava1-l14-linearMSE.pth",
    }


@pytest.fixture(scope="module")
def rewards(folders: dict[str, Path]) -> dict[str, Pretrained]:
    clip = str(folders["clip"])
    return {
        "clip": Clip(clip),
        "pickscore": PickScore(clip, clip),
        "aesthetic": Aesthetic(str(folders["predictor"]), clip),
        "vqa": Vqa(str(folders["llava"])),
        "hps": Hps(str(folders["hps"]), "toy-hps"),
        "image_reward": ImageReward(str(folders["image_reward"]), str(folders["bert"])),
        "vlm_bertscore": VlmBertscore(str(folders["llava"]), encoder=str(folders["bert"]), layer=2),
    }


SOMETHING = Asked(torch.zeros(1, 1), torch.zeros(1, 3, 8, 8), torch.zeros(4, dtype=torch.long))
NAMES = ("clip", "pickscore", "aesthetic", "vqa", "hps", "image_reward", "vlm_bertscore")


def pictures(num: int = 4, height: int = 300, width: int = 400) -> tuple[Tensor, list[Image.Image]]:
    """Smooth scenes with edges as (num, 3, H, W) in [0, 1], and the same as Pillow pictures."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(num, 3, 9, 12, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    levels = (smooth * 255).round().to(torch.uint8)
    levels[:, :, 50:90, 60:200] = 255
    return levels / 255, [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in levels]


def by_transformers(folder: Path, files: list[Image.Image], prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Logits of the pairs from CLIPModel.forward, and the scale that they contain."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=prompts, images=files, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits_per_image.diagonal(), model.logit_scale.exp()


def test_clip_and_pickscore_are_the_logits_of_transformers(rewards: dict, folders: dict) -> None:
    images, files = pictures()
    logits, scale = by_transformers(folders["clip"], files, PROMPTS)
    assert logits.std() > 0.1
    torch.testing.assert_close(rewards["pickscore"](images, PROMPTS), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rewards["clip"](images, PROMPTS), logits / scale, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (512, 512), (100, 64)])
def test_pixels_are_those_of_pillow_within_rounding(rewards: dict, height: int, width: int) -> None:
    """Shorter side to 224 by bicubic, central square, published mean and deviation: worked out with Pillow alone."""
    images, files = pictures(2, height, width)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    found = rewards["clip"]._pixels((images * 255).round().to(torch.uint8))
    scale = 224 / min(height, width)
    for row, file in zip(found, files, strict=True):
        resized = file.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
        square = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.float64)
        levels = (row.permute(1, 2, 0).numpy() * std + mean) * 255
        difference = np.abs(levels - square)
        assert difference.max() < 2.01 and (difference > 1.01).mean() < 1e-4 and difference.mean() < 0.02


def test_the_aesthetic_predictor_by_hand(rewards: dict, folders: dict) -> None:
    images, files = pictures()
    model = CLIPModel.from_pretrained(folders["clip"]).eval()
    inputs = CLIPProcessor.from_pretrained(folders["clip"])(images=files, return_tensors="pt")
    with torch.no_grad():
        x = model.get_image_features(**inputs).pooler_output.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for layer in (0, 2, 4, 6, 7):
        state = {k: v.double().numpy() for k, v in toy_rewards.predictor().items()}
        x = x @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"]
    assert x.std() > 1e-2
    assert rewards["aesthetic"](images, PROMPTS).numpy() == pytest.approx(x[:, 0], abs=1e-5)


def test_the_predictor_is_read_from_either_kind_of_file(rewards: dict, folders: dict, tmp_path: Path) -> None:
    save_file(toy_rewards.predictor(), tmp_path / "p.safetensors")
    images, _ = pictures()
    again = Aesthetic(str(tmp_path / "p.safetensors"), str(folders["clip"]))
    assert torch.equal(again(images, PROMPTS), rewards["aesthetic"](images, PROMPTS))


def test_the_predictor_has_the_published_shape() -> None:
    parameters = sum(value.numel() for value in toy_rewards.predictor().values())
    assert parameters == 768 * 1024 + 1024 * 128 + 128 * 64 + 64 * 16 + 16 + 1024 + 128 + 64 + 16 + 1


def question(prompt: str) -> str:
    return f'Does this figure show "{prompt}"? Please answer yes or no.'


def next_token(folder: Path, text: str, file: Image.Image, start: int | None = None) -> Tensor:
    """(V,) probabilities of the first token of the reply, one picture at a time, from transformers alone."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(images=file, text=text, return_tensors="pt")
    decoder = {} if start is None else {"decoder_input_ids": torch.tensor([[start]])}
    with torch.no_grad():
        return model(**inputs, **decoder).logits[0, -1].softmax(-1)


YES = len(toy_rewards.SPECIAL)  # the first of WORDS


def test_vqa_is_the_probability_of_yes_after_the_chat_template(rewards: dict, folders: dict) -> None:
    images, files = pictures()
    texts = [f"USER : <image> {question(prompt)} ASSISTANT :" for prompt in PROMPTS]
    expected = torch.stack([next_token(folders["llava"], *row)[YES] for row in zip(texts, files, strict=True)])
    assert expected.std() > 1e-4
    torch.testing.assert_close(rewards["vqa"](images, PROMPTS), expected, rtol=1e-4, atol=1e-7)


def test_vqa_without_a_chat_template_takes_the_question_as_it_stands(folders: dict) -> None:
    images, files = pictures()
    reward = Vqa(str(folders["plain"]), question='<image> show "{caption}" ?', answer="no")
    texts = [f'<image> show "{prompt}" ?' for prompt in PROMPTS]
    expected = torch.stack([next_token(folders["plain"], *row)[YES + 2] for row in zip(texts, files, strict=True)])
    torch.testing.assert_close(reward(images, PROMPTS), expected, rtol=1e-4, atol=1e-7)


def test_vqa_of_an_encoder_and_decoder(folders: dict) -> None:
    images, files = pictures()
    texts = [question(prompt) for prompt in PROMPTS]
    expected = torch.stack([next_token(folders["blip2"], *row, 1)[YES] for row in zip(texts, files, strict=True)])
    assert expected.std() > 1e-4
    torch.testing.assert_close(Vqa(str(folders["blip2"]))(images, PROMPTS), expected, rtol=1e-4, atol=1e-7)


def test_hps_is_the_cosine_of_open_clips_own_pipeline(rewards: dict, folders: dict) -> None:
    """Its preprocessing of Pillow pictures, its forward, its tokenizer."""
    images, files = pictures()
    model, _, preprocess = open_clip.create_model_and_transforms("toy-hps", load_weights=False)
    model.load_state_dict(torch.load(folders["hps"], weights_only=True)["state_dict"])
    with torch.no_grad():
        pixels, tokens = torch.stack([preprocess(file) for file in files]), open_clip.get_tokenizer("ViT-H-14")(PROMPTS)
        picture, text, _ = model.eval()(pixels, tokens)
    expected = (picture * text).sum(1)
    assert expected.std() > 0.02
    torch.testing.assert_close(
        rewards["hps"](images, PROMPTS), expected, rtol=0, atol=2e-3
    )  # pixels differ by rounding


def blip(state: dict[str, Tensor], pixels: Tensor, ids: Tensor, there: Tensor) -> Tensor:
    """ImageReward's number before its mean and deviation, (1,): timm's ViT, then BLIP's text encoder written out."""
    visual = VisionTransformer(32, 16, num_classes=0, embed_dim=128, depth=2, num_heads=2, mlp_ratio=2).eval()
    prefix = "blip.visual_encoder."
    visual.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    seen = visual.forward_features(pixels)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"blip.text_encoder.{name}.weight"].T + state[f"blip.text_encoder.{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-12).sqrt()
        return x * state[f"blip.text_encoder.{name}.weight"] + state[f"blip.text_encoder.{name}.bias"]

    def attend(name: str, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (linear(f"{name}.self.{part}", of) for part, of in (("query", x), ("key", other), ("value", other)))
        scores = q @ k.mT / 64**0.5  # one head of 64
        weights = scores.masked_fill(~mask.bool(), -1e30).softmax(-1)
        return norm(f"{name}.output.LayerNorm", linear(f"{name}.output.dense", weights @ v) + x)

    words = state["blip.text_encoder.embeddings.word_embeddings.weight"][ids]
    places = state["blip.text_encoder.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm("embeddings.LayerNorm", words + places)
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        x = attend(f"{layer}.attention", x, x, there)
        x = attend(f"{layer}.crossattention", x, seen, torch.ones(seen.shape[1]))
        inner = torch.nn.functional.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", inner) + x)
    x = x[:, 0]
    for layer in (0, 2, 4, 6, 7):
        x = x @ state[f"mlp.layers.{layer}.weight"].T + state[f"mlp.layers.{layer}.bias"]
    return x[:, 0]


def test_image_reward_is_blip_written_out(rewards: dict, folders: dict) -> None:
    images, _ = pictures()
    reward, state = rewards["image_reward"], torch.load(folders["image_reward"], weights_only=True)
    pixels = reward.processor(images=list((images * 255).round().byte()), return_tensors="pt").pixel_values
    expected = []
    for picture, prompt in zip(pixels, PROMPTS, strict=True):
        words = [*toy_rewards.SPECIAL, *toy_rewards.WORDS]
        ids = [words.index(word) if word in words else 0 for word in re.findall(r"\w+|,", prompt)][:33]
        ids = torch.tensor([[2, *ids, 3, *[1] * (33 - len(ids))]])
        expected.append((blip(state, picture[None], ids, ids != 1) - MEAN) / STD)
    expected = torch.cat(expected)
    assert expected.std() > 0.05
    torch.testing.assert_close(reward(images, PROMPTS), expected, rtol=1e-3, atol=1e-3)


def test_recall_is_the_mean_over_the_captions_tokens_of_their_best_match(folders: dict) -> None:
    """One pair at a time, without padding, by loops over tokens; start and end can be matched but do not count."""
    embed = TokenEmbeddings(str(folders["bert"]), 2)
    model, tokenizer = BertModel.from_pretrained(folders["bert"]).eval(), AutoTokenizer.from_pretrained(folders["bert"])
    pairs = [("a red cat", "a red cat"), ("blue dog , no", "a red cat on a dog ."), ("dog", "yes"), ("", "red")]

    def tokens(text: str) -> np.ndarray:
        with torch.no_grad():
            found = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[2][0]
        return (found / found.norm(dim=1, keepdim=True)).numpy()

    with torch.no_grad():
        found = recall(embed([said for said, _ in pairs]), embed([wanted for _, wanted in pairs])).tolist()
    for (said, wanted), value in zip(pairs[:3], found[:3], strict=True):
        candidate, reference = tokens(said), tokens(wanted)[1:-1]
        assert value == pytest.approx(np.mean([max(a @ b for b in candidate) for a in reference]), abs=1e-5)
    assert found[0] == pytest.approx(1, abs=1e-5) and found[1] < 0.95 and found[3] == 0
    with pytest.raises(UserError, match=r"layer=4: encoder=.* has layers 1 to 3"):
        TokenEmbeddings(str(folders["bert"]), 4)


def test_the_answer_is_what_the_model_says_greedily(rewards: dict, folders: dict) -> None:
    """Token after token of one picture, by whole forwards; of a decoder and of an encoder with a decoder."""
    images, files = pictures()
    levels, words = (images * 255).round().byte(), [*toy_rewards.SPECIAL, *toy_rewards.WORDS]
    of_t5 = VlmBertscore(str(folders["blip2"]), "show a cat", 4, str(folders["bert"]), 2)
    for reward, folder, text in (
        (rewards["vlm_bertscore"], "llava", f"USER : <image> {rewards['vlm_bertscore'].question} ASSISTANT :"),
        (of_t5, "blip2", "show a cat"),
    ):
        model = AutoModelForImageTextToText.from_pretrained(folders[folder]).eval()
        inputs = AutoProcessor.from_pretrained(folders[folder])(images=files[1], text=text, return_tensors="pt")
        written = [] if folder == "llava" else [1]
        while len(written) < reward.max_new_tokens + (folder == "blip2") and written[-1:] != [3]:
            more = torch.tensor([written], dtype=torch.long)
            if folder == "llava":
                ids = torch.cat([inputs["input_ids"], more], 1)
                step = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            else:
                step = {**inputs, "decoder_input_ids": more}
            with torch.no_grad():
                written.append(model(**step).logits[0, -1].argmax().item())
        said = " ".join(words[number] for number in written if number > 3).lower()
        assert reward.answers(levels)[1] == said and len(said.split()) > 1


def test_a_prompt_cannot_ask_for_a_second_picture(rewards: dict) -> None:
    images, _ = pictures(1)
    written, without = rewards["vqa"](images, ["a <image> cat"]), rewards["vqa"](images, ["a cat"])
    assert torch.equal(written, without)


@pytest.mark.parametrize("name", NAMES)
def test_the_contract(rewards: dict, name: str) -> None:
    reward = rewards[name]
    images, _ = pictures()
    scores = reward(images.requires_grad_(), PROMPTS, condition=SOMETHING)
    assert scores.shape == (4,) and scores.dtype == torch.float32 and not scores.requires_grad
    assert reward(images[:0], []).shape == (0,)
    assert not any(p.requires_grad for p in reward.parameters())
    one = torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(one, scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(reward(images[[2, 0]], [PROMPTS[2], PROMPTS[0]]), scores[[2, 0]], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="4 pictures, but 1 prompts"):
        reward(images, ["one"])


@pytest.mark.parametrize("name", NAMES)
def test_neither_training_mode_nor_autocast_changes_a_score(rewards: dict, name: str) -> None:
    reward = rewards[name]
    images, _ = pictures()
    before = reward(images, PROMPTS)
    torch.nn.Sequential(reward).train()
    assert not any(module.training for module in reward.modules())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reward(images, PROMPTS), before)


def test_batches_do_not_change_a_score(rewards: dict, folders: dict) -> None:
    images, _ = pictures()
    split = Clip(str(folders["clip"]), batch=3)
    torch.testing.assert_close(split(images, PROMPTS), rewards["clip"](images, PROMPTS), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="reward clip: batch=0"):
        Clip(str(folders["clip"]), batch=0)


def test_half_precision_is_close_and_still_float32_outside(rewards: dict, folders: dict) -> None:
    images, _ = pictures()
    half = Clip(str(folders["clip"]), dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    scores = half(images, PROMPTS)
    assert scores.dtype == torch.float32 and not torch.equal(scores, rewards["clip"](images, PROMPTS))
    torch.testing.assert_close(scores, rewards["clip"](images, PROMPTS), rtol=0, atol=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_a_diverged_model_are_named(rewards: dict, name: str) -> None:
    images, _ = pictures()
    images[1, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=f"reward {name}: the pictures hold NaN"):
        rewards[name](images, PROMPTS)


def test_what_a_reward_returns_is_checked_by_name() -> None:
    given = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    values = checked("mine", given, 2)
    assert values.tolist() == [1.0, 2.0] and values.dtype == torch.float32 and not values.requires_grad
    for wrong, message in [
        (torch.tensor([1.0, float("nan"), float("inf")]), "reward mine: returned NaN or infinity for 2 of 3 samples"),
        (torch.zeros(3, 1), r"reward mine: returned shape (3, 1), expected (3,)"),
        (torch.zeros(2), r"reward mine: returned shape (2,), expected (3,)"),
        ([0.0, 0.0, 0.0], r"reward mine: returned a list, expected a tensor of shape (3,)"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            checked("mine", wrong, 3)


def touch(path: Path) -> str:
    path.touch()
    return str(path)


def pickled(path: Path) -> str:
    path.write_bytes(pickle.dumps(Path("/"), protocol=2))
    return str(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f, t: Clip("/no/such/folder"), "weights=/no/such/folder: no such folder"),
        (lambda f, t: Clip("nobody/nothing"), "weights=nobody/nothing: no usable weights"),
        (lambda f, t: Clip(str(f["clip"]), "/no/folder"), "processor=/no/folder: no such folder"),
        (lambda f, t: PickScore(str(t)), "weights={t}: no usable weights"),
        (lambda f, t: Vqa(str(f["clip"])), "weights={clip}: no usable weights"),
        (lambda f, t: Vqa(str(f["llava"]), question="Is it?"), "question='Is it?': must contain {{caption}}"),
        (lambda f, t: Vqa(str(f["llava"]), answer="yes no"), "answer=yes no: 2 tokens in {llava}"),
        (lambda f, t: Aesthetic("/no/file.pth"), "weights=/no/file.pth: no such file; give the file sac+logos"),
        (lambda f, t: Hps("/no/file.pt"), "weights=/no/file.pt: no such file; download it"),
        (lambda f, t: Hps(touch(t / "p.pt"), "toy-hps"), "weights={t}/p.pt: not a toy-hps of open_clip"),
        (lambda f, t: Hps(str(f["hps"]), "ViT-H-15"), "architecture=ViT-H-15: open_clip has none; did you mean"),
        (lambda f, t: ImageReward(str(f["hps"]), str(f["bert"])), "weights={hps}: not ImageReward's"),
        (lambda f, t: ImageReward(str(f["image_reward"]), "/no/bert"), "tokenizer=/no/bert: no such folder"),
        (lambda f, t: VlmBertscore(str(f["llava"]), reference="x"), "reference='x': must contain {{caption}}"),
        (lambda f, t: VlmBertscore(str(f["llava"]), encoder="/no/bert"), "encoder=/no/bert: no such folder"),
        (lambda f, t: Aesthetic(touch(t / "p.pth")), "weights={t}/p.pth: not the aesthetic predictor"),
        (lambda f, t: Aesthetic(touch(t / "p.safetensors")), "weights={t}/p.safetensors: not the aesthetic predictor"),
        (lambda f, t: Aesthetic(pickled(t / "q.pth")), "weights={t}/q.pth: not the aesthetic predictor"),
        (lambda f, t: Aesthetic(str(f["clip"] / "model.safetensors")), "model.safetensors: not the aesthetic predict"),
        (lambda f, t: Aesthetic(str(f["predictor"]), "/no/clip"), "clip=/no/clip: no such folder"),
        (
            lambda f, t: Aesthetic(str(f["predictor"]), str(toy_rewards.clip(t / "w", width=16))),
            "clip={t}/w: its embeddings are 16 wide; the predictor reads 768",
        ),
    ],
)
def test_wrong_weights_are_one_line(make: Callable, message: str, folders: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        make(folders, tmp_path)
    assert message.format(t=tmp_path, **folders) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_with_gaps_are_refused_and_not_filled_with_noise(folders: dict, tmp_path: Path) -> None:
    folder = toy_rewards.clip(tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for make in (lambda: Clip(str(folder)), lambda: Aesthetic(str(folders["predictor"]), str(folder))):
        with pytest.raises(UserError, match=r"of its tensors 1 is missing: visual_projection\.weight"):
            make()


def test_every_option_of_the_group_states_the_arguments_of_its_class(tmp_path: Path) -> None:
    assert set(shipped("reward")) >= {"none", *NAMES}
    (tmp_path / "test_group.yaml").write_text("defaults:\n  - reward: clip\n  - _self_\n")
    for name in NAMES:
        lines = [f"reward={name}", *(["reward.weights=w"] if name in ("aesthetic", "vqa") else [])]
        found = diagnose("test_group", lines, conf=tmp_path)
        assert [line for line in found if not line.startswith("reward in ")] == []
        (line,) = diagnose("test_group", [*lines, "reward.weigths=x"], conf=tmp_path, values=False)
        assert "did you mean 'weights'?" in line
