"""CPO's training step as its authors run it, beside ours: time, FLOPs and peak memory, at random weights.

    python launchers/benchmark.py --model tiny                     # time and memory here, FLOPs counted on the way
    python launchers/benchmark.py --model sd15 --flops-only        # Stable Diffusion 1.5 at 512 px, in seconds anywhere
    python launchers/benchmark.py --model sd15 --device cuda --batch 8 --repeats 10 --json out.json

A step is one micro-step: losses and gradient of a batch that lies on the device. The optimiser's step is left out; it
is the same for all. Variants:
    plain-ckpt  5 ControlNet + 5 UNet forwards, VAE and text encoded, two backwards, with gradient checkpointing:
                as released for every task but ADE20K
    plain       the same without gradient checkpointing, as released for ADE20K
    exact       methods/cpo.py: cached VAE moments and text, shared frozen encoder, one backward; same mathematics
    exact-ckpt  the same with gradient checkpointing, for memory like for like
    shared      methods/cpo.py with share_timestep=true: L_pre on the pair's (t, e), another estimator of the same loss

Variants run interleaved in one process. FLOPs (2 per multiply-add, forward and backward) are counted on meta tensors.
On CUDA everything frozen is bf16 and the rest runs under bf16 autocast; on a CPU all is float32.

On a bare GPU machine it needs, beside torch and transformers, these packages: diffusers peft accelerate lightning
pytorch-lightning lightning-utilities torchmetrics hydra-core omegaconf antlr4-python3-runtime (the last is an sdist).
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads are tens of times slower
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lpo_platform.benchmark.plain import Draws, Parts, plain_losses
from lpo_platform.benchmark.random_model import SD15, RandomStableDiffusion, Shape, tiny
from lpo_platform.hardware import Hardware
from lpo_platform.methods.cpo import CPO
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.shared_encoder import decode, encode
from lpo_platform.models.tuning import Control

VARIANTS = ("plain-ckpt", "plain", "exact", "exact-ckpt", "shared")
SETTINGS = {"beta": 5000.0, "margin": 0.005, "pretrain_weight": 0.05}  # canny's

# specs/cpo.md, "Cost model": GFLOP per sample at Stable Diffusion 1.5 and 512 px. Its parts are counted, its steps are
# reckoned from them, with two roundings that the count corrects: a backward through the frozen decoder is more than one
# forward (attention multiplies activations with each other: two products each), and checkpointing recomputes less than
# all (diffusers checkpoints blocks, and torch stops at the last tensor that the backward needs).
PUBLISHED_PARTS = {
    "UNet": 803.3,
    "UNet encoder + middle": 261.4,
    "UNet decoder": 541.8,
    "ControlNet": 283.3,
    "VAE encoder": 1116.7,
    "text encoder": 13.3,
}
PUBLISHED_STEPS = {"plain-ckpt": 12400.0, "plain": 9900.0, "exact": 8000.0, "shared": 5800.0}


@dataclass(frozen=True)
class Bench:
    """A model at random weights with one batch, and what one step of each variant is."""

    method: CPO
    parts: Parts
    batch: dict[str, Tensor]
    autocast: Callable[[], AbstractContextManager]

    @property
    def device(self) -> torch.device:
        return self.method.policy.adapter.device

    def step(self, variant: str) -> Tensor:
        """Leaves the gradient on the ControlNet; returns the loss."""
        self.parts.checkpoint(variant.endswith("-ckpt"))
        for parameter in self.parts.control.parameters():
            parameter.grad = None
        with self.autocast():
            losses = self._plain() if variant.startswith("plain") else self._ours(variant == "shared")
        for later, loss in reversed(list(enumerate(reversed(losses)))):
            loss.backward(retain_graph=later > 0)  # the original keeps the graph for its second call
        return sum(loss.detach() for loss in losses)

    def _plain(self) -> tuple[Tensor, ...]:
        pictures = (self.batch[name] for name in ("pixels", "tokens", "control", "loser"))
        draws = Draws.new(len(self.batch["pixels"]), self.method.policy.adapter.latent_shape, self.device)
        return plain_losses(self.parts, *pictures, draws, form=self.method.form, **SETTINGS)

    def _ours(self, share_timestep: bool) -> tuple[Tensor, ...]:
        self.method.share_timestep = share_timestep
        return self.method.loss(self.batch)[:1]


def build(
    shape: Shape,
    *,
    batch: int,
    resolution: int | None = None,
    device: str = "cpu",
    form: str = "soft",
    hardware: Hardware | None = None,
    seed: int = 0,
) -> Bench:
    """The model, its reference and a batch of noise pictures. device may be "meta"; hardware says the precision."""
    torch.manual_seed(seed)
    model = RandomStableDiffusion(shape, resolution=resolution, device=device)
    policy = Policy(model, Control(), model.new_control())
    if hardware:
        policy.place(hardware.device, hardware.frozen_dtype)
    optim = AdamW()
    method = CPO(policy=policy, optim=optim, seed=seed, steps=1, batch=batch, form=form, **SETTINGS).to(model.device)
    with policy.reference():
        reference = policy.control
    parts = Parts(model.unet, model.vae, model.text_encoder, policy.control, reference)
    autocast = hardware.autocast if hardware else nullcontext

    picture = (batch, 3, model.resolution, model.resolution)
    text = model.text_encoder.config
    columns = {name: torch.rand(picture, device=model.device) for name in ("pixels", "control", "loser")}
    columns["tokens"] = torch.randint(text.vocab_size, (batch, text.max_position_embeddings), device=model.device)
    with torch.no_grad(), autocast():
        columns["moments"] = model.encode_moments(columns["pixels"])
        columns["text"] = model.embed(columns["tokens"])
    columns["position"] = torch.arange(batch)
    return Bench(method, parts, columns, autocast)


# FLOPs


def flops(work: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops()


def step_flops(bench: Bench, variants: Iterable[str]) -> dict[str, int]:
    """FLOPs of a step of each variant; the bench may lie on the meta device."""
    return {variant: flops(lambda v=variant: bench.step(v)) for variant in variants}


def part_flops(bench: Bench) -> dict[str, int]:
    """FLOPs of one forward of each part."""
    model, batch = bench.method.policy.adapter, bench.batch
    x, t = bench.method.latents(batch), bench.method.times(batch, "pair")
    with torch.no_grad():
        encoded = encode(model.unet, x, t, batch["text"])
        work = {
            "UNet": lambda: model.unet(x, t, batch["text"]),
            "UNet encoder + middle": lambda: encode(model.unet, x, t, batch["text"]),
            "UNet decoder": lambda: decode(model.unet, encoded),
            "ControlNet": lambda: bench.parts.control(x, t, batch["text"], batch["control"], return_dict=False),
            "VAE encoder": lambda: model.encode_moments(batch["pixels"]),
            "text encoder": lambda: model.embed(batch["tokens"]),
        }
        return {name: flops(run) for name, run in work.items()}


# Time and memory


def timed(bench: Bench, variant: str) -> tuple[float, float]:
    """Seconds of one step, and on CUDA the peak of allocated bytes, else the process's CPU seconds.

    CPU seconds say the same on a machine that is busy with something else; seconds do not.
    """
    cuda = bench.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, busy = time.perf_counter(), time.process_time()
    bench.step(variant)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() if cuda else time.process_time() - busy


def interleaved(bench: Bench, variants: list[str], repeats: int, warmup: int) -> dict[str, dict[str, Any]]:
    """Seconds of every repeat, one variant after the other in each round; the warm-up rounds are dropped."""
    rounds = []
    for number in range(warmup + repeats):
        rounds.append({variant: timed(bench, variant) for variant in variants})
        spent = ", ".join(f"{variant} {seconds:.2f} s" for variant, (seconds, _) in rounds[-1].items())
        print(f"round {number + 1} of {warmup + repeats}: {spent}", file=sys.stderr, flush=True)
    results: dict[str, dict[str, Any]] = {}
    for variant in variants:
        seconds, others = zip(*(r[variant] for r in rounds[warmup:]), strict=True)
        other = {"peak_bytes": max(others)} if bench.device.type == "cuda" else {"cpu_seconds": list(others)}
        results[variant] = {"seconds": list(seconds)} | other
    return results


def resident() -> dict[str, int]:
    """Resident bytes of this process now and at its peak.

    From /proc, because Linux lets a child inherit its parent's ru_maxrss; elsewhere ru_maxrss is all there is.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return {name: int(fields[key].split()[0]) * 1024 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"now": peak, "peak": peak}


