"""The latent reward model: its head against values in float64, its features against hooks, its loss by hand."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from toys import stable_diffusion as toy
from toys.instances import first
from toys.readable import Readable

from lpo_platform.data.prepared.rounds import Rounds
from lpo_platform.diffusion import noise
from lpo_platform.methods.losses import pair_preference
from lpo_platform.methods.lrm import LRM, pair_accuracy
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.latent_reward import UP, LatentReward, empty_half
from lpo_platform.models.policy import Policy
from lpo_platform.models.random_weights import SD15, SD21, SDXL, Shape, random_model
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_xl import StableDiffusionXL
from lpo_platform.models.tuning import Reward

PROMPTS = ["a red circle", "two small blue squares on a green ground", ""]
KINDS = ["tiny", "sd21", "sdxl"]
"""tiny: down blocks without, with and with cross attention; sd21: with and without; sdxl: without and with."""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StableDiffusion]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "tiny": StableDiffusion(weights="tiny", **toy.SETTINGS),
        "sd21": StableDiffusion(weights=str(toy.stable_diffusion_21(folder / "sd21")), **toy.SETTINGS),
        "sdxl": StableDiffusionXL(weights=str(toy.stable_diffusion_xl(folder / "xl")), **toy.SETTINGS),
    }


@pytest.fixture(params=KINDS)
def adapter(request: pytest.FixtureRequest, adapters: dict[str, StableDiffusion]) -> StableDiffusion:
    return adapters[request.param]


def latents(adapter: StableDiffusion, number: int = 3) -> tuple[Tensor, Tensor]:
    x = noise.normal(range(number), adapter.latent_shape, seed=0, stream="test")
    return x, torch.tensor([951, 1, 451])[:number]


# The head.


@pytest.fixture(scope="module")
def sd15() -> StableDiffusion:
    """Without weights: what is asked of it are shapes and the head."""
    return random_model(SD15, device="meta")


@pytest.mark.parametrize(
    ("guidance", "projected", "expected"),
    [(7.5, (14.73268116, -22.73760432), -0.0213454159), (1.0, (1.42945552, 0.50993115), -0.1630946899)],
)
def test_head_in_float64(
    sd15: StableDiffusion, guidance: float, projected: tuple[float, float], expected: float
) -> None:
    n, d = 4800, 768
    model = LatentReward.start(sd15, guidance=guidance)
    assert model.visual_projection.weight.shape == (d, n) and model.text_projection.weight.shape == (d, d)
    j, k = torch.arange(n, dtype=torch.float64), torch.arange(1, d + 1, dtype=torch.float64)
    model.visual_projection.weight = nn.Parameter(torch.cos(0.001 * k[:, None] * (j + 1)) / n**0.5)
    model.text_projection.weight = nn.Parameter(torch.eye(d, dtype=torch.float64))
    model.logit_scale = nn.Parameter(torch.tensor(2.6592, dtype=torch.float64))
    middle = model._enhance(torch.stack([torch.sin(0.01 * j[-1280:]), torch.cos(0.01 * j[-1280:])]), 1)
    features = torch.cat([torch.sin(0.01 * j[:-1280])[None], middle], 1)
    assert model.visual_projection(features)[0, :2].tolist() == pytest.approx(projected, abs=1e-7)
    score = model.score(features, torch.sin(0.1 * k)[None])
    assert score.dtype == torch.float64 and score.item() == pytest.approx(expected, abs=1e-9)


def test_an_untrained_model_has_the_published_start(sd15: StableDiffusion) -> None:
    given = torch.randn(768, 768)
    model = LatentReward.start(sd15, text_projection=given)
    assert model.logit_scale.item() == pytest.approx(2.6592)
    assert model.visual_projection.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert (model.guidance, model.multi_scale, model.multi_scale_guidance) == (7.5, True, False)
    assert torch.equal(model.text_projection.weight, given)
    assert torch.equal(LatentReward.start(sd15).text_projection.weight, torch.eye(768))


# Structure at full size.


def residuals(unet: UNet2DConditionModel, seen: list[Tensor]) -> None:
    """Makes `unet` append every residual that diffusers would hand to its up blocks, in that order."""
    unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for block in unet.down_blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.extend(output[1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "used", "picks", "shapes", "features"),
    [
        (SD15, 348.7, (2, 5, 8, 11), [(320, 64), (640, 32), (1280, 16), (1280, 8)], 4800),
        (SD21, 351.7, (2, 5, 8, 11), [(320, 64), (640, 32), (1280, 16), (1280, 8)], 4800),
        (SDXL, 1243.4, (2, 5, 8), [(320, 128), (640, 64), (1280, 32)], 3520),
    ],
)
def test_structure_at_full_size(
    shape: Shape, used: float, picks: tuple[int, ...], shapes: list[tuple[int, int]], features: int
) -> None:
    """Section 1.2 and 1.5, on the meta device."""
    adapter = random_model(shape, device="meta")
    model = LatentReward.start(adapter, guidance=1.0)
    assert sum(p.numel() for p in model.unet.parameters()) / 1e6 == pytest.approx(used, abs=0.05)
    assert not any(name.startswith(UP) for name in model.unet.state_dict())
    seen: list[Tensor] = []
    residuals(model.unet, seen)
    size, width = shape.resolution // 8, shape.unet["cross_attention_dim"]
    with torch.device("meta"):
        packed = 1 if shape is SDXL else 0
        x, t, context = (
            torch.empty(2, 4, size, size),
            torch.zeros(2, dtype=torch.long),
            torch.empty(2, 77 + packed, width),
        )
    assert model.features(x, t, context).shape == (2, features)
    assert len(seen) == (9 if shape is SDXL else 12)
    assert [tuple(seen[i].shape) for i in picks] == [(2, c, s, s) for c, s in shapes]
    assert model.visual_projection.weight.shape == ({"sd15": 768, "sd21": 1024, "sdxl": 1280}[shape.name], features)
    assert (model.text_projection is None) is (shape is SDXL)


# Features against the stock UNet.


def stock_features(unet: UNet2DConditionModel, x: Tensor, t: Tensor, text: Tensor) -> tuple[list[Tensor], Tensor]:
    """Pooled scales and middle by diffusers' whole forward: element [1][layers - 1] of every down block's output."""
    scales, middle = [], []
    hooks = [
        block.register_forward_hook(lambda m, i, output: scales.append(output[1][len(m.resnets) - 1]))
        for block in unet.down_blocks
    ]
    hooks.append(unet.mid_block.register_forward_hook(lambda m, i, output: middle.append(output)))
    added = {}
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        size = torch.tensor([toy.RESOLUTION, toy.RESOLUTION, 0, 0, toy.RESOLUTION, toy.RESOLUTION])
        added = {"added_cond_kwargs": {"text_embeds": text[:, -1, :pooled], "time_ids": size.repeat(len(x), 1)}}
        text = text[:, :-1]
    unet(x, t, text, **added)
    for hook in hooks:
        hook.remove()
    return [scale.mean((2, 3)) for scale in scales], middle[0].mean((2, 3))


def prompts_of(adapter: StableDiffusion, model: LatentReward, prompts: list[str]) -> dict[str, Tensor]:
    return model.encode(adapter.tokenize(prompts))


@pytest.mark.parametrize("multi_scale_guidance", first([False, True], keep=1))
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_features_are_those_of_the_stock_unet(
    adapter: StableDiffusion, guidance: float, multi_scale_guidance: bool
) -> None:
    """With the encoder run twice in full, so also what both passes share is what both would compute."""
    model = LatentReward.start(adapter, guidance=guidance, multi_scale_guidance=multi_scale_guidance).eval()
    x, t = latents(adapter)
    with torch.no_grad():
        text, empty = adapter.embed(adapter.tokenize(PROMPTS)), adapter.embed(adapter.tokenize([""]))
        scales, middle = stock_features(adapter.unet, x, t, text)
        without, middle_without = stock_features(adapter.unet, x, t, empty.expand_as(text))
        enhance = lambda on, off: off + guidance * (on - off)  # noqa: E731
        if multi_scale_guidance:
            scales = [enhance(on, off) for on, off in zip(scales, without, strict=True)]
        expected = torch.cat([*scales, enhance(middle, middle_without)], 1)
        found = model.features(x, t, prompts_of(adapter, model, PROMPTS)["context"])
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        alone = LatentReward.start(adapter, guidance=guidance, multi_scale=False).eval()
        found = alone.features(x, t, prompts_of(adapter, alone, PROMPTS)["context"])
        torch.testing.assert_close(found, enhance(middle, middle_without), atol=2e-5, rtol=1e-4)


def test_scores_and_gradients_are_those_of_a_literal_model(adapter: StableDiffusion) -> None:
    """Stock UNet run for prompt and empty prompt, text towers of transformers, cosine written out."""
    model = LatentReward.start(adapter).eval()
    x, t = latents(adapter)
    tokens = adapter.tokenize(PROMPTS)
    found = model(x, t, model.encode(tokens))
    found.sum().backward()
    literal = copy.deepcopy(model.state_dict())
    unet = copy.deepcopy(adapter.unet).requires_grad_(True)
    encoders = copy.deepcopy(adapter.text_encoders)
    both = []
    for ids in (tokens, adapter.tokenize([""]).expand_as(tokens)):
        if len(encoders) == 1:
            out = encoders[0](ids)
            end = (ids == ids.max()).int().argmax(1)
            both.append((out.last_hidden_state, out.last_hidden_state[range(3), end]))
        else:
            one, two = (e(ids[:, i], output_hidden_states=True) for i, e in enumerate(encoders))
            sequence = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1)
            row = nn.functional.pad(two.text_embeds, (0, sequence.shape[-1] - two.text_embeds.shape[-1]))
            both.append((torch.cat([sequence, row[:, None]], 1), two.text_embeds))
    (scales, middle), (_, without) = (stock_features(unet, x, t, text) for text, _ in both)
    features = torch.cat([*scales, without + 7.5 * (middle - without)], 1)
    visual, target = features @ literal["visual_projection.weight"].T, both[0][1]
    if "text_projection.weight" in literal:
        target = target @ literal["text_projection.weight"].T
    expected = literal["logit_scale"].exp() * nn.functional.cosine_similarity(visual, target)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    assert found.shape == (3,) and found.std() > 0
    expected.sum().backward()
    for name in ("conv_in.weight", "time_embedding.linear_1.weight", "mid_block.resnets.0.conv1.weight"):
        ours, theirs = model.unet.get_parameter(name).grad, unet.get_parameter(name).grad
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()
    assert all(p.grad is not None for p in model.unet.parameters() if p.numel())


def test_the_up_path_does_not_exist(adapter: StableDiffusion) -> None:
    other = SimpleNamespace(
        unet=copy.deepcopy(adapter.unet), text_encoders=adapter.text_encoders, tokenize=adapter.tokenize
    )
    for name, weight in other.unet.named_parameters():
        if name.startswith(UP):
            nn.init.zeros_(weight)
    x, t = latents(adapter)
    scores = []
    for kind in (adapter, other):
        torch.manual_seed(0)
        model = LatentReward.start(kind).eval()
        assert not hasattr(model.unet, "up_blocks") and not hasattr(model.unet, "conv_out")
        with torch.no_grad():
            scores.append(model(x, t, prompts_of(adapter, model, PROMPTS)))
    assert torch.equal(*scores)


def test_the_copy_learns_and_the_denoiser_stays(adapter: StableDiffusion) -> None:
    model = LatentReward.start(adapter)
    assert all(p.requires_grad for p in model.parameters())
    ours = dict(model.unet.named_parameters())
    shared = [n for n, p in adapter.unet.named_parameters() if n in ours and ours[n].data_ptr() == p.data_ptr()]
    assert shared == [] and not any(p.requires_grad for p in adapter.unet.parameters())


def test_another_empty_prompt_changes_the_middle_only(adapter: StableDiffusion) -> None:
    model = LatentReward.start(adapter).eval()
    x, t = latents(adapter)
    with torch.no_grad():
        context = prompts_of(adapter, model, PROMPTS)["context"]
        one = model.features(x, t, context)
        other = model.features(x, t, context, prompts_of(adapter, model, ["a square"])["context"])
    width = adapter.unet.config.block_out_channels[-1]
    assert torch.equal(one[:, :-width], other[:, :-width])
    assert not torch.isclose(one[:, -width:], other[:, -width:]).all(1).any()


def test_the_empty_prompt_is_encoded_also_where_guidance_of_the_denoiser_uses_zeros(
    adapters: dict[str, StableDiffusion],
) -> None:
    """SDXL's denoiser is led away from zeros, its reward model from the encoding of ""."""
    adapter = adapters["sdxl"]
    model = LatentReward.start(adapter).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.empty(), adapter.embed(adapter.tokenize([""])))
    assert not adapter.empty_text().any() and model.empty().any()


