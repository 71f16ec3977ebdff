"""lpo-export: original key names against diffusers' readers, every form against stock pipelines, the model card."""

import itertools
import json
import math
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders import single_file_utils as original
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import flux as toy_flux
from toys import sd3 as toy_sd3
from toys import stable_diffusion as toy
from toys.exported import PROMPTS, ROW, SECRET, run_of
from toys.instances import first
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lpo_platform.commands.build import create, policy_of
from lpo_platform.commands.export import keys
from lpo_platform.commands.export.card import BASE, CONDITION, HERE, card
from lpo_platform.commands.export.export import export, main
from lpo_platform.commands.export.forms import FILE, FORMS, Form
from lpo_platform.commands.export.pipelines import Scene, draw, draw_stock
from lpo_platform.commands.export.publish import Check, compare_weights, passed
from lpo_platform.commands.export.trained import find
from lpo_platform.commands.weights import setting_of as place_of
from lpo_platform.config.compose import compose
from lpo_platform.config.errors import UserError, users
from lpo_platform.config.schema import CONF
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.models.random_weights import SD15, SDXL, Shape
from lpo_platform.models.weights import ASSETS
from lpo_platform.runs import record

PAIRS = [
    pytest.param(kind, to, marks=[] if (kind, to) == ("control", "comfyui") else pytest.mark.slow)
    for kind, to in itertools.product(("full", "control", "lora"), sorted(FORMS))
]


def unet(**changes: object) -> UNet2DConditionModel:
    """SD-1.5's blocks at toy size."""
    sizes = {"block_out_channels": (8, 8, 16, 16), "attention_head_dim": 2, "norm_num_groups": 4, "sample_size": 8}
    return UNet2DConditionModel(**sizes | {"cross_attention_dim": 32} | changes)


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of SD-1.5's layout at toy size."""
    torch.manual_seed(0)
    words, folder = toy.tokenizer(), tmp_path_factory.mktemp("sd15")
    StableDiffusionPipeline(
        vae=toy.vae(), text_encoder=CLIPTextModel(toy.text_config(words, 32)), tokenizer=words, unet=unet(),
        scheduler=DDIMScheduler(set_alpha_to_one=False, clip_sample=False, **toy.SCHEDULE), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL's layout; its second text encoder projects to its own width, as the original and its readers expect."""
    folder, words = toy.stable_diffusion_xl(tmp_path_factory.mktemp("sdxl")), toy.tokenizer()
    torch.manual_seed(2)
    second = toy.text_config(words, 32, projection_dim=32, hidden_act="gelu")
    CLIPTextModelWithProjection(second).save_pretrained(folder / "text_encoder_2")
    config = json.loads((folder / "unet" / "config.json").read_text())
    changed = {"projection_class_embeddings_input_dim": 32 + 6 * 8, "_class_name": None}
    UNet2DConditionModel.from_config({k: v for k, v in (config | changed).items() if v is not None}).save_pretrained(
        folder / "unet"
    )
    return folder


def write(run: Path, to: str, folder: Path) -> Form:
    """The files of a form alone."""
    form = FORMS[to](find(str(run)), create(OmegaConf.load(run / "resolved.yaml").model))
    form.write(folder, {})
    return form


def control_run(folder: Path, weights: Path) -> Path:
    return run_of(folder, "method=cpo", "task=canny", "model=sd15", f"model.weights={weights}", "control.weights=unet")


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory, sd15: Path) -> Path:
    return run_of(tmp_path_factory.mktemp("full"), "method=lpo", "model=sd15", f"model.weights={sd15}", "tune=full")


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory, sd15: Path) -> Path:
    return control_run(tmp_path_factory.mktemp("control"), sd15)


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory, sd15: Path) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    return run_of(folder, "method=lpo", "model=sd15", f"model.weights={sd15}", "tune=lora", "tune.rank=2")