def peak_of_child(variant: str, arguments: argparse.Namespace) -> dict[str, int]:
    """Peak resident set of a fresh process that builds the model and runs one step of one variant."""
    command = [sys.executable, __file__, "--peak-of", variant, "--device", "cpu"]
    for name in ("model", "batch", "resolution", "form"):
        value = getattr(arguments, name)
        command += [f"--{name}", str(value)] if value is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmark: measuring the memory of {variant} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def print_peak(bench: Bench, variant: str) -> None:
    before = resident()["now"]
    bench.step(variant)
    print(json.dumps({"peak_bytes": resident()["peak"], "model_bytes": before}))


# Report


def machine(device: str) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        models = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next(models, f":{name}").split(":", 1)[1].strip()
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    load = os.getloadavg()[0]
    about = {"cpu": name, "threads": torch.get_num_threads(), "load": round(load, 1), "gpu": gpu}
    return about | {"torch": torch.__version__, "date": datetime.now().strftime("%Y-%m-%d %H:%M")}


def ratio(results: dict[str, dict[str, Any]], base: str, variant: str, value: Callable[[dict], float]) -> str:
    """How many times more `base` takes than `variant`."""
    return f"{value(results[base]) / value(results[variant]):.2f}"


def table(results: dict[str, dict[str, Any]], batch: int) -> str:
    """Markdown: a row for each variant, ratios against each plain variant that ran (above 1: ours takes less)."""
    measures: list[tuple[str, Callable[[dict], float]]] = [("FLOPs", lambda r: r["flops"])]
    head = ["variant", "TFLOP / sample"]
    first = next(iter(results.values()))
    if "seconds" in first:
        measures.append(("time", lambda r: statistics.median(r["seconds"])))
        head += ["s / step (min to max)", "images / s"]
    if "cpu_seconds" in first:
        measures.append(("CPU time", lambda r: statistics.median(r["cpu_seconds"])))
        head += ["CPU s / step (min to max)"]
    if "peak_bytes" in first:
        measures.append(("memory", lambda r: r["peak_bytes"]))
        head += ["peak GiB"]
    bases = [name for name in results if name.startswith("plain")]
    head += [f"{base} / this: {', '.join(name for name, _ in measures)}" for base in bases]
    rows = [head, ["---"] * len(head)]
    for variant, result in results.items():
        row = [variant, f"{result['flops'] / 1e12:.3g}"]
        if "seconds" in result:
            low, middle, high = (f(result["seconds"]) for f in (min, statistics.median, max))
            row += [f"{middle:.3g} ({low:.3g} to {high:.3g})", f"{batch / middle:.3g}"]
        if "cpu_seconds" in result:
            low, middle, high = (f(result["cpu_seconds"]) for f in (min, statistics.median, max))
            row += [f"{middle:.3g} ({low:.3g} to {high:.3g})"]
        if "peak_bytes" in result:
            row += [f"{result['peak_bytes'] / 2**30:.2f}"]
        row += [", ".join(ratio(results, base, variant, value) for _, value in measures) for base in bases]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def against_published(counted: dict[str, int], published: dict[str, float]) -> str:
    rows = ["| | counted, GFLOP / sample | specs/cpo.md | difference |", "|---|---|---|---|"]
    for name, gflop in published.items():
        if name in counted:
            here = counted[name] / 1e9
            rows.append(f"| {name} | {here:.1f} | {gflop:.1f} | {100 * (here / gflop - 1):+.1f} % |")
    return "\n".join(rows)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", choices=("tiny", "sd15"), default="tiny")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--resolution", type=int, help="pixels; the model's own unless given")
    p.add_argument("--form", choices=("soft", "hard"), default="soft")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--warmup", type=int, default=1)
    p.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated, of: " + " ".join(VARIANTS))
    p.add_argument("--flops-only", action="store_true", help="count, compute nothing")
    p.add_argument("--no-memory", action="store_true", help="CPU: do not start a process per variant for its peak")
    p.add_argument("--json", type=Path, help="also write everything here")
    p.add_argument("--peak-of", help=argparse.SUPPRESS)
    return p