def test_tokens_are_padded_as_sd_15_pads_them(adapters: dict[str, StableDiffusion]) -> None:
    """Whatever the policy's tokenizer does: SD-2.1's pads with "!"."""
    adapter = adapters["sd21"]
    model = LatentReward.start(adapter).eval()
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    prompts = [*PROMPTS, "a red circle " * 40]
    ours, theirs = (toy.tokenizer(**pad)(prompts, **options).input_ids for pad in ({}, {"pad_token": "!"}))
    assert not torch.equal(ours, theirs)
    with torch.no_grad():
        for one, other in zip(model.encode(ours).values(), model.encode(theirs).values(), strict=True):
            assert torch.equal(one, other)
        torch.testing.assert_close(model.encode(ours)["context"], adapter.embed(ours))


@pytest.mark.parametrize("name", ["sd21", "sdxl"])
@torch.no_grad()
def test_an_added_word_is_not_taken_for_the_end(name: str, adapters: dict[str, StableDiffusion]) -> None:
    """Its id is above that of the end token: what follows it must still be read."""
    model = LatentReward.start(adapters[name]).eval()
    words, options = toy.tokenizer(), {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    words.add_tokens(["<sks>"])
    for encoder in model.text_encoders:
        encoder.resize_token_embeddings(len(words))
        encoder.config.eos_token_id = 2  # as in the published folders, where encoders then take the highest id
    ids = words(["a <sks> circle", "a <sks> square on blue", "<sks>"], **options).input_ids
    assert (ids.argmax(1) < (ids == words.eos_token_id).int().argmax(1)).all()
    tokens = ids if name == "sd21" else torch.stack([ids, ids], 1)
    text = model.encode(tokens)
    for part in text.values():
        assert (part[0] - part[1]).abs().max() > 1e-3
    states = model.text_encoders[-1](ids, output_hidden_states=True).last_hidden_state
    ends = states[torch.arange(3), (ids == words.eos_token_id).int().argmax(1)]
    expected = ends if name == "sd21" else model.text_encoders[-1].text_projection(ends)
    torch.testing.assert_close(text["target"], expected)


def test_the_head_stays_in_float32_under_autocast(adapter: StableDiffusion) -> None:
    model = LatentReward.start(adapter).eval()
    x, t = latents(adapter)
    kept: list[Tensor] = []
    inner: Callable[..., Tensor] = model.score
    model.score = lambda features, target: kept.extend((features, target)) or inner(features, target)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(x, t, prompts_of(adapter, model, PROMPTS))
    features, target = kept
    assert found.dtype == features.dtype == torch.float32
    with torch.no_grad():
        visual = features @ model.visual_projection.weight.T
        target = target.float() if model.text_projection is None else target.float() @ model.text_projection.weight.T
        expected = model.logit_scale.exp() * nn.functional.cosine_similarity(visual, target)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(found, found.bfloat16().float())


def test_an_empty_half_takes_the_weights_of_a_whole(adapters: dict[str, StableDiffusion]) -> None:
    half = empty_half(adapters["tiny"].unet.config)
    assert all(p.is_meta for p in half.parameters())
    whole = adapters["tiny"].unet.state_dict()
    assert set(half.state_dict()) == {name for name in whole if not name.startswith(UP)}


# The loss.


def labels(*first: float) -> Tensor:
    """(B, 2, 2) of the probabilities that the first of two is preferred."""
    y = torch.tensor(first)
    half = torch.full_like(y, 0.5)
    return torch.stack([torch.stack([half, y], 1), torch.stack([1 - y, half], 1)], 1)


SCORES = torch.tensor([[1.0, 0.0], [0.5, 0.5], [2.0, 3.0]])


def test_losses_of_pairs() -> None:
    found = pair_preference(SCORES, labels(1, 0.5, 0))
    assert found.tolist() == pytest.approx([0.313262, 0, 0.313262], abs=1e-6)
    assert pair_preference(torch.tensor([[0.3, -0.4]]), labels(0.5)).item() > 0


class Weighted(Readable):
    """Three pairs whose prompts occur 1, 2 and 4 times."""

    weights = torch.tensor([1, 1 / 2, 1 / 4])

    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"scores": SCORES[row], "labels": labels(1, 0.5, 0)[row]}


