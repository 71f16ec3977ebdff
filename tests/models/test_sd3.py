"""Stable Diffusion 3 against stock diffusers at toy size: text, halves, ControlNets, pictures; published sizes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import (
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from toys import flux as toy_flux
from toys import sd3 as toy
from toys.instances import first

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion import noise
from lpo_platform.hardware.sharding import parts, shard, whole
from lpo_platform.models.adapter import Condition
from lpo_platform.models.control import ControlNet, ControlNetDino
from lpo_platform.models.controlnet_dino import KINDS as DINO
from lpo_platform.models.export import export, restore
from lpo_platform.models.lora import from_kohya
from lpo_platform.models.policy import Policy
from lpo_platform.models.random_sd3 import SD3, SD35L, SD35M, RandomStableDiffusion3, SD3Shape
from lpo_platform.models.random_weights import ZERO
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.models.sd3_transformer import plus
from lpo_platform.models.shared_encoder import decode, encode, features_of, residuals_of
from lpo_platform.models.stable_diffusion_3 import StableDiffusion3
from lpo_platform.models.stable_diffusion_xl import pack, unpack
from lpo_platform.models.tuning import Control, Full, Lora

PROMPTS = ["a red circle", "two small blue squares on a green ground"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.folder(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def model(folder: Path) -> StableDiffusion3:
    return toy.load(folder)


@pytest.fixture(scope="module")
def stock(folder: Path) -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


KINDS = {
    "new": {"num_layers": 2},
    "InstantX": {"num_layers": 1, "force_zeros_for_pooled_projection": True},
    "tensorart": {"num_layers": 2, "force_zeros_for_pooled_projection": False},
    "Stability": {
        "num_layers": 2, "force_zeros_for_pooled_projection": False, "use_pos_embed": False, "pos_embed_type": None,
        "joint_attention_dim": None, "dual_attention_layers": (), "qk_norm": None,
    },
}  # fmt: skip


def branch(model: StableDiffusion3, kind: str = "new") -> SD3ControlNetModel:
    """A ControlNet of one of the published kinds whose zero layers are not zero."""
    config = {key: value for key, value in model.unet.config.items() if not key.startswith("_")}
    torch.manual_seed(3)
    control = SD3ControlNetModel(**config | KINDS[kind]).eval()
    for name, weight in control.named_parameters():
        if name.startswith(ZERO):
            nn.init.normal_(weight, std=0.05)
    return control


@torch.no_grad()
def test_text_is_the_stock_pipelines(model: StableDiffusion3, stock: StableDiffusion3Pipeline) -> None:
    sequence, empty, pooled, empty_pooled = stock.encode_prompt(
        PROMPTS, None, None, max_sequence_length=toy.TOKENS, negative_prompt=[""] * 2
    )
    torch.testing.assert_close(model.embed(model.tokenize(PROMPTS)), pack(sequence, pooled))
    torch.testing.assert_close(model.empty_text(), pack(empty, empty_pooled)[:1])
    assert model.text_encoder.config.model_type == "t5" and len(model.text_encoders) == 3


@torch.no_grad()
def test_without_t5_its_rows_are_zeros(model: StableDiffusion3, folder: Path, tmp_path: Path) -> None:
    """By the setting, and where the folder has none; the text stays as long as it was."""
    text, without = model.embed(model.tokenize(PROMPTS)), toy.load(folder, t5=False)
    found, length = without.embed(without.tokenize(PROMPTS)), model.tokenizer.model_max_length
    expected = text.clone()
    expected[:, length : length + toy.TOKENS] = 0
    assert torch.equal(found, expected) and without.fingerprint != model.fingerprint
    none = toy.load(toy.folder(tmp_path, t5=False))
    assert not none.t5 and none.folders["text_encoder"] == "text_encoder" and len(none.text_encoders) == 2
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None)
    sequence, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, max_sequence_length=toy.TOKENS)
    torch.testing.assert_close(none.embed(none.tokenize(PROMPTS)), pack(sequence, pooled))


@contextmanager
def in_double(*modules: nn.Module) -> Iterator[None]:
    for module in modules:
        module.double()
    try:
        yield
    finally:
        for module in modules:
            module.float()


def inputs(x: Tensor, t: Tensor, text: Tensor) -> dict[str, object]:
    sequence, pooled = unpack(text, toy.POOLED)
    given = {"hidden_states": x, "encoder_hidden_states": sequence, "pooled_projections": pooled, "timestep": t}
    return given | {"return_dict": False}


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (10, 6)])
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_halves_are_the_whole(model: StableDiffusion3, kind: str | None, size: tuple[int, int]) -> None:
    """To rounding in float64, with every published kind of ControlNet; rows of an encoding are rows."""
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 4, *size, generator=generator).double(), torch.tensor([1000.0, 3.25])
    condition = torch.randn(2, 4, *size, generator=generator).double()
    text = model.embed(model.tokenize(PROMPTS)).double()
    control = None if kind is None else branch(model, kind)
    with in_double(model.unet, *([] if control is None else [control])):
        given, residuals = inputs(x, t, text), None
        if control is not None:
            config, of_control = control.config, dict(given)
            if config.force_zeros_for_pooled_projection:
                of_control["pooled_projections"] = torch.zeros_like(given["pooled_projections"])
            if config.joint_attention_dim is None:
                of_control["encoder_hidden_states"] = None
            if not config.use_pos_embed:
                of_control["hidden_states"] = model.unet.pos_embed(x)
            (theirs,) = control(controlnet_cond=condition, **of_control)
            residuals = residuals_of(control, encode(model.unet, x, t, text), condition)
            assert all((a - b).abs().max() < 1e-12 for a, b in zip(residuals, theirs, strict=True))
            given["block_controlnet_hidden_states"] = theirs
        (expected,) = model.unet(**given)
        encoded = encode(model.unet, x, t, text)
        assert (decode(model.unet, encoded, residuals) - expected).abs().max() < 1e-12
        if control is not None:
            assert (decode(model.unet, encoded) - expected).abs().max() > 1e-3
            nothing = [torch.zeros_like(part) for part in residuals]
            assert torch.equal(decode(model.unet, encoded, nothing), decode(model.unet, encoded))
        else:
            one = decode(model.unet, encoded[torch.tensor([1])])
            assert (one - expected[1:]).abs().max() < 1e-12
            both = encode(model.unet, x, t, torch.cat([text, text.flip(0)]))
            assert (decode(model.unet, both)[:2] - expected).abs().max() < 1e-12 and len(both.x) == 4


@pytest.mark.parametrize("blocks", [24, 38, 18])
def test_residuals_serve_the_blocks_that_they_serve_in_diffusers(blocks: int) -> None:
    """Fewer residuals than blocks, as a quotient of floats."""
    for count in (5, 6, 12, 14, 19, 23):
        if count >= blocks:
            continue
        residuals = [torch.full((1,), float(i)) for i in range(count)]
        found = [int(plus(torch.zeros(1), residuals, i, blocks)) for i in range(blocks - 1)]
        assert found == [int(i / (blocks / count)) for i in range(blocks - 1)]
        times = [found.count(i) for i in range(count)]
        if (blocks, count) == (38, 12):
            assert times == [4, 3, 3, 3, 3, 3, 4, 3, 3, 3, 3, 2]
        if (blocks, count) == (24, 5):
            assert times == [5, 5, 5, 5, 3]
        if (blocks, count) == (24, 6):
            assert times == [4, 4, 4, 4, 4, 3]
        if (blocks, count) == (24, 23):
            assert found == [0, 0, *range(1, 22)]
        if (blocks, count) in ((38, 19), (24, 12)):
            assert times == [2] * (count - 1) + [1]


def test_a_control_policy_has_the_stock_gradient(folder: Path) -> None:
    """Of every weight that learns, so that no process waits for one; also where blocks are computed again."""
    model = toy.load(folder)
    control = branch(model)
    policy = Policy(model, Control(), control)
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([900.0, 3.25])
    image, text = torch.rand(2, 3, 64, 64), model.embed(model.tokenize(PROMPTS)).detach()
    given, of_control = inputs(x, t, text), inputs(x, t, text)
    of_control["pooled_projections"] = torch.zeros_like(given["pooled_projections"])
    (residuals,) = control(controlnet_cond=features_of(control, image, model), **of_control)
    (expected,) = model.unet(**given, block_controlnet_hidden_states=residuals)
    learning = list(policy.trainable().values())
    stock = torch.autograd.grad(expected.square().sum(), learning)
    for recomputed in (False, True):
        if recomputed:
            control.enable_gradient_checkpointing()
            model.unet.enable_gradient_checkpointing()
        predicted = policy.predict(x, t, Condition(text, image))
        torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=1e-5)
        ours = torch.autograd.grad(predicted.square().sum(), learning)
        for one, other in zip(ours, stock, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_new_controlnet_changes_nothing(model: StableDiffusion3) -> None:
    """Neither what is drawn nor the transformer's configuration, into which diffusers' own maker writes."""
    before = dict(model.unet.config)
    control = model.load_control("", "unet")
    assert dict(model.unet.config) == before and control.config.num_layers == 2
    state = model.unet.state_dict()
    assert not control.pos_embed_input.proj.weight.any()
    assert all(torch.equal(weight, state[name]) for name, weight in control.state_dict().items() if name in state)
    x, t, image = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 30.0]), torch.rand(2, 3, 64, 64)
    text = model.embed(model.tokenize(PROMPTS)).detach()
    with torch.no_grad():
        found = Policy(model, Control(), control).predict(x, t, Condition(text, image))
        assert torch.equal(found, decode(model.unet, encode(model.unet, x, t, text)))
    model.control_layers, kept = 3, model.control_layers
    with pytest.raises(UserError, match=r"^model\.control_layers=3: what works: 1 to 2$"):
        model.load_control("", "unet")
    model.control_layers = kept


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", first([None, *KINDS], keep=2))
def test_the_stock_pipeline_repeats_our_sampling_from_the_export(
    folder: Path, tmp_path: Path, kind: str | None, guidance: float
) -> None:
    """The same latents from the same noise, with each published kind of ControlNet, with and without guidance."""
    model = toy.load(folder, guidance=guidance)
    image = None if kind is None else torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    policy = Policy(model, Full()) if kind is None else Policy(model, Control(), branch(model, kind))
    (written,) = export(policy, tmp_path)
    if kind is None:
        transformer = SD3Transformer2DModel.from_pretrained(written)
        pipeline = StableDiffusion3Pipeline.from_pretrained(folder, transformer=transformer)
    else:
        control = SD3ControlNetModel.from_pretrained(written)
        pipeline = StableDiffusion3ControlNetPipeline.from_pretrained(folder, controlnet=control)
    pipeline.set_progress_bar_config(disable=True)
    condition = Condition(model.embed(model.tokenize(PROMPTS[:1])).detach(), image)
    ours = sample_latents(policy, condition, ["one"], Sampling(4, guidance), seed=0, stream="test")
    start = noise.normal(["one"], model.latent_shape, seed=0, stream="test")
    given = model.stock_call(start) | ({} if image is None else model.stock_control(pipeline, image))
    found = pipeline(
        PROMPTS[0], num_inference_steps=4, height=64, width=64, output_type="latent", **given
    ).images  # fmt: skip
    torch.testing.assert_close(ours, found, atol=1e-4, rtol=1e-4)


def test_stock_diffusers_reads_the_exported_adapters(
    folder: Path, stock: StableDiffusion3Pipeline, tmp_path: Path
) -> None:
    """load_lora_weights gives the trained policy's output; so do restore() and model.lora."""
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([900.0, 3.25])
    policy = Policy(toy.load(folder), Lora(rank=2, alpha=4.0))
    policy.freeze_reference()
    names = {name.partition(".lora_")[0] for name in policy.trainable()}
    assert len(names) == 8 * 3 - 1 and all(".attn." in name for name in names)  # the last block hands no text on
    condition = Condition(policy.adapter.embed(policy.adapter.tokenize(PROMPTS)).detach())
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        expected = policy.predict(x, t, condition)
        with policy.reference():
            assert (policy.predict(x, t, condition) - expected).abs().max() > 1e-3
        (written,) = export(policy, tmp_path)
        again = Policy(toy.load(folder), Lora(rank=2, alpha=4.0))
        restore(again, tmp_path)
        merged = Policy(toy.load(folder, lora=str(written)), Full())
        for found in (again, merged):
            torch.testing.assert_close(found.predict(x, t, condition), expected, atol=1e-5, rtol=1e-4)
        stock.load_lora_weights(written)
        found = stock.transformer(**inputs(x, t, condition.text))[0]
        stock.unload_lora_weights()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_kohya_file_is_refused_since_diffusers_does_not_translate_it(stock: StableDiffusion3Pipeline) -> None:
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    state = {f"{name}.lora_down.weight": torch.ones(2, 32), f"{name}.lora_up.weight": torch.ones(96, 2)}
    state |= {f"{name}.alpha": torch.tensor(2.0)}
    assert stock.lora_state_dict(dict(state)).keys() == state.keys()
    with pytest.raises(UserError, match=r"^model\.lora=x: diffusers cannot read this layout for Stable Diffusion 3"):
        from_kohya(state, stock.transformer, setting="model.lora=x", part="transformer")


