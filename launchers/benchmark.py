"""A step of a method as its authors run it, beside ours: time, FLOPs and peak memory, at random weights.

    python launchers/benchmark.py --model tiny                     # time and memory here, FLOPs counted on the way
    python launchers/benchmark.py --model sd15 --flops-only        # Stable Diffusion 1.5 at 512 px, in seconds anywhere
    python launchers/benchmark.py --what lpo-iteration --model sdxl --flops-only
    python launchers/benchmark.py --model sd15 --device cuda --batch 8 --repeats 10 --json out.json

What is measured (--what), each in a file of lpo_platform/benchmark that also says what its variants are:
    cpo             losses and gradient of a batch of pictures with their losing conditions (cpo.py)
    cpo-dino        the same on a ControlNet with DINO, whose original draws the losers in the step (cpo_dino.py)
    control-reward  loss and gradient of ControlNet++ on pictures, five for each of --batch (control_reward.py)
    lrm             loss and gradient of a latent reward model on a batch of picture pairs (lrm.py)
    lpo-update      loss and gradient of LPO on a batch of preference pairs (lpo.py)
    lpo-rollout     trajectories of a batch of prompts with the scores of all candidates
    lpo-iteration   a rollout and updates on an assumed share of its pairs (--valid)
    ddpo-update     gradient of DDPO on a ControlNet over all transitions of a batch of pictures (ddpo.py)
    ddpo-round      their trajectories, then that gradient

A step works on inputs that lie on the device. The optimiser's step is left out; it is the same for all. Variants run
interleaved in one process. FLOPs (2 per multiply-add, forward and backward) are counted on meta tensors. On CUDA
everything frozen is bf16 and the rest runs under bf16 autocast; on a CPU all is float32.

On a bare GPU machine it needs, beside torch and transformers, these packages: diffusers peft accelerate lightning
pytorch-lightning lightning-utilities torchmetrics hydra-core omegaconf antlr4-python3-runtime (the last is an sdist).
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads are tens of times slower
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lpo_platform.benchmark import ddpo, lpo
from lpo_platform.benchmark.bench import Bench
from lpo_platform.benchmark.control_reward import ControlRewardStep
from lpo_platform.benchmark.cpo import CPOStep
from lpo_platform.benchmark.cpo_dino import CPODinoStep
from lpo_platform.benchmark.lrm import LRMStep
from lpo_platform.benchmark.measure import interleaved, part_flops, peak, step_flops
from lpo_platform.benchmark.random_model import SD15, SD21, SDXL, tiny
from lpo_platform.benchmark.report import against_published, machine, table
from lpo_platform.config import UserError
from lpo_platform.hardware import Hardware

STEPS: dict[str, type[Bench]] = {
    "cpo": CPOStep,
    "cpo-dino": CPODinoStep,
    "control-reward": ControlRewardStep,
    "lrm": LRMStep,
    "lpo-update": lpo.Update,
    "lpo-rollout": lpo.Rollout,
    "lpo-iteration": lpo.Iteration,
    "ddpo-update": ddpo.Update,
    "ddpo-round": ddpo.Round,
}
MODELS = {"tiny": lambda: tiny(), "sd15": lambda: SD15, "sd21": lambda: SD21, "sdxl": lambda: SDXL}
OPTIONS = ("form", "candidates", "steps", "valid", "micro", "train_batch")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--what", choices=STEPS, default="cpo")
    p.add_argument("--model", choices=MODELS, default="tiny")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--batch", type=int, default=1, help="pictures, pairs or prompts of a step")
    p.add_argument("--resolution", type=int, help="pixels; the model's own unless given")
    p.add_argument("--form", choices=("soft", "hard"), help="of the loss (cpo: soft; cpo-dino: hard)")
    p.add_argument("--candidates", type=int, help="lpo rollouts: K (4)")
    p.add_argument("--steps", type=int, help="of a trajectory of lpo (20) or ddpo (10), of a loser of cpo-dino (20)")
    p.add_argument("--valid", type=float, help="lpo-iteration: share of (prompt, step) that give a pair (0.35)")
    p.add_argument("--micro", type=int, help="ddpo: transitions in a micro-batch of ours (16)")
    p.add_argument("--train_batch", type=int, help="ddpo: samples in a micro-batch of the original (1)")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--warmup", type=int, default=1)
    p.add_argument("--variants", help="comma-separated; all unless given")
    p.add_argument("--flops-only", action="store_true", help="count, compute nothing")
    p.add_argument("--no-memory", action="store_true", help="CPU: do not start a process per variant for its peak")
    p.add_argument("--json", type=Path, help="also write everything here")
    p.add_argument("--peak-of", help=argparse.SUPPRESS)
    return p


def chosen(p: argparse.ArgumentParser, arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """The variants, and what is passed to build() beside the device; ends with a message if some do not exist."""
    kind = STEPS[arguments.what]
    variants = arguments.variants.split(",") if arguments.variants else list(kind.variants)
    if unknown := set(variants) - set(kind.variants):
        p.error(f"--variants: {', '.join(sorted(unknown))} unknown; there are {', '.join(kind.variants)}")
    given = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}
    if foreign := set(given) - set(kind.options):
        p.error(f"--{', --'.join(sorted(foreign))}: --what {arguments.what} has no such option")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda: torch finds no CUDA device here")
    return variants, {"batch": arguments.batch, "resolution": arguments.resolution, **kind.options, **given}


def peak_of_child(variant: str, arguments: argparse.Namespace) -> dict[str, int]:
    """Peak resident set of a fresh process that builds the model and runs one step of one variant."""
    command = [sys.executable, __file__, "--peak-of", variant, "--device", "cpu"]
    for name in ("what", "model", "batch", "resolution", *OPTIONS):
        value = getattr(arguments, name)
        command += [f"--{name}", str(value)] if value is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmark: measuring the memory of {variant} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    p = parser()
    arguments = p.parse_args(argv)
    variants, options = chosen(p, arguments)
    kind, shape = STEPS[arguments.what], MODELS[arguments.model]()
    hardware = Hardware(accelerator={"cuda": "gpu"}.get(arguments.device, arguments.device))
    device = hardware.device.type
    if arguments.peak_of:
        print(json.dumps(peak(kind.build(shape, hardware=hardware, **options), arguments.peak_of)))
        return {}

    try:
        counted = kind.build(shape, device="meta", **options)
    except UserError as error:
        p.error(str(error))
    units, counts = counted.units, step_flops(counted, variants)
    results: dict[str, dict[str, Any]] = {variant: {"flops": count / units} for variant, count in counts.items()}
    size = arguments.resolution or shape.resolution
    about = machine(device) | {"what": arguments.what, "model": shape.name} | options | {"resolution": size}
    if not arguments.flops_only:
        about |= {"device": device, "precision": hardware.chosen_precision, "repeats": arguments.repeats}
        if device == "cpu" and not arguments.no_memory:
            for variant in variants:
                results[variant] |= peak_of_child(variant, arguments)
        bench = kind.build(shape, hardware=hardware, **options)
        for variant, measured in interleaved(bench, variants, arguments.repeats, arguments.warmup).items():
            results[variant] |= measured

    print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None) + "\n")
    print(table(results, units, kind.unit))
    if not arguments.flops_only and device == "cuda":
        print("\nPeak: torch.cuda.max_memory_allocated during a step, weights of all parts included.")
    elif not arguments.flops_only and not arguments.no_memory:
        print("\nPeak: resident set (VmHWM) of a fresh process for one step, weights of all parts included.")
    report = {"about": about, "variants": results}
    if shape.name in kind.published and size == shape.resolution and options == {**options, **kind.options}:
        report["parts"] = part_flops(counted)
        found = report["parts"] | {variant: result["flops"] for variant, result in results.items()}
        print("\n" + against_published(found, kind.published[shape.name], kind.source))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, default=str) + "\n")
    return report


if __name__ == "__main__":
    main()