def batches(rows: torch.utils.data.Dataset, columns: tuple[str, ...], *, batch: int, micro_batch: int) -> list[dict]:
    rounds = Rounds(rows, columns, batch=batch, micro_batch=micro_batch, steps=1, every=1, seed=0)
    rounds.trainer = SimpleNamespace(current_epoch=0)
    return list(rounds.train_dataloader())


@pytest.mark.parametrize("micro_batch", [3, 1])
def test_weights_are_normalised_over_the_whole_batch(micro_batch: int) -> None:
    parts = batches(Weighted(), ("scores", "labels"), batch=3, micro_batch=micro_batch)
    losses = [(part["weight"] * pair_preference(part["scores"], part["labels"])).sum() for part in parts]
    assert torch.stack(losses).mean().item() == pytest.approx(0.223758, abs=1e-6)
    by_row = {
        tuple(s.tolist()): w.item() for part in parts for s, w in zip(part["scores"], part["weight"], strict=True)
    }
    accumulation = 3 // micro_batch
    expected = {tuple(s.tolist()): accumulation * w / 7 for s, w in zip(SCORES, (4, 2, 1), strict=True)}
    assert by_row == pytest.approx(expected)


class Pairs(Readable):
    """Random pictures as the cache holds them, with weights; `pictures` of each prompt."""

    weights = torch.tensor([1, 1 / 2, 1 / 4, 1 / 4, 1, 1 / 3])

    def __init__(self, adapter: StableDiffusion, pictures: int = 2) -> None:
        self.tokens = adapter.tokenize([f"a {c} circle" for c in ("red", "green", "blue", "cyan", "purple", "yellow")])
        channels, *size = adapter.latent_shape
        generator = torch.Generator().manual_seed(0)
        self.moments = torch.randn(6, pictures, 2 * channels, *size, generator=generator).half()
        self.labels = labels(1, 0, 0.5, 0.3, 1, 0)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"moments": self.moments[row], "tokens": self.tokens[row], "labels": self.labels[row]}


