"""control=controlnet_dino: the architecture against the specification, its start, its files, what it shares."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import policy as toy_policy
from toys import size as toy_size
from toys.stable_diffusion import SETTINGS, stable_diffusion_xl
from transformers import Dinov2Model

from lpo_platform.config.errors import UserError
from lpo_platform.config.options import offered
from lpo_platform.config.signature import attribute
from lpo_platform.data.prepared import conditions
from lpo_platform.data.prepared.conditions import from_uint8
from lpo_platform.data.source import Sample
from lpo_platform.diffusion import noise
from lpo_platform.diffusion.rollout import rollout
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.methods.cpo import CPO
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.adapter import Condition
from lpo_platform.models.control import ControlNet, ControlNetDino
from lpo_platform.models.controlnet_dino import ControlNetDinoModel, as_published, config_of, spelled
from lpo_platform.models.export import export, restore
from lpo_platform.models.policy import Policy
from lpo_platform.models.random_weights import SD15, RandomStableDiffusion
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_xl import StableDiffusionXL
from lpo_platform.models.tuning import Control
from lpo_platform.models.weights import ASSETS
from lpo_platform.tasks.canny import Canny

TINY = {"name": "tiny", "weights": "tiny", "toy": True, "resolution": 64, "guidance": 1.0, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def tiny() -> StableDiffusion:
    return StableDiffusion(**TINY, controls={"canny": "tiny/controlnet_canny"})


def branch(*, resize: str = "bicubic", silent: bool = False) -> ControlNetDinoModel:
    """On toy_size.unet(); a silent one has its last layer at zero, as at the start."""
    control = toy_size.controlnet_dino(toy_size.unet(), resize=resize)
    if silent:
        torch.nn.init.zeros_(control.dino.conv_out.weight)
    return control


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def outputs(control: ControlNetModel) -> list[Tensor]:
    x, t, text, image = toy_size.inputs()
    with torch.no_grad():
        down, middle = control(x, t, text, image, return_dict=False)
    return [*down, middle]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_it_starts_as_the_plain_controlnet_bit_for_bit() -> None:
    """DINO starts without effect, and two starts are one."""
    assert same(outputs(branch(silent=True)), outputs(toy_size.controlnet(toy_size.unet())))
    assert not same(outputs(branch()), outputs(branch(silent=True)))
    assert same(outputs(branch()), outputs(branch()))


def test_full_size_is_that_of_the_specification() -> None:
    """22,056,576 + 123,200 weights more, 896 px inside, (B, 320, 64, 64) outside."""
    model = RandomStableDiffusion(SD15, device="meta")
    with torch.device("meta"):
        plain = model.new_control()
        control = ControlNetDinoModel.from_config({**plain.config, "adapter_size": "small"})
    assert count(control.dino.model) == 22_056_576 and count(control.dino.conv_out) == 123_200
    assert count(control) == count(plain) + 22_056_576 + 123_200
    assert set(control.state_dict()) - set(plain.state_dict()) == {f"dino.{k}" for k in control.dino.state_dict()}
    seen = []
    control.dino.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    assert control.controlnet_cond_embedding(torch.rand(1, 3, 512, 512, device="meta")).shape == (1, 320, 64, 64)
    assert seen == [(1, 3, 896, 896)]


@pytest.mark.parametrize("size, millions", [("base", 86.58), ("large", 304.37), ("giant", 1136.48)])
def test_the_other_sizes_are_metas(size: str, millions: float) -> None:
    """Counts of the published DINOv2 models."""
    with torch.device("meta"):
        assert count(Dinov2Model(config_of(size))) / 1e6 == pytest.approx(millions, abs=0.01)


def test_a_place_is_added_what_dinov2_says_of_its_patch() -> None:
    """At 32 px and a patch of 4 nothing is resized. Token 1 + 8 i + j belongs to latent (i, j), the first to none."""
    control, (*_, image) = branch(), toy_size.inputs()
    plain = toy_size.controlnet(toy_size.unet())
    with torch.no_grad():
        added = control.controlnet_cond_embedding(image) - plain.controlnet_cond_embedding(image)
        tokens = control.dino.conv_out(control.dino.model(2 * image - 1).last_hidden_state)
    for i, j in ((0, 0), (2, 5), (7, 7)):
        torch.testing.assert_close(added[:, :, i, j], tokens[:, 1 + 8 * i + j], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("resize", ["nearest", "bicubic"])
def test_conditions_are_resized_to_a_patch_for_each_latent(resize: str) -> None:
    """6 pixels onto 4 patches of 4: aligned at the corners, every third of the 16 is one of the 6, and a cubic
    overshoots beside a step; nearest makes no new value."""
    control, seen, step = branch(resize=resize), [], torch.tensor([0.0, 0, 0, 1, 1, 1])
    control.dino.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    control.dino(step.expand(1, 3, 6, 6), torch.zeros(1, 16, 4, 4), control.config.resize)
    row = (seen[0][0, 0, 7] + 1) / 2
    if resize == "nearest":
        assert row.tolist() == [0.0] * 8 + [1.0] * 8
    else:
        torch.testing.assert_close(row[::3], step)
        assert row.min() < -0.05 and row.max() > 1.05


# The option


def test_a_run_starts_from_a_plain_controlnet_and_the_tasks_resizing(tiny: StableDiffusion) -> None:
    control = ControlNetDino().load(tiny, "canny", nearest=True)
    assert (control.config.adapter_size, control.config.resize) == ("tiny", "nearest")
    image, x = torch.rand(1, 3, 64, 64), torch.randn(1, *tiny.latent_shape)
    inputs = (x, torch.tensor([500]), tiny.embed(tiny.tokenize(["a red circle"])), image)
    ours, plain = (c(*inputs, return_dict=False)[1] for c in (control, ControlNet().load(tiny, "canny")))
    assert torch.equal(ours, plain)
    assert ControlNetDino(weights="unet").load(tiny, "hed").config.resize == "bicubic"
    assert ControlNetDino(weights="unet", dino_nearest=True).load(tiny, "hed").config.resize == "nearest"
    by_nearest = {name for name, target in offered("task") if target and attribute(target, "nearest")}
    assert by_nearest == {"canny", "seg_ade20k", "seg_coco"}


def test_it_goes_with_sdxl(tmp_path: Path) -> None:
    xl = StableDiffusionXL(weights=str(stable_diffusion_xl(tmp_path)), **SETTINGS)
    torch.manual_seed(0)
    plain = ControlNet(weights="unet").load(xl, "hed")
    for layer in plain.controlnet_down_blocks:
        torch.nn.init.normal_(layer.weight)
    plain.save_pretrained(tmp_path / "controlnet")
    control = ControlNetDino(weights=str(tmp_path / "controlnet"), dino="tiny").load(xl, "hed")
    x, t, image = torch.randn(1, *xl.latent_shape), torch.tensor([300]), torch.rand(1, 3, 64, 64)
    condition = Condition(xl.embed(xl.tokenize(["a red circle"])), image)
    with torch.no_grad():
        ours, theirs = (Policy(xl, Control(), branch).predict(x, t, condition) for branch in (control, plain))
        assert torch.equal(ours, theirs)
        torch.nn.init.normal_(control.dino.conv_out.weight)
        assert not torch.allclose(Policy(xl, Control(), control).predict(x, t, condition), theirs)


def test_dinov2_comes_from_a_folder(tiny: StableDiffusion, tmp_path: Path) -> None:
    """In the names of transformers 4, as on the hub."""
    torch.manual_seed(7)
    dino = Dinov2Model(config_of("tiny"))
    dino.save_pretrained(tmp_path / "dino")
    assert any("attention.attention.query" in name for name in load_file(tmp_path / "dino" / "model.safetensors"))
    control = ControlNetDino(weights="unet", dino=str(tmp_path / "dino")).load(tiny, "hed")
    assert all(torch.equal(value, dino.state_dict()[name]) for name, value in control.dino.model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dino": "nowhere/at/all"}, "control.dino=nowhere/at/all: no such folder"),
        ({"dino": "{other}"}, "a clip_text_model, not a DINOv2"),
        ({"dino": "{other}", "pretrained": False}, "with control.pretrained=false: name a size, one of tiny, small"),
    ],
)
def test_what_is_no_dinov2_is_refused(tiny: StableDiffusion, options: dict, message: str) -> None:
    options = {k: v.format(other=ASSETS / "tiny" / "text_encoder") if k == "dino" else v for k, v in options.items()}
    with pytest.raises(UserError, match=message):
        ControlNetDino(weights="unet", **options).load(tiny, "canny")


def test_a_controlnet_with_dino_is_not_taken_for_a_plain_one(tiny: StableDiffusion, tmp_path: Path) -> None:
    ControlNetDino().load(tiny, "canny").save_pretrained(tmp_path / "dino")
    with pytest.raises(UserError, match="use control=controlnet_dino"):
        ControlNet(weights=str(tmp_path / "dino")).load(tiny, "canny")


# Files


@pytest.fixture
def published(tiny: StableDiffusion, tmp_path: Path) -> Path:
    """A ControlNet with DINO as its authors save it: no resize mode, another class, the names of transformers 4."""
    control = ControlNetDino().load(tiny, "canny")
    torch.nn.init.normal_(control.dino.conv_out.weight)
    control.save_pretrained(tmp_path / "published")
    file = tmp_path / "published" / "config.json"
    config = json.loads(file.read_text())
    del config["resize"]
    file.write_text(json.dumps(config | {"_class_name": "ControlNetModel"}))
    return tmp_path / "published"


def test_published_layout_is_read_and_written(tiny: StableDiffusion, published: Path, tmp_path: Path) -> None:
    names = set(load_file(published / "diffusion_pytorch_model.safetensors"))
    assert "dino.model.encoder.layer.0.attention.attention.query.weight" in names
    assert {"dino.model.encoder.layer.2.attention.output.dense.bias", "dino.conv_out.weight"} < names
    option = ControlNetDino(weights=str(tmp_path), subfolder="published")
    control = option.load(tiny, "pose")
    assert option.digest(tiny, "pose") != ControlNetDino(weights=str(published), dino_nearest=True).digest(tiny, "pose")
    assert control.config.resize == "bicubic"  # the task's, since the file does not say
    control.save_pretrained(tmp_path / "ours")
    for name, value in load_file(tmp_path / "ours" / "diffusion_pytorch_model.safetensors").items():
        assert torch.equal(value, load_file(published / "diffusion_pytorch_model.safetensors")[name])
    assert ControlNetDino(weights=str(tmp_path / "ours")).load(tiny, "canny").config.resize == "bicubic"


@pytest.mark.parametrize("plain", [True, False])
def test_pickled_weights_are_read_without_their_code(
    tiny: StableDiffusion, published: Path, tmp_path: Path, plain: bool
) -> None:
    source = Path(published) if not plain else tmp_path / "plain"
    if plain:
        ControlNet().load(tiny, "canny").save_pretrained(source)
    option = (ControlNet if plain else ControlNetDino)(weights=str(source))
    expected = option.load(tiny, "canny").state_dict()
    safe = source / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(safe), source / "diffusion_pytorch_model.bin")
    safe.unlink()
    found = option.load(tiny, "canny").state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    torch.save({"conv_in.weight": Harmful(tmp_path / "harm")}, source / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="no usable weights"):
        option.load(tiny, "canny")
    assert not (tmp_path / "harm").exists()


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_averaged_weights_of_the_authors_are_read(tiny: StableDiffusion, tmp_path: Path) -> None:
    """diffusers' EMAModel leaves its own numbers in the config."""
    control = ControlNetDino().load(tiny, "canny")
    average = EMAModel(control.parameters(), model_cls=ControlNetDinoModel, model_config=control.config)
    average.optimization_step = 7
    average.save_pretrained(tmp_path / "controlnet_ema")
    assert json.loads((tmp_path / "controlnet_ema" / "config.json").read_text())["optimization_step"] == 7
    found = ControlNetDino(weights=str(tmp_path / "controlnet_ema")).load(tiny, "canny")
    assert all(torch.equal(value, control.state_dict()[name]) for name, value in found.state_dict().items())


