"""The benchmark compares like with like: the original's CPO step and ours give one loss and one gradient."""

from pathlib import Path

import pytest
import torch
from parity.cpo import Draws, plain_losses
from toys.benchmark import gradient, step_flops
from toys.instances import first
from toys.shapes import TOY

from lpo_platform.commands.benchmark import cell
from lpo_platform.commands.benchmark.command import benchmark
from lpo_platform.commands.benchmark.cpo import SETTINGS, CPOStep
from lpo_platform.commands.benchmark.measure import part_flops, timed
from lpo_platform.commands.plan.count import flops
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.models.random_weights import SD15, RandomStableDiffusion


def trained_a_little(form: str) -> CPOStep:
    """A bench whose condition matters and whose policy has left its reference: the preference is half the gradient."""
    bench = CPOStep.build(TOY, batch=3, form=form)
    bench.batch["loser"].zero_()
    torch.manual_seed(1)
    with torch.no_grad():
        for control in (bench.plain.control, bench.plain.reference):
            control.controlnet_cond_embedding.conv_out.weight *= 30
        for weight in bench.plain.control.parameters():
            weight += 0.03 * torch.randn(weight.shape)  # randn_like would depend on the memory format
    return bench


@pytest.mark.parametrize("form", first(["soft", "hard"], keep=1))
@pytest.mark.parametrize("share_timestep", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plain_step_and_ours_are_one(form: str, share_timestep: bool, checkpointing: bool) -> None:
    bench = trained_a_little(form)
    method, batch = bench.method, bench.batch
    method.share_timestep = share_timestep
    own = "pair" if share_timestep else "pretrain"
    pair, pretrain = ((method.normal(batch, name), method.times(batch, name)) for name in ("pair", own))
    draws = Draws(method.normal(batch, "vae"), *pair, *pretrain)
    pictures = (batch[name] for name in ("pixels", "tokens", "control", "loser"))

    loss, report = method.loss(batch)
    ours = gradient(bench, loss)
    bench.plain.checkpoint(checkpointing)
    losses = plain_losses(bench.plain, *pictures, draws, form=form, **SETTINGS)
    plain = gradient(bench, *losses)

    assert 0.05 < abs(report["cpo/weight"].item() - 0.5) < 0.45, "policy and reference must differ"
    assert report["cpo/preference"] > 0.05 * loss, "the preference must be a part of the loss"
    torch.testing.assert_close(loss, sum(losses), rtol=2e-3, atol=0)
    assert (ours - plain).norm() < 2e-3 * plain.norm()


def test_a_step_leaves_the_gradient_of_its_loss() -> None:
    bench = trained_a_little("soft")
    for variant in CPOStep.variants:
        assert bench.step(variant).isfinite()
        norms = [weight.grad.norm() for weight in bench.plain.control.parameters()]
        assert all(norm.isfinite() for norm in norms) and sum(norms) > 0
        assert all(weight.grad is None for weight in bench.plain.unet.parameters())


@pytest.mark.slow
def test_flops_of_the_meta_device_are_those_of_the_computation() -> None:
    meta = CPOStep.build(TOY, batch=1, device="meta")
    count = step_flops(meta, CPOStep.variants)
    parts = part_flops(meta)
    assert parts["UNet"] == parts["UNet encoder + middle"] + parts["UNet decoder"]
    # 3 of 5 encoder passes are saved, VAE and text, and the second look at the winner; nothing else is
    look = flops(lambda: meta.plain.control.controlnet_cond_embedding(meta.batch["control"]).sum().backward())
    saved = 3 * parts["UNet encoder + middle"] + parts["VAE encoder"] + parts["text encoder"] + look
    assert count["plain"] - count["exact"] == saved
    assert count["plain-ckpt"] - count["exact-ckpt"] == saved
    assert count["shared"] < count["exact"] < count["exact-ckpt"] < count["plain-ckpt"]


def test_sd15_has_the_published_size() -> None:
    model = RandomStableDiffusion(SD15, device="meta")
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(model.unet) == 859_520_964
    assert count(model.new_control()) == 361_279_120
    assert count(model.vae) == 83_653_863
    assert count(model.text_encoder) == 123_060_480
    assert model.latent_shape == (4, 64, 64)


def test_the_command_prints_ratios_of_time_flops_and_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(cell.MODELS, "tiny", lambda: TOY)
    options = ["--device", "cpu", "--repeats", "2", "--variants", "plain,exact", "--no-memory"]
    report = benchmark([*options, "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "| plain / this: FLOPs, time, CPU time |" in printed
    assert report["variants"]["plain"]["flops"] > report["variants"]["exact"]["flops"]
    assert all(len(result["seconds"]) == 2 for result in report["variants"].values())
    assert (tmp_path / "out.json").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variants", "plain,fast"], "fast unknown; there are plain-ckpt, plain, exact, exact-ckpt, shared"),
        (["--what", "lrm", "--variants", "shared"], "shared unknown; there are plain, exact"),
        (["--what", "lpo-update", "--form", "hard"], "--form: --what lpo-update has no such option"),
        (["--model", "sdxl", "--flops-only"], "the original of CPO has no SDXL"),
    ],
)
def test_what_does_not_exist_is_named(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark(options)
    assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_a_step_on_a_gpu_in_mixed_precision() -> None:
    bench = CPOStep.build(TOY, batch=2, hardware=Hardware(accelerator="gpu"))
    losses = {variant: bench.step(variant).item() for variant in ("plain", "exact", "shared")}
    assert all(loss == loss for loss in losses.values())
    assert timed(bench, "exact")[1] > 0