def main(argv: list[str] | None = None) -> dict[str, Any]:
    p = parser()
    arguments = p.parse_args(argv)
    variants = arguments.variants.split(",")
    if unknown := set(variants) - set(VARIANTS):
        p.error(f"--variants: {', '.join(sorted(unknown))} unknown; there are {', '.join(VARIANTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda: torch finds no CUDA device here")
    shape = SD15 if arguments.model == "sd15" else tiny()
    hardware = Hardware(accelerator={"cuda": "gpu"}.get(arguments.device, arguments.device))
    device = hardware.device.type
    options = {"batch": arguments.batch, "resolution": arguments.resolution, "form": arguments.form}
    if arguments.peak_of:
        print_peak(build(shape, hardware=hardware, **options), arguments.peak_of)
        return {}

    one = build(shape, batch=1, resolution=arguments.resolution, device="meta")
    results: dict[str, dict[str, Any]] = {v: {"flops": count} for v, count in step_flops(one, variants).items()}
    size = arguments.resolution or shape.resolution
    about = machine(device) | {"model": shape.name, "resolution": size}
    if not arguments.flops_only:
        about |= {"device": device, "precision": hardware.chosen_precision, **options, "repeats": arguments.repeats}
        if device == "cpu" and not arguments.no_memory:
            for variant in variants:
                results[variant] |= peak_of_child(variant, arguments)
        bench = build(shape, hardware=hardware, **options)
        for variant, measured in interleaved(bench, variants, arguments.repeats, arguments.warmup).items():
            results[variant] |= measured

    print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None) + "\n")
    print(table(results, arguments.batch))
    if not arguments.flops_only and device == "cuda":
        print("\nPeak: torch.cuda.max_memory_allocated during a step, weights of all parts included.")
    elif not arguments.flops_only and not arguments.no_memory:
        print("\nPeak: resident set (VmHWM) of a fresh process for one step, weights of all parts included.")
    report = {"about": about, "variants": results}
    if (shape.name, size) == ("sd15", 512):
        report["parts"] = part_flops(one)
        counted = report["parts"] | {variant: result["flops"] for variant, result in results.items()}
        print("\n" + against_published(counted, PUBLISHED_PARTS | PUBLISHED_STEPS))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, default=str) + "\n")
    return report


if __name__ == "__main__":
    main()
