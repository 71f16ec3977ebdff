"""The doctor finds nothing wrong with a sound run, and what is broken on purpose it names."""

import copy
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file
from torch import nn
from toys.grid import line_of

from lpo_platform.commands import build, job, main
from lpo_platform.commands.doctor import first_step, input_checks, resource_checks, reward_checks, weight_checks
from lpo_platform.commands.doctor.doctor import assemble, checked, examine, training
from lpo_platform.commands.doctor.finding import Finding, doubtful, ok
from lpo_platform.commands.doctor.small_run import Few, few, small
from lpo_platform.commands.fit import fit
from lpo_platform.commands.plan.bytes import checkpoint, exported
from lpo_platform.config.errors import UserError
from lpo_platform.config.options import shipped
from lpo_platform.config.schema import CONF
from lpo_platform.data.toy import Toy
from lpo_platform.methods.online import Online
from lpo_platform.models import tuning
from lpo_platform.models.policy import Policy


def configuration(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["logger=none", "hardware=cpu", *overrides])


class Patient:
    """A small job with its rows; every examination begins with the weights that it had."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder, self.job = folder, assemble(small(configuration(*overrides), 1), folder)
        self.look, self.rows = input_checks.Look.at(self.job), self.job.rows()
        self.start = copy.deepcopy(self.job.policy.learning.state_dict())

    def begin(self) -> None:
        self.job.policy.learning.load_state_dict(self.start)

    def train(self, name: str) -> dict[str, Finding]:
        self.begin()
        return {finding.check: finding for finding in training(self.look, self.rows, self.folder / name)}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    return Patient(tmp_path_factory.mktemp("cpo"), "method=cpo")


@pytest.fixture(scope="module")
def healthy(patient: Patient) -> dict[str, Finding]:
    return patient.train("healthy")


def test_a_sound_run_passes(healthy: dict[str, Finding]) -> None:
    assert {check for check, finding in healthy.items() if finding.state == "ok"} == {
        "trainable", "gradient", "loss", "step", "reference", "condition", "save"
    }  # fmt: skip
    assert healthy["processes"].state == "not applicable"


def test_what_a_run_writes_is_what_the_plan_says(patient: Patient, healthy: dict[str, Finding]) -> None:
    bytes_of = lambda place: sum(file.stat().st_size for file in place.rglob("*.*"))  # noqa: E731
    folder, policy, method = patient.folder / "healthy", patient.job.policy, job.method_of(patient.job)
    assert bytes_of(folder / "checkpoints") == pytest.approx(checkpoint(policy, method.optim, averaged=True), rel=0.1)
    assert bytes_of(folder / "export") == pytest.approx(2 * exported(policy), rel=0.1)


def test_nothing_learns() -> None:
    policy = nn.Module()
    policy.trainable = dict
    assert first_step.trainable(policy).reason.startswith("nothing learns: no parameter requires a gradient")


def test_a_disconnected_branch(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Policy.decode

    def cut(self: Policy, encoded: object, features: torch.Tensor | None = None) -> torch.Tensor:
        zero = 0 * sum(weight.sum() for weight in self.control.parameters())
        active, self._active = self._active, self._active | {"control": None}
        try:
            return whole(self, encoded) + zero
        finally:
            self._active = active

    monkeypatch.setattr(Policy, "decode", cut)
    found = patient.train("cut")
    assert found["condition"].what.startswith("another condition changes nothing")
    assert found["gradient"].what == "zero in all 166 tensors that learn" and found["gradient"].state == "FAILED"


@pytest.mark.slow
def test_a_reference_that_shares_weights(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_copies", dict)
    found = patient.train("shared")["reference"]
    assert found.state == "FAILED"
    assert re.match(
        r"training changed the reference's output by \S+ %; it shares weights with the policy", found.reason
    )


@pytest.mark.slow
def test_a_reference_that_is_another_model(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tuning._copies

    def moved(modules: tuning.Modules) -> tuning.Modules:
        copies = whole(modules)
        for weight in copies["control"].parameters():
            weight.data.mul_(1.05)
        return copies

    monkeypatch.setattr(tuning, "_copies", moved)
    found = patient.train("moved")["loss"]
    assert found.state == "FAILED" and "0.5 while policy and reference agree" in found.what


def test_an_export_without_a_tensor(patient: Patient, healthy: dict[str, Finding]) -> None:
    folder = patient.folder / "torn"
    shutil.copytree(patient.folder / "healthy" / "export", folder)
    (file,) = (folder / "controlnet").glob("*.safetensors")
    state = load_file(file)
    del state["conv_in.weight"]
    save_file(state, file, metadata={"format": "pt"})
    found = weight_checks.saved(patient.look, folder)
    assert (found.state == "FAILED" and "differs" in found.what) or "cannot be read" in found.what


def test_a_prompt_and_a_guidance_that_are_not_heard(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    patient.begin()
    monkeypatch.setattr(patient.job.policy.adapter, "guidance", 3.0)
    (found,) = input_checks.guidance(patient.look)
    assert found.state == "ok" and found.what.startswith("model.guidance=3 changes the output by")
    deaf = torch.zeros(1, *patient.job.policy.adapter.empty_text().shape[1:])
    monkeypatch.setattr(patient.job.policy.adapter, "embed", lambda tokens: deaf.expand(len(tokens), -1, -1))
    assert input_checks.prompt(patient.look).what == "another caption changes nothing"
    (found,) = input_checks.guidance(patient.look)
    assert found.state == "FAILED" and found.what == "model.guidance=3 changes nothing"


def test_rewards_that_teach_nothing(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    bright = lambda images: images.mean((1, 2, 3))  # noqa: E731

    def judge(reward: object) -> list[Finding]:
        monkeypatch.setattr(patient.job, "reward", reward)
        return list(checked("reward", lambda: reward_checks.reward(patient.look)))

    (found,) = judge(lambda images, prompts, condition=None: torch.full((len(images),), 0.25))
    assert found.state == "FAILED" and found.what == "score is 0.25 for all pictures"
    (found,) = judge(lambda images, prompts, condition=None: bright(images) / 0)
    assert found.state == "FAILED" and "returned NaN or infinity for 4 of 4 samples" in found.what
    parts = lambda images, prompts, condition=None: {"a": bright(images), "b": 1e-6 * bright(images)}  # noqa: E731
    a, b = judge(parts)
    assert a.state == "ok" and b.state == "doubtful" and "0.0% of the score's variation" in b.what


def test_rows_that_cannot_be_read_or_lack_a_column(patient: Patient) -> None:
    (train, test) = resource_checks.readable(patient.job)
    assert (train.state, test.state) == ("ok", "ok")
    found = resource_checks.columns(patient.job, [{"moments": 0, "text": 0}])
    assert found.what == "the samples have no control, loser"


def test_no_room_on_the_disk(patient: Patient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    method = job.method_of(patient.job)
    found = first_step.disk(method, tmp_path / "run", averaged=True)
    assert found.state == "FAILED" and f"MB, 1 kB are free in {tmp_path}" in found.what
    with pytest.raises(UserError, match=r"^disk: checkpoints and exports take .* free space"):
        check = first_step.Checkup(tmp_path, averaged=True)
        check._note(found)


class Drawing(Online):
    """A method of which only the report of its round is asked."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