@pytest.mark.parametrize("shape", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_diffusers_reads_the_full_size_names_back(shape: Shape) -> None:
    """Each tensor under its name again; and the originals have what diffusers tells them by."""
    with torch.device("meta"):
        model, vae = UNet2DConditionModel(**shape.unet), AutoencoderKL(**shape.vae)
        branch = ControlNetModel.from_unet(model)
    flat = keys.prefixed("model.diffusion_model", keys.unet(model.state_dict(), model.config))
    _same(original.convert_ldm_unet_checkpoint(flat, model.config), model)
    flat |= keys.prefixed("first_stage_model", keys.vae(vae.state_dict()))
    found = original.convert_ldm_vae_checkpoint(flat, vae.config)
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in vae.state_dict().items()}
    known = {"v1": SD15, "v2": SD15}
    assert all(original.CHECKPOINT_KEY_NAMES[name] in flat for name, kind in known.items() if kind is shape)
    flat = keys.prefixed("control_model", keys.unet(branch.state_dict(), branch.config))
    found = original.convert_controlnet_checkpoint(dict(flat), branch.config)
    table = original.DIFFUSERS_TO_LDM_MAPPING["controlnet"]["addition_embed_type"] if shape is SDXL else {}
    _same(found | {name: flat[f"control_model.{old}"] for name, old in table.items()}, branch)


def _same(found: keys.State, module: torch.nn.Module) -> None:
    state = module.state_dict()
    assert found.keys() == state.keys()
    assert all(found[name].shape == value.shape for name, value in state.items())


def test_names_of_the_original_checkpoints() -> None:
    """A few of each kind, as they stand in v1-5-pruned.safetensors, control_v11p_sd15_canny and sd_xl_base_1.0."""
    with torch.device("meta"):
        model, vae = UNet2DConditionModel(**SD15.unet), AutoencoderKL(**SD15.vae)
        branch = ControlNetModel.from_unet(model)
        second = CLIPTextModelWithProjection(CLIPTextConfig(**SDXL.text_encoder_2))
    state = keys.unet(model.state_dict(), model.config)
    shapes = {
        "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "out.2.weight": (4, 320, 3, 3),
    }
    assert len(state) == 686 and {name: tuple(state[name].shape) for name in shapes} == shapes
    state = keys.unet(branch.state_dict(), branch.config)
    assert {"zero_convs.11.0.weight", "input_hint_block.14.weight", "middle_block_out.0.bias"} <= state.keys()
    state = keys.vae(vae.state_dict())
    assert tuple(state["decoder.mid.attn_1.q.weight"].shape) == (512, 512, 1, 1)
    assert tuple(state["decoder.up.0.block.0.nin_shortcut.weight"].shape) == (128, 256, 1, 1)
    state = keys.open_clip(second.state_dict())
    assert tuple(state["model.transformer.resblocks.31.attn.in_proj_weight"].shape) == (3840, 1280)
    assert {"model.positional_embedding", "model.text_projection", "model.ln_final.bias"} <= state.keys()


