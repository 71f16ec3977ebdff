"""lpo-export to=hub against a model hub on the loopback: what is uploaded, what is refused, and what comes back."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants
from toys.exported import run_of
from toys.hub import TOKEN, Hub, serving

from lpo_platform.commands.export import hub as ours
from lpo_platform.commands.export.card import card
from lpo_platform.commands.export.export import export
from lpo_platform.commands.export.trained import find
from lpo_platform.config.errors import UserError
from lpo_platform.runs import record

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield found


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """What lpo-export has written, small."""
    folder = tmp_path / "written"
    (folder / "unet").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: other\n---\n# x\n")
    (folder / "unet" / "weights.safetensors").write_bytes(bytes(range(200)))
    return folder


def test_the_files_arrive_as_they_are(hub: Hub, written: Path) -> None:
    address = ours.push(written, "me/model", private=True, title="CPO on canny")
    repository = hub.repositories["models/me/model"]
    sha = repository.names["main"]
    assert repository.private and address.endswith(f"/me/model/commit/{sha}")
    files = {path.relative_to(written).as_posix(): path.read_bytes() for path in written.rglob("*") if path.is_file()}
    assert repository.commits[sha] == files
    (written / "unet" / "weights.safetensors").write_bytes(b"others")
    ours.push(written, "me/model", private=True, title="again")
    assert repository.commits[repository.names["main"]]["unet/weights.safetensors"] == b"others"


def test_what_arrives_otherwise_is_an_error(hub: Hub, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("me/model", {})
    sha = hub.repositories["models/me/model"].commit

    def spoilt(files: dict[str, bytes], branch: str = "main") -> str:
        return sha({name: data[:-1] + b"?" for name, data in files.items()}, branch)

    monkeypatch.setattr(hub.repositories["models/me/model"], "commit", spoilt)
    with pytest.raises(UserError, match=r"repo=me/model: README.md is there in another form than here"):
        ours.push(written, "me/model", private=False, title="x")


def test_nothing_begins_without_a_token_that_the_hub_knows(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.check_access("me/model", private=True)
    hub.add("me/open", {})
    ours.check_access("me/open", private=False)
    with pytest.raises(UserError, match="repo=me/open: exists and is public; leave private=true out"):
        ours.check_access("me/open", private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(UserError, match=r"answers 401: .*the token must be valid") as error:
        ours.check_access("me/model", private=False)
    assert "hf_another" not in str(error.value)
    monkeypatch.setattr(ours, "get_token", lambda: None)
    with pytest.raises(UserError, match="no token; log in with `hf auth login`"):
        ours.check_access("me/model", private=False)


def test_a_hub_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UserError, match=r"to=hub: http://127.0.0.1:9 cannot be reached"):
        ours.check_access("me/model", private=False)


def test_the_head_of_a_card_is_read_by_huggingface_hub(tmp_path: Path) -> None:
    """Licence, base, the metrics as model-index, and the calls with the repository in them."""
    run = run_of(tmp_path / "run", "method=lpo", "model=tiny", "tune=lora", "tune.rank=2")
    result = json.loads((run / "result.json").read_text())
    record.write_json(run / "result.json", result | {"metrics": result["metrics"] | {"fd": metric_without_a_number()}})
    text = card(find(str(run)), "diffusers", "nobody", "me/lora")
    found = ModelCard(text, ignore_metadata_errors=False).data
    (only,) = found.eval_results
    assert (only.metric_type, only.metric_value, only.dataset_type, only.task_type) == (
        "text/alignment", 0.5, "toy", "text-to-image",
    )  # fmt: skip
    assert only.metric_args == {"before": 0.4, "difference": 0.1, "ci95": [0.05, 0.15]}
    assert (found.license, found.library_name, found.tags[:2]) == ("apache-2.0", "diffusers", ["lpo-platform", "lora"])
    assert 'pipeline.load_lora_weights("me/lora")' in text and "| command | `lpo-train method=lpo" in text


def metric_without_a_number() -> dict:
    nothing = float("nan")
    return {"before": nothing, "after": nothing, "difference": nothing, "ci95": [nothing] * 2, "higher_is_better": True}


READ = """
import sys, torch
from diffusers import ControlNetModel, DiffusionPipeline
import lpo_platform as lpo
from lpo_platform.models.weights import ASSETS

pipeline = DiffusionPipeline.from_pretrained(ASSETS / "tiny")
pipeline.load_lora_weights("me/lora")
assert pipeline.get_active_adapters()
control = ControlNetModel.from_pretrained("me/control").state_dict()
own = lpo.load("me/control", "model=tiny", "control=controlnet", "task=canny", "hardware=cpu").policy.control
assert all(torch.equal(control[name], weight) for name, weight in own.state_dict().items())
adapted = lpo.load("me/lora", "model=tiny", "hardware=cpu").policy.adapter.unet.state_dict()
tiny = lpo.load("tiny", "hardware=cpu").policy.adapter
plain = tiny.unet.state_dict()
assert any(not torch.equal(adapted[name], plain[name]) for name in plain)
latents, t, prompts = torch.ones(1, *tiny.latent_shape), torch.tensor([1]), ["a red circle"]
print("read", float(lpo.reward("lrm", model="tiny", weights="me/reward")(latents, t, prompts)))
"""


@pytest.mark.slow
def test_a_lora_a_controlnet_and_a_reward_model_come_back(hub: Hub, tmp_path: Path) -> None:
    """The first as typed; all are read by stock classes and by ours in a process that has nothing but the hub."""
    lora = run_of(tmp_path / "runs" / "lora", "method=lpo", "model=tiny", "tune=lora", "tune.rank=2")
    environment = os.environ | hub.environment(str(tmp_path / "cache")) | {"PYTHONPATH": str(REPO)}
    words = [sys.executable, "-m", "lpo_platform", "export", f"run={lora}", "to=hub", "repo=me/lora", "private=true"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and f"{hub.address}/me/lora/commit/" in done.stdout, done.stderr
    control = run_of(tmp_path / "runs" / "control", "method=cpo", "task=canny", "model=tiny")
    reward = run_of(tmp_path / "runs" / "reward", "method=lrm", "model=tiny", "data=toy_pairs", "metrics=pairs")
    for name, run in (("control", control), ("reward", reward)):
        export({"run": str(run), "to": "hub", "repo": f"me/{name}"})
        assert not (run / "exported" / "hub").exists() and not (run / "exported" / "hub.partial").exists()
    assert [place.private for place in hub.repositories.values()] == [True, False, False]
    uploaded = [files for place in hub.repositories.values() for files in place.commits.values()]
    assert not any(name.endswith((".pt", ".bin", ".pkl")) for files in uploaded for name in files)
    kept = [data for files in uploaded for data in files.values()]
    kept += [path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in data for data in kept) and TOKEN not in done.stdout + done.stderr
    read = subprocess.run([sys.executable, "-c", READ], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert read.returncode == 0 and read.stdout.startswith("read "), read.stderr[-3000:]
