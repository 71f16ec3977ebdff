"""LoRA files: what stock pipelines make of ours, what we make of every layout in circulation, merging, restoring."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import stable_diffusion as toy
from toys.instances import first

from lpo_platform.commands.export import keys
from lpo_platform.config.errors import UserError
from lpo_platform.models import lora
from lpo_platform.models.adapter import Condition
from lpo_platform.models.export import export, restore
from lpo_platform.models.policy import Policy
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_xl import StableDiffusionXL, unpack
from lpo_platform.models.tuning import Lora

FIRST = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.stable_diffusion_21(tmp_path_factory.mktemp("sd21"))


@pytest.fixture(scope="module")
def folder_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.stable_diffusion_xl(tmp_path_factory.mktemp("xl"))


def policy(folder: Path, *, kind: type = StableDiffusion, learned: bool = True, tune: Lora | None = None) -> Policy:
    made = Policy(kind(weights=str(folder), **toy.SETTINGS), tune or Lora(rank=4, alpha=8.0))
    if learned:
        with torch.no_grad():
            for weight in made.trainable().values():
                weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("name", ["nope", "conv_norm_out"])  # not there, and a layer that takes no adapter
def test_targets_that_take_no_adapter_are_named(name: str, folder: Path) -> None:
    with pytest.raises(UserError, match=rf"^tune\.targets=\[{name}\]: the denoiser cannot have .*; usual: to_q, "):
        policy(folder, tune=Lora(targets=(name,)))


@torch.no_grad()
def output(made: Policy) -> torch.Tensor:
    adapter = made.adapter
    return made.predict(*inputs(), Condition(adapter.embed(adapter.tokenize(["a red circle", "a blue square"]))))


def loaded(folder: Path, **changes: str) -> Policy:
    """A model with changes to its UNet, and adapters that add nothing yet."""
    return Policy(StableDiffusion(weights=str(folder), **changes, **toy.SETTINGS), Lora())


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7)), torch.tensor([951, 3])


def test_adapters_start_at_the_published_distribution(folder: Path) -> None:
    """A ~ N(0, (1/r)^2), B = 0 (peft's gaussian start, with which LPO was trained)."""
    factors = lora.extract(policy(folder, learned=False, tune=Lora(rank=16, alpha=16.0)).adapter.unet)
    a = torch.cat([down.flatten() for down, _ in factors.values()])
    assert len(a) > 8000 and a.std().item() == pytest.approx(1 / 16, rel=0.03) and abs(a.mean()) < 0.003
    assert not any(up.any() for _, up in factors.values())


def test_the_file_is_in_the_published_layout(folder: Path, tmp_path: Path) -> None:
    made = policy(folder)
    (written,) = export(made, tmp_path)
    with safe_open(written / FILE, framework="pt") as file:
        names = list(file.keys())
    assert names[0] == f"unet.{FIRST}.lora.down.weight" and names[1] == f"unet.{FIRST}.lora.up.weight"
    assert len(names) == len(made.trainable()) and not any("alpha" in name for name in names)


@torch.no_grad()
def test_the_stock_pipeline_predicts_what_the_policy_does(folder: Path, tmp_path: Path) -> None:
    """alpha / r = 2 here: it is in the file, since a reader finds no alpha."""
    made = policy(folder)
    export(made, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    text = made.adapter.embed(made.adapter.tokenize(["a red circle", "a blue square"]))
    plain = pipeline.unet(*inputs(), text).sample
    pipeline.load_lora_weights(tmp_path / "lora")
    stock = pipeline.unet(*inputs(), text).sample
    torch.testing.assert_close(stock, output(made), atol=1e-5, rtol=1e-4)
    assert (stock - plain).abs().max() > 0.01


@torch.no_grad()
def test_the_stock_xl_pipeline_predicts_what_the_policy_does(folder_xl: Path, tmp_path: Path) -> None:
    made = policy(folder_xl, kind=StableDiffusionXL)
    export(made, tmp_path)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder_xl)
    pipeline.load_lora_weights(tmp_path / "lora")
    text = made.adapter.embed(made.adapter.tokenize(["a red circle", "a blue square"]))
    sequence, pooled = unpack(text, 20)
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
    stock = pipeline.unet(*inputs(), sequence, added_cond_kwargs=added).sample
    torch.testing.assert_close(stock, output(made), atol=1e-5, rtol=1e-4)


def plain_state(made: Policy) -> dict[str, torch.Tensor]:
    """PEFT's own keys, alpha not applied."""
    return {name: weight.clone() for name, weight in get_peft_model_state_dict(made.adapter.unet).items()}


def write_today(made: Policy, folder: Path) -> Path:
    """With the settings in the header, as today's diffusers writes for a pipeline."""
    config = made.adapter.unet.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(folder, plain_state(made), unet_lora_adapter_metadata=config)
    return folder


def write_unet_only(made: Policy, folder: Path) -> Path:
    made.adapter.unet.save_lora_adapter(folder)
    return folder


def write_alphas(made: Policy, folder: Path) -> Path:
    state = {f"unet.{name}": weight for name, weight in plain_state(made).items()}
    alphas = {n.replace("lora_A.weight", "alpha"): torch.tensor(8.0) for n in state if n.endswith("lora_A.weight")}
    save_file(state | alphas, folder / FILE)
    return folder


def write_published(made: Policy, folder: Path) -> Path:
    """LPO's layout with PEFT's factors; a rank of 4 and an alpha of 8 need the factor 2 in `up`."""
    state = {}
    for name, weight in plain_state(made).items():
        weight = 2 * weight if "lora_B" in name else weight
        name = name.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
        state[f"unet.{name}"] = weight
    save_file(state, folder / "other_name.safetensors")
    return folder / "other_name.safetensors"


def write_oldest(made: Policy, folder: Path) -> Path:
    """`attn1.processor.to_q_lora.down.weight`, before diffusers used PEFT."""
    state = {}
    for name, weight in plain_state(made).items():
        weight = 2 * weight if "lora_B" in name else weight
        name = name.replace(".lora_A", "_lora.down").replace(".lora_B", "_lora.up").replace("to_out.0_", "to_out_")
        for block in ("attn1.", "attn2."):
            name = name.replace(block, f"{block}processor.")
        state[f"unet.{name}"] = weight
    save_file(state, folder / FILE)
    return folder


def write_checkpoint(made: Policy, folder: Path) -> Path:
    """LPO's checkpoint_{epoch}/unet_lora.pt."""
    state = {name: 2 * weight if "lora_B" in name else weight for name, weight in plain_state(made).items()}
    torch.save(state, folder / "unet_lora.pt")
    return folder


WRITERS = [write_today, write_unet_only, write_alphas, write_published, write_oldest, write_checkpoint]


@pytest.mark.parametrize("write", first(WRITERS, keep=3), ids=lambda write: write.__name__)
def test_every_layout_in_circulation_is_read(write, folder: Path, tmp_path: Path) -> None:
    made = policy(folder)
    place = write(made, tmp_path)
    read = lora.read_factors(str(place), setting="model.lora")
    expected = plain_state(made)
    assert 2 * len(read) == len(expected)
    for name, (down, up) in read.items():
        torch.testing.assert_close(down, expected[f"{name}.lora_A.weight"])
        torch.testing.assert_close(up, 2 * expected[f"{name}.lora_B.weight"])
    merged, plain = loaded(folder, lora=str(place)), loaded(folder)
    torch.testing.assert_close(output(merged), output(made), atol=1e-5, rtol=1e-4)
    assert (output(plain) - output(made)).abs().max() > 0.01
    assert merged.adapter.fingerprint != plain.adapter.fingerprint


def test_the_header_may_give_every_module_its_own_alpha() -> None:
    state = {f"unet.{m}.lora_{f}.weight": torch.ones(2, 2) for m in ("a.to_q", "b.to_q") for f in "AB"}
    read = lora.parse(state, {"unet.lora_alpha": 2, "unet.alpha_pattern": {"a.to_q": 6}}, setting="model.lora")
    assert (read["a.to_q"][1] == 3).all() and (read["b.to_q"][1] == 1).all()
    read = lora.parse(state, {"unet.lora_alpha": 2, "unet.use_rslora": True}, setting="model.lora")
    assert torch.allclose(read["a.to_q"][1], torch.tensor(2**0.5))


@torch.no_grad()
def test_a_merged_export_is_a_plain_unet_and_leaves_the_policy_alone(folder: Path, tmp_path: Path) -> None:
    made = policy(folder, tune=Lora(rank=4, alpha=8.0, merged=True))
    before = output(made)
    assert [path.name for path in export(made, tmp_path, "_ema")] == ["lora_ema", "unet_ema"]
    assert torch.equal(output(made), before)
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "unet_ema")
    text = made.adapter.embed(made.adapter.tokenize(["a red circle", "a blue square"]))
    torch.testing.assert_close(plain(*inputs(), text).sample, before, atol=1e-5, rtol=1e-4)
    base, weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"), plain.state_dict()
    assert base.keys() == weights.keys()
    down, up = lora.extract(made.adapter.unet)[FIRST]
    torch.testing.assert_close(weights[f"{FIRST}.weight"], base[f"{FIRST}.weight"] + up @ down)
    again = loaded(folder, unet=f"{tmp_path}::unet_ema")
    torch.testing.assert_close(output(again), before, atol=1e-5, rtol=1e-4)
    assert again.adapter.fingerprint != loaded(folder).adapter.fingerprint


