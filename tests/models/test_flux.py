"""FLUX against stock diffusers at toy size: text, halves, ControlNet, pictures; sizes of the published model."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import FluxControlNetModel, FluxControlNetPipeline, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from toys import flux as toy

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion import noise
from lpo_platform.hardware.sharding import parts, shard, whole
from lpo_platform.methods.cpo import CPO
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.adapter import Condition
from lpo_platform.models.export import export, restore
from lpo_platform.models.flux import Flux
from lpo_platform.models.flux_transformer import patches, picture
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.models.shared_encoder import decode, encode, features_of
from lpo_platform.models.stable_diffusion_xl import pack, unpack
from lpo_platform.models.tuning import Control, Full, Lora

PROMPTS = ["a red circle", "two small blue squares on a green ground"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.folder(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def flux(folder: Path) -> Flux:
    return toy.load(folder)


@pytest.fixture(scope="module")
def stock(folder: Path) -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def branch(flux: Flux) -> FluxControlNetModel:
    """A new ControlNet whose zero layers are not zero."""
    control = flux.load_control("", "unet")
    generator = torch.Generator().manual_seed(0)
    for name, weight in control.named_parameters():
        if "controlnet_" in name:
            torch.nn.init.normal_(weight, std=0.05, generator=generator)
    return control


def test_latents_are_packed_as_the_stock_pipeline_packs_them() -> None:
    x = torch.randn(2, 4, 6, 10)
    assert torch.equal(patches(x), FluxPipeline._pack_latents(x, 2, 4, 6, 10))
    assert torch.equal(picture(patches(x), 6, 10), x)


@torch.no_grad()
def test_text_is_the_stock_pipelines(flux: Flux, stock: FluxPipeline) -> None:
    sequence, pooled, _ = stock.encode_prompt(PROMPTS, max_sequence_length=toy.TOKENS)
    text = flux.embed(flux.tokenize(PROMPTS))
    torch.testing.assert_close(text, pack(sequence, pooled))
    assert torch.equal(flux.empty_text(), flux.embed(flux.tokenize([""])))


@torch.no_grad()
def test_latents_are_shifted_and_scaled(flux: Flux, stock: FluxPipeline) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean = stock.vae.encode(2 * pixels - 1).latent_dist.mode()
    moments = flux.encode_moments(pixels)
    latents = flux.sample_latents(moments, torch.zeros_like(mean))
    torch.testing.assert_close(latents, (mean - 0.1159) * 0.3611)
    torch.testing.assert_close(flux.decode(latents), (stock.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1))
    control = Policy(flux, Control(), flux.load_control("", "unet"))
    assert torch.equal(control.features(pixels), latents)


def stock_inputs(flux: Flux, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> dict:
    sequence, pooled = unpack(text, 20)
    height, width = (size // 2 for size in x.shape[-2:])
    return {
        "hidden_states": FluxPipeline._pack_latents(x, *x.shape),
        "encoder_hidden_states": sequence,
        "pooled_projections": pooled,
        "timestep": t / 1000,
        "guidance": torch.full((len(x),), flux.distilled_guidance),
        "img_ids": FluxPipeline._prepare_latent_image_ids(1, height, width, "cpu", torch.float32),
        "txt_ids": torch.zeros(sequence.shape[1], 3),
        "return_dict": False,
    }


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (10, 6)])
def test_halves_are_the_whole(flux: Flux, size: tuple[int, int]) -> None:
    """Also for a picture that is not square; rows of an encoding are rows; further texts ask for the same x again."""
    x, t = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0)), torch.tensor([1000.0, 3.25])
    text = flux.embed(flux.tokenize(PROMPTS))
    (tokens,) = flux.unet(**stock_inputs(flux, x, t, text))
    expected, encoded = picture(tokens, *size), encode(flux.unet, x, t, text)
    torch.testing.assert_close(decode(flux.unet, encoded), expected, atol=1e-5, rtol=1e-5)
    rows = torch.tensor([1, 1, 0])
    torch.testing.assert_close(decode(flux.unet, encoded[rows]), expected[rows], atol=1e-5, rtol=1e-5)
    both = decode(flux.unet, encode(flux.unet, x, t, torch.cat([text.flip(0), text])))
    torch.testing.assert_close(both[2:], expected, atol=1e-5, rtol=1e-5)


def test_a_controlnet_adds_what_stock_diffusers_adds(folder: Path) -> None:
    """Prediction and the ControlNet's gradient, with and without recomputed blocks."""
    flux = toy.load(folder)
    control, image = branch(flux), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1000.0, 3.25])
    text = flux.embed(flux.tokenize(PROMPTS))
    given, features = stock_inputs(flux, x, t, text), features_of(control, image, flux)
    double, single = control(controlnet_cond=FluxPipeline._pack_latents(features, *features.shape), **given)
    assert len(double) == 1 and len(single) == 2
    residuals = {"controlnet_block_samples": double, "controlnet_single_block_samples": single}
    expected = picture(flux.unet(**given, **residuals)[0], 8, 8)
    policy = Policy(flux, Control(), control)
    learning = list(policy.trainable().values())
    stock = torch.autograd.grad(expected.square().sum(), learning)
    for recomputed in (False, True):
        if recomputed:
            control.enable_gradient_checkpointing()
            flux.unet.enable_gradient_checkpointing()
        predicted = policy.predict(x, t, Condition(text, image))
        torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=1e-5)
        ours = torch.autograd.grad(predicted.square().sum(), learning)
        for one, other in zip(ours, stock, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_cpo_compares_flow_matching_errors(folder: Path) -> None:
    """The loss from stock forwards, one for each of winner and loser, policy and reference; every t counts."""
    flux = toy.load(folder)
    policy = Policy(flux, Control(), branch(flux))
    step = CPO(policy=policy, optim=AdamW(), seed=0, steps=1, batch=2, beta=500.0, margin=0.06, share_timestep=True)
    before = copy.deepcopy(policy.control)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    images = torch.rand(3, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    text, moments = flux.embed(flux.tokenize(PROMPTS)).detach(), flux.encode_moments(images[0])
    batch = {"position": torch.arange(2), "moments": moments, "text": text, "control": images[1], "loser": images[2]}
    z, e, t = step.latents(batch), step.normal(batch, "pair"), step.times(batch, "pair")
    s = (t / 1000).view(-1, 1, 1, 1)
    given, errors = stock_inputs(flux, (1 - s) * z + s * e, t, text), []
    for control in (policy.control, before):
        for image in images[1:]:
            condition = features_of(control, image, flux)
            double, single = control(controlnet_cond=FluxPipeline._pack_latents(condition, *condition.shape), **given)
            residuals = {"controlnet_block_samples": double, "controlnet_single_block_samples": single}
            v = picture(flux.unet(**given, **residuals)[0], 8, 8)
            errors.append((v - (e - z)).square().mean((1, 2, 3)))
    winner, loser, reference_winner, reference_loser = errors
    d = winner - loser
    weight = torch.sigmoid(250 * (d - (reference_winner - reference_loser))).detach()
    expected = (weight * (d + 0.06).clamp_min(0)).mean() + 0.3 * winner.mean()
    step.pretrain_weight = 0.3
    torch.testing.assert_close(step.loss(batch)[0], expected, atol=1e-5, rtol=1e-4)
    assert t.dtype == torch.float32 and (d.abs() > 1e-5).all()


def test_a_new_controlnet_changes_nothing(flux: Flux) -> None:
    control = flux.load_control("", "unet")
    state = flux.unet.state_dict()
    assert not control.controlnet_x_embedder.weight.any()
    assert all(torch.equal(weight, state[name]) for name, weight in control.state_dict().items() if name in state)
    x, t, image = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 30.0]), torch.rand(2, 3, 64, 64)
    text = flux.embed(flux.tokenize(PROMPTS)).detach()
    with torch.no_grad():
        found = Policy(flux, Control(), control).predict(x, t, Condition(text, image))
        assert torch.equal(found, decode(flux.unet, encode(flux.unet, x, t, text)))