def test_what_does_not_belong_together_is_refused(folder: Path, model: StableDiffusion3, tmp_path: Path) -> None:
    toy.transformer(joint_attention_dim=48).save_pretrained(tmp_path / "narrow")
    with pytest.raises(UserError, match=r"joint_attention_dim=48, and both CLIP encoders have 56"):
        toy.load(folder, transformer=str(tmp_path / "narrow"))
    toy.transformer(pooled_projection_dim=20).save_pretrained(tmp_path / "pooled")
    with pytest.raises(UserError, match=r"pooled_projection_dim=20, and both CLIP encoders project to 22"):
        toy.load(folder, transformer=str(tmp_path / "pooled"))
    with pytest.raises(UserError, match=r"^model\.resolution=112: model=toy has places for at most 96 pixels"):
        toy.load(folder, resolution=112)
    with pytest.raises(UserError, match=r"^model\.resolution=72: model=toy needs a multiple of 16"):
        toy.load(folder, resolution=72)
    config = {key: value for key, value in model.unet.config.items() if not key.startswith("_")}
    wrong = {"mask": ({"extra_conditioning_channels": 1}, "an inpainting"), "deep": ({"num_layers": 4}, "num_layers=4")}
    wrong["wide"] = {"num_attention_heads": 4, "caption_projection_dim": 64}, "num_attention_heads=4"
    for name, (changes, message) in wrong.items():
        SD3ControlNetModel(**config | {"num_layers": 1} | changes).save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match=rf"control\.weights=.*{name}.*{message}"):
            model.load_control("", str(tmp_path / name))