def test_restoring_gives_the_exported_policy(folder: Path, tmp_path: Path) -> None:
    made, fresh = policy(folder), policy(folder, learned=False)
    export(made, tmp_path / "export")
    restore(fresh, tmp_path / "export")
    for name, weight in made.trainable().items():
        assert torch.equal(fresh.trainable()[name], weight), name
    with pytest.raises(UserError, match=r"rank 4 at .*, where tune\.rank=2$"):
        restore(policy(folder, tune=Lora(rank=2)), tmp_path / "export")
    with pytest.raises(UserError, match=r"on other modules, \S+to_k is unknown here"):
        restore(policy(folder, tune=Lora(rank=4, targets=("to_q",))), tmp_path / "export")


class Malice:
    """Runs code when a careless reader unpickles it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def test_what_is_no_lora_of_this_unet_is_one_line(folder: Path, folder_xl: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Malice(ran), protocol=2))
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    weight = torch.ones(2, 2)
    save_file({"text_encoder.a.q_proj.lora_linear_layer.up.weight": weight}, tmp_path / "text.safetensors")
    save_file({"lora_unet_down_blocks_0.lora_down.weight": weight}, tmp_path / "kohya.safetensors")
    save_file({"unet.a.lora_A.weight": weight}, tmp_path / "half.safetensors")
    dora = {lora.SETTINGS: json.dumps({"unet.use_dora": True})}
    save_file(
        {f"unet.{FIRST}.lora_{f}.weight": weight.clone() for f in "AB"}, tmp_path / "dora.safetensors", metadata=dora
    )
    export(policy(folder_xl, kind=StableDiffusionXL), tmp_path / "xl")
    (tmp_path / "empty").mkdir()
    for name, reason in [
        ("bad.pt", "not a readable file of weights"),
        ("bad.safetensors", "not a readable file of weights"),
        ("text.safetensors", "adapters of text_encoder"),
        ("kohya.safetensors", "not a LoRA that diffusers can convert: .*lora_unet_down_blocks_0"),
        ("half.safetensors", "no whole LoRA"),
        ("dora.safetensors", "a DoRA"),
        ("xl/lora", "made for another UNet"),
        ("empty", f"no {FILE} or unet_lora.pt in this folder"),
        ("nowhere", "no such file or folder"),
    ]:
        place = str(tmp_path / name)
        with pytest.raises(UserError, match=reason) as caught:
            StableDiffusion(weights=str(folder), lora=place, **toy.SETTINGS)
        assert str(caught.value).startswith(f"model.lora={place}: ") and "\n" not in str(caught.value), name
    assert not ran.exists()


def test_a_hub_id_that_cannot_be_reached_says_so(folder: Path) -> None:
    with pytest.raises(UserError, match=rf"^model\.lora=nobody/nothing: no such folder, and {FILE} cannot be fetched"):
        StableDiffusion(weights=str(folder), lora="nobody/nothing", **toy.SETTINGS)


def kohya_file(made: Policy, file: Path, encoders: dict[str, str]) -> Path:
    """What the Kohya trainers write: the denoiser's adapters, and some of each text encoder with alpha 1 of rank 2."""
    torch.manual_seed(3)
    state = keys.kohya(lora.extract(made.adapter.unet))
    for prefix, name in encoders.items():
        encoder = getattr(made.adapter, name)
        width, inner = encoder.config.hidden_size, encoder.config.intermediate_size
        for layer, rows in {"self_attn_q_proj": width, "self_attn_out_proj": width, "mlp_fc1": inner}.items():
            key = f"{prefix}_text_model_encoder_layers_1_{layer}"
            state |= {f"{key}.lora_down.weight": torch.randn(2, width), f"{key}.lora_up.weight": torch.randn(rows, 2)}
            state[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(state, file)
    return file


@pytest.mark.parametrize(
    ("kind", "pipeline", "encoders"),
    first(
        [
            (StableDiffusion, StableDiffusionPipeline, {"lora_te": "text_encoder"}),
            (StableDiffusionXL, StableDiffusionXLPipeline, {"lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}),
        ],
        keep=1,
    ),
    ids=["sd", "sdxl"],
)
@torch.no_grad()
def test_a_kohya_file_is_read_as_the_stock_pipeline_reads_it(
    kind: type, pipeline: type, encoders: dict[str, str], folder: Path, folder_xl: Path, tmp_path: Path
) -> None:
    """Denoiser and text encoders, alpha included, whichever pipeline it is of."""
    source = folder if kind is StableDiffusion else folder_xl
    file = kohya_file(policy(source, kind=kind), tmp_path / "kohya.safetensors", encoders)
    stock = pipeline.from_pretrained(source)
    stock.load_lora_weights(file)
    stock.fuse_lora()
    stock.unload_lora_weights()
    found, base = kind(weights=str(source), lora=str(file), **toy.SETTINGS), kind(weights=str(source), **toy.SETTINGS)
    for name in ("unet", *encoders.values()):
        ours, theirs, plain = (getattr(side, name).state_dict() for side in (found, stock, base))
        assert sum(not torch.equal(value, plain[key]) for key, value in ours.items()) >= 3
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], atol=1e-5, rtol=1e-5)


def test_what_is_more_than_two_factors_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    state = load_file(kohya_file(policy(folder), tmp_path / "plain.safetensors", {}))
    first = next(iter(state)).partition(".")[0]
    for name in ("dora_scale", "hada_w1_a", "lora_mid.weight"):
        save_file(state | {f"{first}.{name}": torch.ones(1)}, tmp_path / "more.safetensors")
        with pytest.raises(UserError, match=rf"{first}\.{name} belongs to DoRA, LoHa"):
            StableDiffusion(weights=str(folder), lora=str(tmp_path / "more.safetensors"), **toy.SETTINGS)