COLUMNS = ("moments", "tokens", "labels")  # the text encoders of a UNet's reward model learn


def trainer(adapter: StableDiffusion, **options: object) -> LRM:
    torch.manual_seed(0)
    made = LRM(policy=Policy(adapter, Reward()), optim=AdamW(), seed=0, steps=1, batch=6, **options)
    return made.train()


def test_micro_batches_have_the_gradient_of_the_weighted_batch(adapters: dict[str, StableDiffusion]) -> None:
    """And that gradient is the literal one: every pair scored by itself, w_i = (1 / n_i) / sum of them."""
    adapter = adapters["tiny"]
    rows, step = Pairs(adapter), trainer(adapter)
    gradients = {}
    for micro_batch in (6, 2):
        parts = batches(rows, COLUMNS, batch=6, micro_batch=micro_batch)
        for part in parts:
            (step.loss(part)[0] / len(parts)).backward()
        gradients[micro_batch] = [p.grad.clone() for p in step.policy.trainable().values() if p.grad is not None]
        step.zero_grad()
    (whole,) = batches(rows, COLUMNS, batch=6, micro_batch=6)
    process, total = adapter.process, torch.zeros(())
    for i, position in enumerate(whole["position"].tolist()):
        t = process.times(20)[noise.integers([position], 20, seed=0, stream="reward/t")].expand(2)
        assert t[0] in range(1, 1000, 50)
        z, e = (noise.normal([position], (2, *adapter.latent_shape), seed=0, stream=s)[0] for s in ("vae", "reward"))
        mean, log_variance = whole["moments"][i].float().chunk(2, 1)
        z = (mean + (0.5 * log_variance).exp() * z) * adapter.vae.config.scaling_factor
        x = (
            process.alphas_cumprod[t].view(2, 1, 1, 1).sqrt() * z
            + (1 - process.alphas_cumprod[t]).view(2, 1, 1, 1).sqrt() * e
        )
        text = step.model.encode(whole["tokens"][i : i + 1])
        s = step.model(x, t, {name: part.expand(2, *part.shape[1:]) for name, part in text.items()})
        y = whole["labels"][i, 0, 1]
        p = s.softmax(0)
        entropy = sum(v * v.log() for v in (y, 1 - y) if v > 0)
        row = int((rows.tokens == whole["tokens"][i]).all(1).nonzero())
        total = total + rows.weights[row] / rows.weights.sum() * (entropy - y * p[0].log() - (1 - y) * p[1].log())
    expected = [
        g
        for g in torch.autograd.grad(total, list(step.policy.trainable().values()), allow_unused=True)
        if g is not None
    ]
    assert step.loss(whole)[0].item() == pytest.approx(total.item(), rel=1e-4)
    reference = torch.cat([g.flatten() for g in expected])
    for found in gradients.values():
        assert (torch.cat([g.flatten() for g in found]) - reference).norm() < 1e-3 * reference.norm()


