"""Further flags of Lightning's Trainer: those that a user may set, and why the others are set elsewhere or fixed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


@dataclass(frozen=True)
class TrainerFlags:
    """Flags of Lightning's Trainer that watch a training or choose kernels: +trainer.<flag>=<value>.

    Attributes:
        profiler: writes where the time goes into the run folder, as fit-profile*: `simple` counts the Trainer's hooks,
            `advanced` functions of Python, `pytorch` operators.
        detect_anomaly: names the forward operation whose gradient is NaN. It makes a step several times slower.
        deterministic: lets torch take deterministic kernels only; `warn` where there is one.
        benchmark: lets cuDNN try its kernels out for every new shape.
        enable_model_summary: prints the modules with their numbers of parameters.
    """

    refused: ClassVar[dict[str, str]] = {
        "accelerator": "set hardware.accelerator",
        "accumulate_grad_batches": "set hardware.micro_batch; the batch of a step is method.batch",
        "barebones": "it takes the checkpoints and the curves away; a step alone is timed by lpo-benchmark",
        "callbacks": "set callbacks.<setting>",
        "check_val_every_n_epoch": "a run is evaluated before and after; pictures come every callbacks.samples_every",
        "default_root_dir": "set hydra.run.dir",
        "devices": "set hardware.devices",
        "enable_autolog_hparams": "the logger has the whole configuration already",
        "enable_checkpointing": "checkpoints are what resume= goes on from; set callbacks.every",
        "enable_progress_bar": "the run has its own progress line",
        "fast_dev_run": "write debug=smoke",
        "gradient_clip_algorithm": "set optim.clip, a norm over the weights that learn",
        "gradient_clip_val": "set optim.clip",
        "inference_mode": "the Trainer validates nothing here",
        "limit_predict_batches": "the Trainer predicts nothing here",
        "limit_test_batches": "the Trainer tests nothing here; set metrics.num_samples",
        "limit_train_batches": "set method.steps or method.rounds",
        "limit_val_batches": "the Trainer validates nothing here; set metrics.num_samples",
        "log_every_n_steps": "set callbacks.log_every",
        "logger": "set logger=<option>",
        "max_epochs": "set method.steps or method.rounds",
        "max_steps": "set method.steps or method.rounds",
        "max_time": "the length of a run would depend on the machine; set method.steps or method.rounds",
        "min_epochs": "set method.steps or method.rounds",
        "min_steps": "set method.steps or method.rounds",
        "model_registry": "the logger keeps the weights as artifacts",
        "num_nodes": "set hardware.num_nodes",
        "num_sanity_val_steps": "the Trainer validates nothing here",
        "overfit_batches": "set data.num_train, or choose a small data set",
        "plugins": "they come with hardware.precision and hardware.strategy",
        "precision": "set hardware.precision",
        "reload_dataloaders_every_n_epochs": "the order of the samples, on which exact resume rests, depends on it",
        "strategy": "set hardware.strategy",
        "sync_batchnorm": "the networks have no batch normalisation",
        "use_distributed_sampler": "the order of the samples, on which exact resume rests, depends on it",
        "val_check_interval": "a run is evaluated before and after; pictures come every callbacks.samples_every",
    }

    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    detect_anomaly: bool = False
    deterministic: bool | Literal["warn"] = False
    benchmark: bool | None = None
    enable_model_summary: bool = False

    def options(self, folder: Path) -> dict[str, Any]:
        """The arguments of Lightning's Trainer; a profiler writes into the folder."""
        made = PROFILERS[self.profiler](dirpath=folder, filename="profile") if self.profiler else None
        return {
            "profiler": made,
            "detect_anomaly": self.detect_anomaly,
            "deterministic": self.deterministic,
            "benchmark": self.benchmark,
            "enable_model_summary": self.enable_model_summary,
        }
