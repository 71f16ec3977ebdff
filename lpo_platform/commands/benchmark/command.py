"""The command lpo-benchmark: a step of a method as its authors run it, beside ours, at random weights.

It states time, FLOPs and peak memory.

    lpo-benchmark --model tiny                     # time and memory here, FLOPs counted on the way
    lpo-benchmark --model sd15 --flops-only        # Stable Diffusion 1.5 at 512 px, in seconds anywhere
    lpo-benchmark --what lpo-update --model sdxl --batch 4 --flops-only --count-memory
    lpo-benchmark --what cpo --model flux --flops-only --count-memory     # 12 billion weights; minutes
    lpo-benchmark --model sd15 --batch 8 --flops-only --predict h100      # kernels, bytes moved, and a roofline
    lpo-benchmark --model sd15 --device cuda --batch 8 --repeats 10 --json out.json
    lpo-benchmark --everything --limit 540         # all of it, on a GPU in one call; make bench-gpu
    lpo-benchmark --scaling --folder scaling       # how time grows, as a page with plots
    lpo-benchmark --what pipeline                  # reading data, and two steps on up to a million rows
    lpo-benchmark --what startup --repeats 1       # how long commands take before they do their work

What is measured (--what), each in a file of lpo_platform/commands/benchmark that also says what its variants are:
    cpo             losses and gradient of a batch of pictures with their losing conditions (cpo.py)
    cpo-dino        the same on a ControlNet with DINO, whose original draws the losers in the step (cpo_dino.py)
    control         loss and gradient of a supervised ControlNet on a batch of pictures (control.py)
    control-reward  loss and gradient of ControlNet++ on pictures, five for each of --batch (control_reward.py)
    lrm             loss and gradient of a latent reward model on a batch of picture pairs (lrm.py)
    lpo-update      loss and gradient of LPO on a batch of preference pairs (lpo.py)
    lpo-rollout     trajectories of a batch of prompts with the scores of all candidates
    lpo-iteration   a rollout and updates on an assumed share of its pairs (--valid)
    ddpo-update     gradient of DDPO on a ControlNet over all transitions of a batch of pictures (ddpo.py)
    ddpo-round      their trajectories, then that gradient
    generate        pictures of an evaluation (generate.py)
    pipeline        rows that a core reads in a second, two steps of a training on 500 to 1,000,000 rows (pipeline.py)
    startup         imports, lpo-plan, lpo-doctor, a smoke run and the demo, each in a process of its own (startup.py)

A step works on inputs that lie on the device. The optimiser's step is left out; it is the same for all. Variants run
interleaved in one process. FLOPs (2 per multiply-add, forward and backward) are counted on meta tensors, and so is how
often the host waits for the GPU (waits.py). On CUDA everything frozen is bf16 and the rest runs under bf16 autocast; on
a CPU all is float32.

On a bare GPU machine it needs, beside torch and transformers, these packages: diffusers peft accelerate lightning
pytorch-lightning lightning-utilities torchmetrics hydra-core omegaconf antlr4-python3-runtime kornia kornia-rs.
`make wheels` brings them as wheels into .whl, which git ignores; there, without a network,
    python -m pip install --no-index --no-deps --find-links .whl --target /tmp/site .whl/*.whl
    PYTHONPATH=/tmp/site python -m lpo_platform benchmark --everything --limit 540 --json "$OUT/benchmark.json"
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lpo_platform.commands.plan.devices import DEVICES
from lpo_platform.commands.terminal import VERSION

WHAT = ("cpo", "cpo-dino", "control", "control-reward", "lrm", "lpo-update", "lpo-rollout", "lpo-iteration")
WHAT += ("ddpo-update", "ddpo-round", "generate", "pipeline", "startup")
MODELS = ("tiny", "sd15", "sd21", "sdxl", "sd3", "sd35m", "sd35l", "flux")
OPTIONS = ("form", "candidates", "steps", "valid", "micro", "train_batch")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "lpo-benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--version", action="version", version=VERSION)
    p.add_argument("--what", choices=WHAT, default="cpo")
    p.add_argument("--model", choices=MODELS, default="tiny")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--batch", type=int, default=1, help="pictures, pairs or prompts of a step")
    p.add_argument("--resolution", type=int, help="pixels; the model's own unless given")
    p.add_argument("--form", choices=("soft", "hard"), help="of the loss (cpo: soft; cpo-dino: hard)")
    p.add_argument("--candidates", type=int, help="lpo rollouts: K (4)")
    p.add_argument("--steps", type=int, help="of a trajectory of lpo (20) or ddpo (10), of a picture (20)")
    p.add_argument("--valid", type=float, help="lpo-iteration: share of (prompt, step) that give a pair (0.35)")
    p.add_argument("--micro", type=int, help="ddpo: transitions in a micro-batch of ours (16)")
    p.add_argument("--train_batch", type=int, help="ddpo: samples in a micro-batch of the original (1)")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--warmup", type=int, default=1)
    p.add_argument("--variants", help="comma-separated; all unless given")
    p.add_argument("--flops-only", action="store_true", help="count, compute nothing")
    p.add_argument("--count-memory", action="store_true", help="count what a step holds beside the weights, in float32")
    p.add_argument("--predict", choices=DEVICES, help="count kernels and bytes moved, predict a step's time on a GPU")
    p.add_argument("--no-memory", action="store_true", help="CPU: do not start a process per variant for its peak")
    p.add_argument("--json", type=Path, help="also write everything here; --everything goes on from what it holds")
    p.add_argument("--everything", action="store_true", help="all steps, those that say most first")
    p.add_argument("--limit", type=float, default=540, help="--everything: seconds; what is left then is not measured")
    p.add_argument("--scaling", action="store_true", help="time over batch, resolution, K, T and processes")
    p.add_argument("--folder", type=Path, default=Path("scaling"), help="--scaling: where its page goes")
    p.add_argument("--peak-of", help=argparse.SUPPRESS)
    return p


def main() -> None:
    """Console command lpo-benchmark."""
    benchmark(sys.argv[1:])


def benchmark(argv: list[str]) -> dict[str, Any]:
    """Measures what a command line asks for, prints and returns it."""
    p = parser()
    arguments = p.parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads are tens of times slower
    if arguments.what == "startup":
        from lpo_platform.commands.benchmark.startup import startup

        return _written(startup(repeats=arguments.repeats), arguments.json)

    import torch  # after the command line: --help and mistakes take no time

    from lpo_platform.config.errors import UserError
    from lpo_platform.hardware.hardware import Hardware

    if arguments.device == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda: torch finds no CUDA device here")
    hardware = Hardware(accelerator={"cuda": "gpu"}.get(arguments.device, arguments.device))
    try:
        if arguments.everything:
            from lpo_platform.commands.benchmark.everything import everything

            return everything(hardware, arguments.limit, arguments.json, count_only=arguments.flops_only)
        if arguments.what == "pipeline":
            from lpo_platform.commands.benchmark.pipeline import pipeline

            return _written(pipeline(), arguments.json)
        if arguments.scaling:
            from lpo_platform.commands.benchmark.scaling import scaling

            return scaling(arguments.model, hardware, arguments.folder, arguments.repeats)
        return one(p, arguments, hardware)
    except UserError as error:
        p.error(str(error))


def _written(found: dict[str, Any], file: Path | None) -> dict[str, Any]:
    if file:
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def one(p: argparse.ArgumentParser, arguments: argparse.Namespace, hardware: Any) -> dict[str, Any]:
    """Measures one step."""
    from lpo_platform.commands.benchmark.cell import Cell
    from lpo_platform.commands.benchmark.measure import part_flops, peak
    from lpo_platform.commands.benchmark.report import against_published, machine, table
    from lpo_platform.commands.plan.devices import peak_of

    given = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name) is not None}
    chosen = tuple(arguments.variants.split(",")) if arguments.variants else ()
    cell = Cell(arguments.what, arguments.model, arguments.batch, arguments.resolution, given, chosen)
    kind, device = cell.kind, hardware.device.type
    if unknown := set(chosen) - set(kind.variants):
        p.error(f"--variants: {', '.join(sorted(unknown))} unknown; there are {', '.join(kind.variants)}")
    if foreign := set(given) - set(kind.options):
        p.error(f"--{', --'.join(sorted(foreign))}: --what {arguments.what} has no such option")
    if arguments.peak_of:
        print(json.dumps(peak(cell.build(device=device, hardware=hardware), arguments.peak_of)))
        return {}

    counted = cell.build(device="meta")
    predicted_on = DEVICES[arguments.predict] if arguments.predict else None
    results = cell.counted(counted, memory=arguments.count_memory, predicted_on=predicted_on)
    size = arguments.resolution or counted.method.policy.adapter.resolution
    about = machine(device) | {"what": cell.what, "model": cell.model, "batch": cell.batch, **kind.options, **given}
    about |= {"resolution": size}
    if not arguments.flops_only:
        about |= {"device": device, "precision": hardware.chosen_precision, "repeats": arguments.repeats}
        if device == "cpu" and not arguments.no_memory:
            for variant in cell.variants:
                results[variant] |= peak_of_child(variant, arguments)
        for variant, measured in cell.measured(hardware, arguments.repeats, arguments.warmup).items():
            results[variant] |= measured

    print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None) + "\n")
    print(table(results, counted.units, kind.unit, peak_of(about["gpu"])))
    if not arguments.flops_only and device == "cuda":
        print("\nPeak: torch.cuda.max_memory_allocated during a step, weights of all parts included.")
    elif not arguments.flops_only and not arguments.no_memory:
        print("\nPeak: resident set (VmHWM) of a fresh process for one step, weights of all parts included.")
    if arguments.count_memory:
        print("\nCounted: bytes of tensors alive at once in a step, float32, attention fused, beside the weights.")
    if predicted_on:
        print(f"\nPredicted for {predicted_on.name}, not measured: every kernel at its roof (roofline.py).")
    report = {"about": about, "variants": results}
    published = kind.published.get(cell.model)
    if published and arguments.resolution is None and kind.options == kind.options | given:
        report["parts"] = part_flops(counted)
        found = report["parts"] | {variant: result["flops"] for variant, result in results.items()}
        print("\n" + against_published(found, published))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    return report


def peak_of_child(variant: str, arguments: argparse.Namespace) -> dict[str, int]:
    """Peak resident set of a fresh process that builds the model and runs one step of one variant."""
    command = [sys.executable, "-m", "lpo_platform", "benchmark", "--peak-of", variant, "--device", "cpu"]
    for name in ("what", "model", "batch", "resolution", *OPTIONS):
        value = getattr(arguments, name)
        command += [f"--{name}", str(value)] if value is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmark: measuring the memory of {variant} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