@pytest.mark.parametrize(("kind", "to"), PAIRS)
def test_every_form_draws_the_runs_pictures(
    kind: str, to: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """lpo-export compares them itself; what training had changed is far above what may differ."""
    folder = export({"run": str(request.getfixturevalue(kind)), "to": to, "save": str(tmp_path / "made")})
    line = capsys.readouterr().out
    assert float(line.split("changed them by ")[1].split()[0]) > 0.05
    assert float(line.split("run's by ")[1].split()[0]) < 1e-3
    _check_card(folder, (request.getfixturevalue("sd15"), request.getfixturevalue(kind)))


CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize(
    ("kind", "to"),
    first([("lora", "diffusers"), ("control", "diffusers"), ("full", "diffusers"), ("control", "merged")], keep=1),
)
def test_the_code_of_the_card_draws_a_picture(
    kind: str, to: str, sd15: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, but for the folders that a reader fills in; with the steps and the size of the run."""
    run = request.getfixturevalue(kind)
    write(run, to, tmp_path / "here")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "condition.png")
    (code,) = CODE.findall(card(find(str(run)), to, "nobody"))
    for place, own in ((BASE, sd15), (HERE, tmp_path / "here"), (CONDITION, tmp_path / "condition.png")):
        code = code.replace(place, str(own))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "card", "exec"), names)
    assert Image.open("picture.png").size == (64, 64) and names["pipeline"].scheduler.num_inference_steps == 4
    assert PROMPTS[0] in code and isinstance(names["pipeline"].scheduler, DDIMScheduler)


@pytest.mark.slow
def test_the_code_of_a_reward_models_card_scores(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["method=lrm", "model=tiny", "data=toy_pairs", "metrics=pairs"]
    run = run_of(tmp_path / "run", *words)
    scores = []
    for to, place in (("safetensors", "<the run>/export/reward"), ("diffusers", HERE)):
        (code,) = CODE.findall(card(find(str(run)), to, "nobody"))
        assert place in code
        exec(compile(code.replace(place, str(run / "export" / "reward")), "card", "exec"), {})
        scores.append(float(re.search(r"tensor\(\[(.*?)\]", capsys.readouterr().out)[1]))
    assert all(map(math.isfinite, scores))


def _check_card(folder: Path, places: tuple[Path, ...]) -> None:
    """Figures and lineage, no folder of this machine and no secret, in no text file."""
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "diffusers" and head["license"] == "other" and "base_model" not in head
    assert "| text/alignment | 0.40 | 0.50 | +0.10 [+0.05, +0.15] | better |" in text
    assert "`lpo-train method=" in text and "torch 2" in text
    written = [file.read_text() for file in folder.rglob("*") if file.suffix in (".json", ".md")]
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            written.append(str(stored.metadata()))
    for secret in (SECRET, "/home/somebody", *(str(place.parent) for place in places)):
        assert not any(secret in text for text in written)


def test_stock_single_file_loading_reads_a_checkpoint(full: Path, sd15: Path, tmp_path: Path) -> None:
    """The whole pipeline by from_single_file, with no line of ours."""
    write(full, "comfyui", tmp_path)
    found = StableDiffusionPipeline.from_single_file(
        str(tmp_path / FILE), config=str(sd15), local_files_only=True, safety_checker=None
    )
    base, trained = (UNet2DConditionModel.from_pretrained(p) for p in (sd15 / "unet", full / "export" / "unet"))
    assert not torch.equal(base.conv_in.weight, trained.conv_in.weight)
    parts = {"unet": trained, "vae": AutoencoderKL.from_pretrained(sd15 / "vae")}
    parts |= {"text_encoder": CLIPTextModel.from_pretrained(sd15 / "text_encoder")}
    for name, module in parts.items():
        torch.testing.assert_close(getattr(found, name).state_dict(), module.state_dict(), atol=0, rtol=0)


@pytest.mark.slow
def test_a_single_file_is_a_model_of_ours(full: Path, sd15: Path, tmp_path: Path) -> None:
    """Every weight as in the folders that it was made of, and a file that lacks one is named."""
    write(full, "comfyui", tmp_path)
    given = OmegaConf.load(full / "resolved.yaml").model
    single = OmegaConf.merge(given, {"weights": str(tmp_path / FILE), "config": str(sd15)})
    ours = create(single)
    folder = create(given, unet=str(full / "export" / "unet"))
    for one, other in zip(ours.parts, folder.parts, strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), atol=0, rtol=0)
    assert torch.equal(ours.tokenize(PROMPTS), folder.tokenize(PROMPTS)) and ours.fingerprint != folder.fingerprint

    def said(**changes: str | None) -> str:
        with pytest.raises(InstantiationException) as error:
            create(OmegaConf.merge(single, changes))
        return str(users(error.value))

    assert "one file has no configurations and no tokenizer; add model.config=" in said(config=None)
    state = load_file(tmp_path / FILE)
    for name, change in (("out.2.weight", "missing: conv_out.weight"), ("out.0.bias", "missing: conv_norm_out.bias")):
        broken = {key: value for key, value in state.items() if key != f"model.diffusion_model.{name}"}
        save_file(broken, tmp_path / "broken.safetensors")
        assert change in said(weights=str(tmp_path / "broken.safetensors"))
    (tmp_path / "no.safetensors").write_bytes(b"no")
    assert "not a readable safetensors file" in said(weights=str(tmp_path / "no.safetensors"))
    assert place_of(str(tmp_path / FILE)) == "model.weights"


@pytest.mark.slow
def test_stock_single_file_loading_reads_an_sdxl_checkpoint(sdxl: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "method=lpo", "model=sdxl", f"model.weights={sdxl}", "model.vae=null", "tune=full")
    folder = export({"run": str(run), "to": "comfyui"})
    assert folder == run / "exported" / "comfyui"
    kind = StableDiffusionXLPipeline
    found = kind.from_single_file(str(folder / FILE), config=str(sdxl), local_files_only=True)
    stock = kind.from_pretrained(sdxl, unet=UNet2DConditionModel.from_pretrained(run / "export" / "unet"))
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = (getattr(p, name).state_dict() for p in (found, stock))
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    given = OmegaConf.load(run / "resolved.yaml").model
    loaded = create(OmegaConf.merge(given, {"weights": str(folder / FILE), "config": str(sdxl)}))
    unet = UNet2DConditionModel.from_pretrained(run / "export" / "unet")
    wholes = (unet, loaded.unet), (found.text_encoder, loaded.text_encoder), (found.vae, loaded.vae)
    for stock, own in (*wholes, (found.text_encoder_2, loaded.text_encoder_2)):
        torch.testing.assert_close(own.state_dict(), stock.state_dict(), atol=0, rtol=0)


@pytest.mark.slow
def test_a_kohya_lora_has_the_names_that_trainers_write(lora: Path, tmp_path: Path) -> None:
    form = write(lora, "comfyui", tmp_path)
    pipeline = form.read(tmp_path)
    compare_weights(form, pipeline.components)  # of which stock diffusers makes W + up @ down
    state = load_file(tmp_path / FILE)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert state[f"{name}.lora_down.weight"].shape == (2, 8) and state[f"{name}.lora_up.weight"].shape == (8, 2)
    assert state[f"{name}.alpha"] == 2 and len(state) % 3 == 0
    assert place_of(str(tmp_path / FILE)) == "model.lora"
    hardware, scene = Hardware("cpu"), Scene(PROMPTS, None)
    stock = draw_stock(pipeline, form.adapter, scene)
    cfg = OmegaConf.load(lora / "resolved.yaml")
    base, _ = policy_of(cfg, hardware)  # its own adapters are new and change nothing
    cfg.model.lora = str(tmp_path / FILE)
    ours, _ = policy_of(cfg, hardware)
    assert (draw(ours, scene) - stock).abs().max() < 1e-4 < 1e-2 < (draw(base, scene) - stock).abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "made", "layers", "kind"),
    [
        ("flux", toy_flux, "[1,2]", "FluxControlNetPipeline"),
        ("sd3", toy_sd3, "2", "StableDiffusion3ControlNetPipeline"),
    ],
)
def test_a_flow_transformer_in_the_forms_that_it_has(
    name: str, made: ModuleType, layers: str, kind: str, tmp_path: Path
) -> None:
    """A ControlNet in the whole pipeline; ComfyUI reads transformers as diffusers names them."""
    weights = made.folder(tmp_path / name)
    words = [f"model={name}", f"model.weights={weights}", f"model.max_tokens={made.TOKENS}", "task=lineart"]
    words += [f"model.control_layers={layers}", "control.weights=unet", "model.resolution=64"]
    run = run_of(tmp_path / "control", "method=cpo", *words)
    pipeline = DiffusionPipeline.from_pretrained(export({"run": str(run), "to": "merged"}))
    assert type(pipeline).__name__ == kind
    with pytest.raises(UserError, match="diffusers' own key names; what works: to=diffusers"):
        export({"run": str(run), "to": "comfyui"})


@pytest.mark.parametrize("to", first(["diffusers", "comfyui", "safetensors"], keep=1))
def test_one_other_weight_is_found(to: str, control: Path, tmp_path: Path) -> None:
    form = write(control, to, tmp_path)
    compare_weights(form, form.read(tmp_path).components)
    (file,) = tmp_path.rglob("*.safetensors")
    state = load_file(file)
    state[min(name for name in state if name.endswith("weight"))].flatten()[0] += 1e-6
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="controlnet is another one"):
        compare_weights(form, form.read(tmp_path).components)


def test_other_pictures_are_refused() -> None:
    passed(Check("x", 0.003, 0.5))
    for wrong in (0.01, float("nan")):
        with pytest.raises(UserError, match="too far apart"):
            passed(Check("x", wrong, 0.5))


def test_a_failure_leaves_nothing(control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Here: the model that the run started from is gone."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("export", "evaluation", "env.json", "result.json"):
        (run / name).symlink_to(control / name)
    text = (control / "resolved.yaml").read_text()
    cfg = yaml.safe_load(text)
    (run / "resolved.yaml").write_text(text.replace(cfg["model"]["weights"], "/moved/away"))
    monkeypatch.setattr("sys.argv", ["lpo-export", f"run={run}", "to=merged", f"save={tmp_path / 'made'}"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.endswith("lpo-export: model.weights=/moved/away: no such folder\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rum=x"], "rum: no such key; did you mean 'run'?"),
        (["x"], "x: not a setting; write key=value"),
        (["to=merged"], "run= is required: a run folder"),
        (["run=x"], "to= is required: comfyui, diffusers, merged, safetensors or hub"),
        (["run=/nowhere", "to=merged"], "run=/nowhere: no such folder"),
        (["run={control}", "to=merge"], "to=merge: no such form; did you mean 'merged'?"),
        (["run=x", "to=hub"], "repo= is required: to=hub: the repository, <owner>/<name>"),
        (["run=x", "to=hub", "repo=a/b", "save=c"], "save=: not with to=hub"),
        (["run=x", "to=merged", "repo=a/b"], "repo=: only with to=hub"),
        (["run=x", "to=hub", "repo=a/b", "private=yes"], "private=yes: must be true or false"),
        (["run={control}", "to=hub", "repo=a/b", "form=comfy"], "form=comfy: no such form; did you mean 'comfyui'?"),
        (["run={control}", "to=hub", "repo=a//b"], "repo=a//b: "),
        (["run={control}", "to=merged", "weights=ema"], "weights=ema: this run exported none; options: raw"),
        (["run={control}", "to=merged", "save={control}"], "is there already"),
        (["run={failed}", "to=merged"], "its status is failed"),
        (["run={reward}", "to=merged"], "a latent reward model draws nothing"),
        (["run={dino}", "to=diffusers"], "a class of this platform"),
        (["run={small}", "to=comfyui"], "scales its condition down 2 times"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, control: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """No test here loads a model: what is wrong is in the files of the run."""
    places = {"control": control, **_broken(control, tmp_path)}
    monkeypatch.setattr("sys.argv", ["lpo-export", *(word.format(**places) for word in words)])
    with pytest.raises(SystemExit) as ended:
        main()
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and said in lines[0]


def _broken(control: Path, folder: Path) -> dict[str, Path]:
    """Runs that have failed, or have exported something else."""
    configs = {
        "failed": ("controlnet", {}),
        "reward": ("reward", {}),
        "dino": ("controlnet", {"adapter_size": "small"}),
        "small": ("controlnet", {"conditioning_embedding_out_channels": [8, 16, 32]}),
    }
    for name, (part, config) in configs.items():
        (folder / name / "export" / part).mkdir(parents=True)
        record.write_json(folder / name / "export" / part / "config.json", config)
        for file in ("resolved.yaml", "result.json"):
            (folder / name / file).write_text((control / file).read_text())
    record.fail(folder / "failed", "a power cut")
    return {name: folder / name for name in configs}


def test_a_reward_model_as_one_file(tmp_path: Path) -> None:
    """The embedded one, as a run of method=lrm leaves it."""
    run = tmp_path / "run"
    values = OmegaConf.create(compose("train", ["method=lrm", "callbacks.ema_decay=null"], [], CONF).values)
    record.start(run, OmegaConf.to_container(values, resolve=True), ["lpo-train", "method=lrm"])
    shutil.copytree(ASSETS / "tiny" / "lrm", run / "export" / "reward")
    record.finish(run, {"text/alignment": ROW}, 2, 1.0, {}, 0)
    flat = load_file(export({"run": str(run), "to": "safetensors"}) / FILE)
    stored = load_file(run / "export" / "reward" / "reward.safetensors")
    assert torch.equal(flat["visual_projection.weight"], stored["visual_projection.weight"].float())


@pytest.mark.slow
def test_a_controlnet_with_dino_as_one_file(sd15: Path, tmp_path: Path) -> None:
    """Read back by our own class, for no stock one knows it."""
    dino = ["control=controlnet_dino", "control.dino=tiny", "control.pretrained=false"]
    words = ["method=cpo", "task=canny", "model=sd15", f"model.weights={sd15}", "control.weights=unet", *dino]
    run = run_of(tmp_path / "run", *words)
    flat = load_file(export({"run": str(run), "to": "safetensors"}) / FILE)
    assert any(name.startswith("dino.") for name in flat)