@pytest.mark.parametrize(("kind", "same"), [("independent", False), ("shared", True)])
def test_pictures_of_a_pair_share_t_and_perhaps_noise(
    adapters: dict[str, StableDiffusion], kind: str, same: bool
) -> None:
    """Where both pictures have the same latent, shared noise makes a tie of them."""
    step = trainer(adapters["tiny"], noise=kind)
    (batch,) = batches(Pairs(adapters["tiny"]), COLUMNS, batch=6, micro_batch=6)
    batch["moments"] = torch.cat(
        [torch.zeros_like(batch["moments"][:, :, :4]), torch.full_like(batch["moments"][:, :, 4:], -60)], 2
    )
    seen = []
    inner = step.model.features
    step.model.features = lambda x, t, *rest: seen.extend((x, t)) or inner(x, t, *rest)
    step.loss(batch)
    x, t = seen
    assert torch.equal(t[::2], t[1::2]) and len(set(t.tolist())) > 1
    assert torch.allclose(x[::2], x[1::2], atol=1e-5) is same


def test_pair_accuracy_is_pickscores() -> None:
    found = pair_accuracy(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0], [1.0, 1.0]]), labels(1, 1, 0.5, 1))
    assert found.tolist() == [1, 0, 0.5, 0.5]
    three = pair_accuracy(
        torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[[0.5, 0.9, 0.2], [0.1, 0.5, 0.6], [0.8, 0.4, 0.5]]])
    )
    assert three.item() == pytest.approx(2 / 3)