def test_a_first_round_without_a_difference() -> None:
    method = Drawing()
    method.round = {"reward/spread": torch.tensor(0.0), "rollout/samples": torch.tensor(4.0)}
    (found,) = first_step.first_round(method)
    assert found.state == "FAILED" and found.what == "the reward gives all candidates of a step the same score"
    method.round["rollout/samples"] = torch.tensor(0.0)
    (found,) = first_step.first_round(method)
    assert found.state == "doubtful" and found.what == "the first round gave nothing to learn from"


def test_a_step_without_effect_names_the_round_that_taught_nothing(patient: Patient) -> None:
    unchanged = patient.look.output(patient.look.samples[0].caption, patient.look.control)
    constant = doubtful("round", "the reward is the same for all pictures", "check reward=")
    found = weight_checks.step(patient.look, unchanged, constant)
    assert found.state == "FAILED" and found.advice == "the reward is the same for all pictures; check reward="
    for sound in (None, ok("round", "rewards of the first round differ")):
        assert "check tune= and optim=" in weight_checks.step(patient.look, unchanged, sound).advice


def test_few_rows_are_other_data() -> None:
    data = Toy(num_train=64, num_test=64, resolution=64)
    cut = few(data)
    assert (len(cut.train), len(cut.test), len(data.train)) == (8, 8, 64)
    assert isinstance(cut.train, Few) and cut.train.fingerprint != data.train.fingerprint
    assert torch.equal(cut.train[3].image, data.train[3].image)


