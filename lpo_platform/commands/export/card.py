"""The model card: what was trained from what and how well, in Markdown with the front matter that model hubs read.

Folders of this machine and secrets stay out of it.
"""

import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from lpo_platform.commands.export.trained import Trained
from lpo_platform.config.paths import is_hub_id
from lpo_platform.config.schema import CONF
from lpo_platform.evaluation.result_table import cautions, change, decimals, number, real
from lpo_platform.evaluation.statistics import verdict
from lpo_platform.models.weights import ASSETS, digest, is_path, locate
from lpo_platform.runs import record
from lpo_platform.runs.files import fingerprint, read_json
from lpo_platform.tracking.report.page.run import mapping
from lpo_platform.tracking.report.report import title

LICENCES = {  # of the weights that conf/model names
    "tiny": "apache-2.0", "tiny_flux": "apache-2.0", "sd15": "creativeml-openrail-m", "sd21": "openrail++",
    "sdxl": "openrail++", "flux": "other", "tiny_sd3": "apache-2.0", "sd3": "other", "sd35m": "other",
    "sd35l": "other",
}  # fmt: skip
ABSOLUTE = re.compile(r"(?<![\w.:/~-])(?:~\w*)?/(?:[^\s,'\"\]}=/]+/)*([^\s,'\"\]}=/]*)")
# keys of a model that put something in a part's place
CHANGES = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "lora")
BASE, HERE, CONDITION = "<the base model>", "<this folder>", "<condition image>"
NODES = {
    "control": "Load ControlNet Model (`models/controlnet`)",
    "lora": "LoraLoaderModelOnly (`models/loras`)",
    "full": "Load Checkpoint (`models/checkpoints`)",
}