def test_the_stock_pipeline_repeats_our_sampling_from_the_export(folder: Path, tmp_path: Path) -> None:
    """FluxControlNetPipeline with the exported ControlNet: the same latents from the same noise."""
    flux = toy.load(folder)
    policy = Policy(flux, Control(), branch(flux))
    export(policy, tmp_path)
    pipeline = FluxControlNetPipeline.from_pretrained(
        folder, controlnet=FluxControlNetModel.from_pretrained(tmp_path / "controlnet")
    )
    pipeline.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    condition = Condition(flux.embed(flux.tokenize(PROMPTS[:1])).detach(), image)
    ours = sample_latents(policy, condition, ["one"], Sampling(4), seed=0, stream="test")
    start = noise.normal(["one"], flux.latent_shape, seed=0, stream="test")
    tokens = pipeline(
        PROMPTS[0], control_image=2 * image - 1, latents=patches(start), num_inference_steps=4, guidance_scale=3.5,
        height=64, width=64, max_sequence_length=toy.TOKENS, output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(ours, picture(tokens, 8, 8), atol=1e-4, rtol=1e-4)
    other = toy.load(folder, distilled_guidance=1.0)
    told = sample_latents(
        Policy(other, Control(), branch(other)), condition, ["one"], Sampling(4), seed=0, stream="test"
    )
    assert (told - ours).abs().max() > 1e-3 and other.fingerprint != flux.fingerprint


def test_stock_diffusers_reads_the_exported_adapters(folder: Path, stock: FluxPipeline, tmp_path: Path) -> None:
    """FluxPipeline.load_lora_weights gives the trained policy's output; so do restore() and model.lora."""
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([900.0, 3.25])
    policy = Policy(toy.load(folder), Lora(rank=2, alpha=4.0))
    policy.freeze_reference()
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
        given = stock_inputs(policy.adapter, x, t, condition.text)
        tokens = stock.transformer(**given)[0]
        stock.unload_lora_weights()
    torch.testing.assert_close(picture(tokens, 8, 8), expected, atol=1e-5, rtol=1e-4)


def test_the_parts_that_learn_are_exported_under_the_pipelines_names(folder: Path, tmp_path: Path) -> None:
    written = export(Policy(toy.load(folder), Full(text_encoder=True)), tmp_path)
    assert [path.name for path in written] == ["transformer", "text_encoder_2"]
    FluxTransformer2DModel.from_pretrained(tmp_path / "transformer")


def test_a_part_from_elsewhere_and_what_cannot_be(flux: Flux, folder: Path, tmp_path: Path) -> None:
    changed = toy.transformer()
    changed.save_pretrained(tmp_path / "other")
    other = toy.load(folder, transformer=f"{tmp_path}::other")
    assert torch.equal(other.unet.proj_out.weight, changed.proj_out.weight) and other.fingerprint != flux.fingerprint
    with pytest.raises(UserError, match=r"^model\.resolution=72: FLUX needs a multiple of 16$"):
        toy.load(folder, resolution=72)
    union = FluxControlNetModel.from_config({**flux.unet.config, "num_mode": 2, "num_layers": 1})
    union.save_pretrained(tmp_path / "union")
    with pytest.raises(UserError, match=r"^control\.weights=.*union: config.json: num_mode=2: a union ControlNet"):
        flux.load_control("", str(tmp_path / "union"))


def test_sharded_parts_compute_and_export_what_whole_ones_do(folder: Path, tmp_path: Path) -> None:
    """hardware=fsdp on one process: prediction, gradient, reference, export."""
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([900.0, 3.25])
    image, found = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), []
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for sharded in (False, True):
            flux = toy.load(folder)
            policy = Policy(flux, Control(), branch(flux))
            policy.freeze_reference()
            if sharded:
                shard(policy, "cpu")
            condition = Condition(flux.embed(flux.tokenize(PROMPTS)).detach(), image)
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