def test_conditions_in_another_form_are_refused(tiny: StableDiffusion, tmp_path: Path) -> None:
    control = ControlNet().load(tiny, "canny")
    control.register_to_config(global_pool_conditions=True)
    control.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="global_pool_conditions=true"):
        ControlNet(weights=str(tmp_path)).load(tiny, "canny")


def test_what_was_trained_comes_back(tiny: StableDiffusion, tmp_path: Path) -> None:
    trained, fresh = (Policy(tiny, Control(), branch(silent=silent)) for silent in (False, True))
    export(trained, tmp_path)
    restore(fresh, tmp_path)
    theirs, ours = trained.control.state_dict(), fresh.control.state_dict()
    assert theirs.keys() == ours.keys() and same(list(ours.values()), list(theirs.values()))
    assert ControlNetDinoModel.from_pretrained(tmp_path / "controlnet").config.resize == "bicubic"


# Learning


def policy() -> Policy:
    return Policy(toy_policy.adapter(), Control(), branch())


def test_all_learns_but_the_token_of_masked_patches() -> None:
    made = policy()
    step = toy_policy.method(made)
    step.loss(toy_policy.batch())[0].backward()
    silent = {name for name, weight in made.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert silent == {"learning.control.dino.model.embeddings.mask_token"}
    assert set(made.trainable()) == {name for name, _ in made.named_parameters()} - silent
    assert not any(weight.requires_grad for weight in made.frozen[0].parameters())


@pytest.mark.parametrize("share_timestep", [False, True])
def test_cpo_step_equals_the_plain_schedule(share_timestep: bool) -> None:
    """Five forwards, each looking at its condition anew, after the policy has left the reference."""
    made, data = policy(), toy_policy.batch()
    step = toy_policy.method(made, form="hard", beta=5000.0, margin=0.01, share_timestep=share_timestep)
    reference = made.frozen[0]
    with torch.no_grad():
        for weight in made.trainable().values():
            weight += 0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    drawn = step.times, step.normal
    if share_timestep:
        step.times, step.normal = (lambda d, s, f=f: f(d, s.replace("pretrain", "pair")) for f in drawn)
    expected = toy_policy.plain_cpo(made, reference, step, data)
    gradients = torch.autograd.grad(expected, list(made.trainable().values()))
    step.times, step.normal = drawn
    seen = looks(made.control, reference)
    loss, report = step.loss(data)
    loss.backward()
    assert seen == [6, 6]  # winner and loser of three samples, once by the reference, once by the policy
    torch.testing.assert_close(loss, expected)
    for weight, gradient in zip(made.trainable().values(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-6, rtol=1e-3)
    assert abs(report["cpo/weight"] - 0.5) > 1e-3


def looks(*branches: ControlNetDinoModel) -> list[int]:
    """Collects how many conditions DINOv2 looks at in each of its forwards."""
    seen: list[int] = []
    for control in branches:
        control.dino.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def test_gradient_checkpointing_leaves_the_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        made = policy()
        Hardware("cpu", gradient_checkpointing=checkpointing).prepare(made.networks)
        step = toy_policy.method(made).train()
        layer, calls = made.control.dino.model.encoder.layer[1].mlp, []
        layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        step.loss(toy_policy.batch())[0].backward()
        assert len(calls) == 1 + checkpointing
        found.append([weight.grad for weight in made.trainable().values()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_a_condition_is_looked_at_once_for_all_steps_of_a_picture() -> None:
    """Sampling with features made once equals a prediction from scratch at every step, guidance included."""
    made, empty = policy(), torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(9))
    made.adapter.device, made.adapter.empty_text = torch.device("cpu"), lambda: empty
    _, _, text, image = toy_size.inputs()
    seen = looks(made.control)
    options = {"seed": 0, "stream": "test"}
    latents = sample_latents(made, Condition(text, image), ["a", "b"], Sampling(3, guidance=4.0), **options)
    assert seen == [2]
    start = noise.normal(["a", "b"], made.adapter.latent_shape, seed=0, stream="test")
    predict = lambda x, t: made.predict(x, t, Condition(text, image), guidance=4.0, empty=empty)  # noqa: E731
    with torch.no_grad():
        *_, last = rollout(predict, made.adapter.process, start, num_steps=3)
    torch.testing.assert_close(latents, last.following)
    assert seen == [2, 2, 2, 2]


# What is prepared


@pytest.fixture
def started(tiny: StableDiffusion) -> tuple[Policy, dict[str, Tensor]]:
    """A policy whose DINO has its say, and the prepared columns of two samples that are named as positions are."""
    control = ControlNetDino().load(tiny, "canny")
    torch.manual_seed(1)
    torch.nn.init.normal_(control.dino.conv_out.weight, std=0.3)
    made = Policy(tiny, Control(), control)
    samples = [Sample(str(i), torch.rand(3, 64, 64), "a red circle") for i in range(2)]
    wanted = CPO.columns({"cache_features": True})
    with torch.no_grad():
        columns = conditions._encode(samples, made, Canny(), columns=wanted, sampling=Sampling(2))
    columns = {name: from_uint8(value) if value.dtype == torch.uint8 else value for name, value in columns.items()}
    return made, columns | {"position": torch.arange(2)}


def test_prepared_features_of_the_reference_are_those_it_would_find(started: tuple) -> None:
    made, batch = started
    step = CPO(policy=made, optim=AdamW(), seed=0, steps=1, batch=2, beta=500.0, cache_features=True)
    with torch.no_grad():
        for weight in made.control.dino.parameters():
            weight += 0.01
    assert CPO.columns({"cache_features": True}) == (*CPO.needs, "features")
    seen = looks(made.control, made.frozen[0])
    found, _ = step.loss(batch)
    assert seen == [4]
    expected, _ = step.loss({name: value for name, value in batch.items() if name != "features"})
    assert seen == [4, 4, 4]
    torch.testing.assert_close(found, expected)


def test_losers_drawn_online_are_those_prepared(started: tuple) -> None:
    """With the same keys: SEED for the run's seed, positions for names. Other positions give others."""
    made, batch = started
    step = CPO(policy=made, optim=AdamW(), seed=conditions.SEED, steps=1, batch=2, losers="online", task=Canny())
    assert torch.equal(step.worse(batch), batch["loser"])
    assert not torch.equal(step.worse(batch | {"position": torch.arange(2, 4)}), batch["loser"])
    with torch.no_grad():
        made.control.conv_in.weight += 1
    assert torch.equal(step.worse(batch), batch["loser"]), "it is the starting ControlNet that draws"
    online = {name: value for name, value in batch.items() if name in CPO.columns({"losers": "online"})}
    assert "loser" not in online
    assert torch.equal(step.loss(online | {"position": batch["position"]})[0], step.loss(batch)[0])


def test_features_of_online_losers_cannot_be_cached() -> None:
    with pytest.raises(UserError, match=r"use method\.losers=cached"):
        CPO.columns({"losers": "online", "cache_features": True})


@pytest.mark.parametrize("swiglu", [False, True], ids=["mlp", "swiglu"])
def test_both_spellings_of_dinos_layers_are_read_and_the_published_one_is_written(swiglu: bool) -> None:
    """transformers has renamed the layers after 5.17, and made two of one in the largest size."""
    config = config_of("tiny")
    config.use_swiglu_ffn = swiglu
    state = Dinov2Model(config).state_dict()
    old = as_published(state)
    assert any("attention.attention.query" in name for name in old) and not any("q_proj" in name for name in old)
    assert sum("mlp.weights_in.weight" in name for name in old) == (config.num_hidden_layers if swiglu else 0)
    for given in (state, old):
        for own in (state, old):
            found = spelled(given, own)
            assert found.keys() == own.keys()
            assert all(torch.equal(value, own[name]) for name, value in found.items())


def test_a_file_in_todays_spelling_is_read(tmp_path: Path, tiny: StableDiffusion) -> None:
    control = ControlNetDino().load(tiny, "canny")
    control.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(spelled(load_file(file), ["attention.q_proj"]), file, {"format": "pt"})
    assert any("q_proj" in name for name in load_file(file))
    found = ControlNetDinoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in control.state_dict().items())