def test_sharded_parts_compute_what_whole_ones_do(folder: Path, tmp_path: Path) -> None:
    """hardware=fsdp on one process: prediction, gradient, reference, export."""
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([900.0, 3.25])
    found = []
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for sharded in (False, True):
            model = toy.load(folder)
            policy = Policy(model, Full())
            policy.freeze_reference()
            if sharded:
                shard(policy, "cpu")
            condition = Condition(model.embed(model.tokenize(PROMPTS)).detach())
            output = policy.predict(x, t, condition)
            output.square().mean().backward()
            with policy.reference():
                reference = policy.predict(x, t, condition)
            (written,) = export(policy, tmp_path, "_sharded" if sharded else "")
            kept = load_file(written / "diffusion_pytorch_model.safetensors")
            gradients = [whole(weight.grad) for weight in policy.trainable().values()]
            found.append([output, reference, *gradients, *kept.values()])
    finally:
        dist.destroy_process_group()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


SIZES = {
    "sd3": (SD3, 2_028_328_000, 56_623_104, {6: 538_805_760, 12: 1_062_855_168}),
    "sd35m": (SD35M, 2_243_171_520, 226_492_416, {12: 1_261_169_664, 23: 2_238_455_680}),
    "sd35l": (SD35L, 8_056_627_520, 89_653_248, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str) -> None:
    """The classes at full size without a byte of weights: transformer, table of places, ControlNets, text, LoRA."""
    shape, weights, table, controls = SIZES[name]
    model = RandomStableDiffusion3(shape, device="meta")
    assert count(model.unet) == weights and model.unet.pos_embed.pos_embed.numel() == table
    assert model.latent_shape == (16, 128, 128)
    assert (count(model.clip), count(model.clip_2)) == (123_650_304, 694_659_840)
    assert count(model.text_encoder) == 4_762_310_656 and count(model.vae) == 83_819_683
    assert model.embed(model.any_tokens(1)).shape == (1, 77 + 256 + 1, 4096)
    for layers, expected in controls.items():
        model.control_layers = layers
        with torch.device("meta"):
            control = model.load_control("", "unet")
        assert count(control) == expected
        assert {id(w) for part in parts(control) for w in part.parameters()} == {id(w) for w in control.parameters()}
    if name == "sd3":
        learning = Policy(model, Lora(rank=32, alpha=64)).trainable().values()
        assert len(learning) == 2 * 191 and sum(weight.numel() for weight in learning) == 18_776_064


def test_the_control_nets_of_stability_have_the_published_size() -> None:
    """Nineteen blocks of the picture alone, at the width of 3.5-large."""
    large = RandomStableDiffusion3(SD35L, device="meta").unet.config
    config = {key: value for key, value in large.items() if not key.startswith("_")}
    alone = {name: value for name, value in KINDS["Stability"].items() if name != "num_layers"}
    with torch.device("meta"):
        assert count(SD3ControlNetModel(**config | alone | {"num_layers": 19})) == 2_153_518_976


def test_a_shape_without_t5() -> None:
    shape: SD3Shape = replace(SD3, t5=False)
    model = RandomStableDiffusion3(shape, device="meta")
    assert model.embed(model.any_tokens(2)).shape == (2, 77 + 256 + 1, 4096)


@torch.no_grad()
def test_conditions_without_pooled_text_are_latents_without_shift(model: StableDiffusion3) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean = model.vae.encode(2 * pixels - 1).latent_dist.mode()
    for kind, shift in (("InstantX", 0.0), ("tensorart", 0.0609)):
        found = Policy(model, Control(), branch(model, kind)).features(pixels)
        torch.testing.assert_close(found, (mean - shift) * 1.5305)
    decoded = (model.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.decode((mean - 0.0609) * 1.5305), decoded)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_controlnet_of_a_transformer_reads_through_dino(kind: str, folder: Path, tmp_path: Path) -> None:
    """It starts as the plain one, learns through the features, and comes back from its folder."""
    made = toy.load(folder) if kind == "sd3" else toy_flux.load(toy_flux.folder(tmp_path / "flux"))
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([900.0, 3.25])
    condition = Condition(made.embed(made.tokenize(PROMPTS)).detach(), torch.rand(2, 3, 64, 64))
    torch.manual_seed(3)
    plain = made.load_control("", "unet")
    for name, weight in plain.named_parameters():
        if name.startswith(ZERO):
            nn.init.normal_(weight, std=0.05)
    control = DINO[type(plain)].from_controlnet(plain, adapter_size="tiny")
    control.register_to_config(resize="bicubic")
    policy = Policy(made, Control(), control)
    assert policy.learns_features and not Policy(made, Control(), plain).learns_features
    with torch.no_grad():
        expected = Policy(made, Control(), plain).predict(x, t, condition)
    torch.testing.assert_close(policy.predict(x, t, condition).detach(), expected, atol=1e-6, rtol=1e-5)
    nn.init.normal_(control.dino.conv_out.weight, std=0.05)
    output = policy.predict(x, t, condition)
    assert (output - expected).abs().max() > 1e-3
    output.square().mean().backward()
    assert control.dino.model.embeddings.patch_embeddings.projection.weight.grad.abs().max() > 0
    (written,) = export(policy, tmp_path)
    again = ControlNetDino(str(written)).load(made, "canny")
    assert type(again) is type(control) and again.config.adapter_size == "tiny"
    with torch.no_grad():
        torch.testing.assert_close(Policy(made, Control(), again).predict(x, t, condition), output)
    with pytest.raises(UserError, match=r"a ControlNet with DINO; use control=controlnet_dino"):
        ControlNet(str(written)).load(made, "canny")
    guided = policy.predict(x, t, condition, guidance=2.0, empty=made.empty_text().detach())
    assert guided.shape == x.shape