@pytest.fixture(scope="module")
def dev() -> tuple[FluxTransformer2DModel, FluxControlNetModel]:
    """FLUX.1-dev's transformer and a ControlNet of 4 double and 4 single blocks, without a byte of weights."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=19, num_single_layers=38, guidance_embeds=True)
        return transformer, FluxControlNetModel.from_transformer(transformer, 4, 4, load_weights_from_transformer=False)


def test_published_sizes(dev: tuple[FluxTransformer2DModel, FluxControlNetModel]) -> None:
    """11.90 billion weights, and per block of the ControlNet what a block of the transformer has plus a zero layer."""
    transformer, control = dev
    count = lambda module: sum(weight.numel() for weight in module.parameters())  # noqa: E731
    assert count(transformer) == 11_901_408_320
    width = 3072
    zero, embedder = width * width + width, 64 * width + width
    blocks = 4 * count(transformer.transformer_blocks[0]) + 4 * count(transformer.single_transformer_blocks[0])
    around = sum(count(part) for part in (transformer.time_text_embed, transformer.context_embedder))
    assert count(control) == blocks + around + 8 * zero + 2 * embedder
    names = control.state_dict().keys()
    assert {name.split(".")[1] for name in names if name.startswith("controlnet_single_blocks")} == set("0123")
    assert {"controlnet_x_embedder.weight", "transformer_blocks.3.attn.add_q_proj.weight"} <= names


def test_every_weight_is_sharded_once(dev: tuple[FluxTransformer2DModel, FluxControlNetModel]) -> None:
    """FSDP2's units are the blocks and the layers around them, as for UNets."""
    for model in dev:
        sharded = [weight for part in parts(model) for weight in part.parameters()]
        assert {id(weight) for weight in sharded} == {id(weight) for weight in model.parameters()}
        assert len(sharded) == len(list(model.parameters()))
        blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
        assert all(any(part is block for part in parts(model)) for block in blocks)