def card(trained: Trained, to: str, check: str, place: str = HERE) -> str:
    """README.md of what lpo-export writes; check: how it was read back; place: the repository that it is in."""
    name = title(trained.run)
    parts = [
        f"---\n{front_matter(trained).to_yaml()}\n---\n# {name[0].upper()}{name[1:]}",
        f"{_what(trained, to).replace(HERE, place)}\n\nRead back by {check}.",
        "![held-out items](example.png)" if trained.kind != "reward" else "",
        f"## Results\n\n{_results(trained)}",
        f"## Lineage\n\n{_table(('', ''), lineage(trained))}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(trained: Trained) -> ModelCardData:
    """Licence and base model as far as they are known: a folder of weights does not say whose they are."""
    model, run = trained.run.config["model"], trained.run
    licence = LICENCES.get(model["name"], "other") if _stock(model) else "other"
    found: dict[str, Any] = {"license": licence}
    if licence == "other":
        found |= {"license_name": "that-of-the-base-model"}
    if _is_hub_id(model["weights"]):
        found |= {"base_model": model["weights"]}
    options = [run.option(group) for group in ("method", "task")]
    tags = ["lpo-platform", trained.kind, *(option for option in options if option not in (None, "none"))]
    if trained.kind != "reward":
        found |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    found |= {"tags": list(dict.fromkeys(tags)), "model_name": title(run), "eval_results": list(_measured(trained))}
    return ModelCardData(**found)


def _measured(trained: Trained) -> Iterator[EvalResult]:
    """The metrics after training, as a hub shows them; what each was before stands beside it."""
    run = trained.run
    data, path = str(run.option("data")), str(mapping(run.config.get("data")).get("path"))
    for name, metric in run.metrics.items():
        known = {key: metric.get(key) for key in ("before", "difference", "ci95")}
        if isinstance(metric["after"], float) and math.isfinite(metric["after"]):
            yield EvalResult(
                task_type="other" if trained.kind == "reward" else "text-to-image",
                dataset_type=path if is_hub_id(path) else data, dataset_name=data, dataset_split="held-out",
                metric_type=name, metric_name=name, metric_value=metric["after"], metric_args=known,
            )  # fmt: skip


def lineage(trained: Trained) -> list[tuple[str, str]]:
    """What it was made of and by which code, with fingerprints of the weights that are on this machine."""
    return list(_lineage(trained))


def _lineage(trained: Trained) -> Iterator[tuple[str, str]]:
    run, model = trained.run, trained.run.config["model"]
    yield "base model", _place(model["weights"])
    for key in CHANGES:
        if model.get(key):
            yield f"its {key}", _place(model[key])
    if control := mapping(run.config.get("control")):
        weights = control["weights"]
        own = mapping(model.get("controls")).get(run.option("task"), weights)
        yield "ControlNet before", _place(own if weights == "auto" else weights)
    if reward := mapping(run.config.get("reward")):
        weights = reward.get("weights")
        place = model.get("reward") if weights == "auto" else weights
        yield "reward", f"{run.option('reward')}, {_place(place)}" if place else str(run.option("reward"))
    data = mapping(run.config.get("data"))
    place = _public(f" {data['path']}") if data.get("path") else ""
    yield "data", f"{run.option('data')}{place} (settings `{_short(data)}`)"
    yield "weights", f"{trained.weights}, `{_short(*(digest(str(p.resolve())) for p in trained.parts.values()))}`"
    yield "command", f"`{_public(shlex.join(run.command()))}`"
    yield "seed", str(run.result.get("seed"))
    versions, git = mapping(run.environment.get("versions")), mapping(run.environment.get("git"))
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    if git:
        yield "code", f"{git['commit']}{' with changes' if git.get('dirty') else ''}"


def metadata(trained: Trained) -> dict[str, str]:
    """For the header of a safetensors file."""
    found = dict(lineage(trained))
    kept = {
        key.replace(" ", "_"): found[key].replace("`", "")
        for key in ("base model", "data", "weights", "command", "versions")
    }
    return {"method": str(trained.run.option("method")), **kept}


def _what(trained: Trained, to: str) -> str:
    """How it is used."""
    model = trained.run.config["model"]
    if trained.kind == "reward":
        return _of_reward(trained, to)
    if to == "comfyui":
        known = _stock(model) and model["name"] in ("sd15", "sd21", "sdxl")
        note = "" if known else " It recognises models by the sizes of SD-1.x, SD-2.x and SDXL and opens no other."
        return f"`model.safetensors` is for ComfyUI's {NODES[trained.kind]}.{note}"
    if to == "safetensors":
        return "`model.safetensors` holds the trained weights in the names of their module's state dict."
    code = "\n".join([*_code(trained, to), *_call(trained)])
    names = sorted(set(re.findall(r"(?<!\.)\b\w+(?=\.from_)", code)))
    imports = ["import torch", *(["import transformers"] if "transformers." in code else [])]
    imports += [f"from diffusers import {', '.join(names)}"]
    imports += ["from diffusers.utils import load_image"] if "load_image" in code else []
    changed = to != "merged" and any(model.get(key) for key in CHANGES)
    note = "\n\nThe base model is the one with the changes that its lineage names." if changed else ""
    return "```python\n{}\n\n{}\n```{}".format("\n".join(imports), code, note)


def _of_reward(trained: Trained, to: str) -> str:
    """A reward model is called in Python, and named in the command line of a training."""
    unet = mapping(read_json(trained.parts["reward"] / "unet" / "config.json"))
    shape = [unet.get("in_channels", 4), *[unet.get("sample_size", 64)] * 2]
    place, what = HERE, "This folder is read by lpo-platform:"
    if to == "safetensors":
        place = "<the run>/export/reward"
        what = "`model.safetensors` holds the trained weights in the names of their module's state dict. The run's "
        what += "folder `export/reward` is read by lpo-platform:"
    return f"""{what}

```python
import lpo_platform as lpo
import torch

score = lpo.reward("lrm", model="{trained.run.config["model"]["name"]}", weights="{place}")
latents = torch.randn(1, {", ".join(map(str, shape))})  # of the model, scaled and noised to the timestep
print(score(latents, torch.tensor([1]), [{json.dumps(_prompt(trained))}]))
```

Differences of scores are log-odds of being preferred. A training uses it by `reward=lrm reward.weights={place}`."""


def _code(trained: Trained, to: str) -> Iterator[str]:
    model = trained.run.config["model"]
    base = model["weights"] if _is_hub_id(model["weights"]) else BASE
    if to == "merged":
        yield f'pipeline = DiffusionPipeline.from_pretrained("{HERE}")'
    elif trained.kind == "lora":
        yield f'pipeline = DiffusionPipeline.from_pretrained("{base}")'
        yield f'pipeline.load_lora_weights("{HERE}")'
    elif trained.kind == "control":
        yield f'control = {trained.config("controlnet")["_class_name"]}.from_pretrained("{HERE}")'
        pipeline = f"{model['_target_'].rpartition('.')[2]}ControlNetPipeline"  # named as ours
        yield f'pipeline = {pipeline}.from_pretrained("{base}", controlnet=control)'
    else:
        for part in trained.parts:
            config, inner = trained.config(part), "" if len(trained.parts) == 1 else f', subfolder="{part}"'
            kind = config.get("_class_name") or f"transformers.{config['architectures'][0]}"
            yield f'{part} = {kind}.from_pretrained("{HERE}"{inner})'
        given = ", ".join(f"{part}={part}" for part in trained.parts)
        yield f'pipeline = DiffusionPipeline.from_pretrained("{base}", {given})'


def _call(trained: Trained) -> Iterator[str]:
    """From the pipeline to a picture, with the sampler, the steps and the guidance of the run's evaluation."""
    model, metrics = trained.run.config["model"], mapping(trained.run.config.get("metrics"))
    steps = metrics.get("num_steps") or model["num_inference_steps"]
    guidance = model["guidance"] if metrics.get("guidance") is None else metrics["guidance"]
    side = model["resolution"]
    if not trained.transformer:
        yield "pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)"
    yield 'pipeline.to("cuda" if torch.cuda.is_available() else "cpu")'
    given = ""
    if trained.kind == "control":
        task = trained.run.option("task")
        yield f'condition = load_image("{CONDITION}")  # of {task}, as in samples/condition of the run'
        given = f"    {'control_image' if trained.transformer else 'image'}=condition,\n"
    yield f"""picture = pipeline(
    {json.dumps(_prompt(trained))},
{given}    num_inference_steps={steps},
    guidance_scale={guidance},
    height={side},
    width={side},
    generator=torch.Generator().manual_seed(0),
).images[0]
picture.save("picture.png")"""


def _prompt(trained: Trained) -> str:
    """Of the first held-out item."""
    caption = next((item["caption"] for item in trained.run.items if item.get("caption")), "a photograph")
    return _public(caption)


def _results(trained: Trained) -> str:
    run = trained.run
    rows = [(name, *_values(metric), verdict(metric), real(metric)) for name, metric in run.metrics.items()]
    heads = ("metric", "before", "after", "difference [95 % interval]", "", "real")
    width = len(heads) if any(row[-1] for row in rows) else len(heads) - 1
    table = _table(heads[:width], [row[:width] for row in rows])
    notes = [f"{run.result.get('samples')} held-out items, the same noise before and after."]
    if trained.weights != trained.evaluated:
        notes.append(f"Of the `{trained.evaluated}` weights; those here are the `{trained.weights}` ones.")
    notes += [f"{line}." for line in cautions(run.metrics)]
    notes += [f"Not as in the protocol: {_public(line)}" for line in run.result.get("deviations", [])]
    return f"{table}\n\n{' '.join(notes)}"


def _values(metric: dict[str, Any]) -> tuple[str, str, str]:
    digits = decimals(metric)
    return number(metric["before"], digits), number(metric["after"], digits), change(metric)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ("---",) * len(heads), *rows])


def _stock(model: dict[str, Any]) -> bool:
    """Whether the weights are those that conf/model names."""
    file = CONF / "model" / f"{model['name']}.yaml"
    values = mapping(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    return values.get("weights") == model["weights"]


def _is_hub_id(weights: str) -> bool:
    return not is_path(weights) and not Path(locate(weights)).is_dir()


def _place(place: str) -> str:
    """A hub id, or the name of a folder with a fingerprint of what lies in it."""
    here = Path(locate(place.partition("::")[0])).expanduser()
    embedded = here.is_relative_to(ASSETS) and here.is_dir()
    name = f"{place} (embedded)" if embedded else _public(place)
    return f"{name} `{_short(digest(place))}`" if here.exists() else name


def _public(text: str) -> str:
    """Without secrets, of folders of this machine only the last part."""
    return record.redact(ABSOLUTE.sub(r"\1", text))


def _short(*parts: object) -> str:
    return fingerprint(*(json.dumps(part, sort_keys=True, default=str) for part in parts))[:12]