@pytest.mark.slow
def test_a_training_with_the_checks_is_the_training_without(patient: Patient) -> None:
    here, evaluator = patient.job, build.create(patient.job.cfg.metrics)
    ends = []
    for check in (None, Callback()):
        here.policy.learning.load_state_dict(patient.start)
        folder, settings = patient.folder / f"same-{check is None}", build.create(here.cfg.callbacks)
        fit(here, job.method_of(here), patient.rows, evaluator, settings, folder, checkup=check)
        ends.append(copy.deepcopy(here.policy.learning.state_dict()))
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())
    assert any(not torch.equal(weight, patient.start[name]) for name, weight in ends[0].items())


def test_wrong_command_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def told(command: object, *words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["lpo-doctor", *words])
        with pytest.raises(SystemExit) as end:
            command()
        return end.value.code or 0, "".join(capsys.readouterr())

    code, text = told(main.doctor, "method=cp0")
    assert code == 2 and "lpo-doctor: 1 problem" in text and "did you mean 'cpo'?" in text
    assert told(main.doctor, "-m", "seed=0,1") == (
        2,
        "lpo-doctor: one configuration at a time; leave -m and sweep= out\n",
    )
    code, text = told(main.plan, "plan.utilisation=much")
    assert code == 2 and "what works: plan.device, plan.utilisation" in text
    for command, name in ((main.doctor, "lpo-doctor"), (main.plan, "lpo-plan")):
        code, text = told(command, "--help")
        assert code == 0 and "Examples:" in text and f"  {name} method=cpo task=canny" in text


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    return Patient(tmp_path_factory.mktemp("lora"), "method=lpo", "tune=lora", "method.threshold=[0,0]")


@pytest.mark.slow
def test_an_adapter_that_is_skipped(adapted: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapted.train("healthy")["step"].state == "ok"
    monkeypatch.setattr(Linear, "forward", lambda self, x, *_, **__: self.base_layer(x))
    found = adapted.train("skipped")["gradient"]
    assert found.state == "FAILED" and found.what == "the loss does not depend on anything that learns"


@pytest.mark.slow
@pytest.mark.parametrize("method", shipped("method"))
def test_all_methods_pass(method: str, tmp_path: Path) -> None:
    found = list(examine(configuration(*line_of(method)), tmp_path))
    assert [str(finding) for finding in found if finding.state not in ("ok", "not applicable")] == []
    assert {"trainable", "gradient", "loss", "step", "save"} <= {f.check for f in found if f.state == "ok"}


def apart(rank: int, port: int, results: object) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    policy = nn.Linear(2, 1)
    policy.trainable = lambda: dict(policy.named_parameters())
    for weight in policy.parameters():
        weight.grad = torch.ones_like(weight)
    same = first_step.same_gradient(policy)
    policy.bias.grad += 1e-7 * rank
    results[rank] = str(same), str(first_step.same_gradient(policy))
    dist.destroy_process_group()


@pytest.fixture
def two() -> Iterator[list[tuple[str, str]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.start_processes(apart, (port, results), nprocs=2, start_method="spawn")
        yield [results[0], results[1]]


@pytest.mark.dist
def test_processes_with_different_gradients(two: list[tuple[str, str]]) -> None:
    for same, different in two:
        assert same == "ok              processes   2 processes have the same gradient"
        assert different.startswith(
            "FAILED          processes   2 processes have different gradients; they learn apart"
        )
