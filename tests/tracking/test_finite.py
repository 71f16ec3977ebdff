"""The first number that is not finite ends a training, and nothing that comes of it is kept."""

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader
from toys import policy as toy_policy

from lpo_platform.config.errors import RunFailed
from lpo_platform.methods.method import Batch, Method
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.tuning import Full
from lpo_platform.models.weights import not_finite
from lpo_platform.tracking.callbacks.checkpoint import Checkpoint, checkpoints
from lpo_platform.tracking.callbacks.finite import ROW, Finite

EVERY = 2  # steps in a round


class Sum(Method):
    """Descends scale x the sum of one layer's weights; `spoil` names what goes wrong in step `at`."""

    needs = ()

    def __init__(self, spoil: str = "", at: int = 5, scale: float = 1.0, batch: int = 1) -> None:
        policy = Policy(toy_policy.adapter(), Full())
        for name, weight in policy.named_parameters():
            weight.requires_grad_("conv_in.bias" in name)
        super().__init__(policy=policy, optim=AdamW(lr=1e-3), seed=0, steps=8, batch=batch)
        self.spoil, self.at, self.scale, self.calls = spoil, at, scale, 0

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        (weight,) = self.policy.trainable().values()
        loss = self.scale * weight.sum()
        if self.calls == self.at:
            # sqrt has the value 0 and the gradient infinity at 0
            loss = {"loss": loss * math.inf, "nan": loss * math.nan, "gradient": loss + (0 * weight).sum().sqrt()}.get(
                self.spoil, loss
            )
        return loss, {}


class Spoiler(Callback):
    """Breaks a weight after a step."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Sum, *_: object) -> None:
        if module.spoil == "weight" and trainer.global_step == module.at:
            next(iter(module.policy.trainable().values())).data[0] = math.nan


def fit(method: Method, folder: Path, *, steps: int = 8, accumulate: int = 1, **options: object) -> Finite:
    finite = Finite(folder)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=steps // EVERY, accumulate_grad_batches=accumulate, logger=False,
        callbacks=[finite, Spoiler(), Checkpoint(folder / "checkpoints", keep=9)], default_root_dir=folder,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, **options,
    )  # fmt: skip
    trainer.fit(method, DataLoader([{"position": torch.zeros(1)}] * EVERY * accumulate, batch_size=None))
    return finite


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        ("loss", "the loss is -?inf in step 5 of the training"),
        ("nan", "the loss is nan in step 5 of the training"),
        ("gradient", "the gradient norm is (inf|nan) in step 5 of the training"),
        ("weight", "after step 6 of its tensors 1 is not finite: unet.conv_in.bias"),
    ],
)
def test_what_is_not_finite_ends_the_training_in_its_round(spoil: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=what) as failed:
        fit(Sum(spoil, at=6 if spoil == "weight" else 5), tmp_path)
    assert "step=00000004.ckpt is the last good checkpoint" in str(failed.value)
    assert [file.name for file in checkpoints(tmp_path / "checkpoints")] == ["step=00000002.ckpt", "step=00000004.ckpt"]
    for file in checkpoints(tmp_path / "checkpoints"):
        state = torch.load(file, weights_only=True)["state_dict"]
        assert state and not_finite(state) == []


def test_a_micro_batch_is_looked_at_before_its_step(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="the loss is nan in step 3 of"):
        fit(Sum("nan", at=5, batch=2), tmp_path, accumulate=2)


def test_a_healthy_training_ends(tmp_path: Path) -> None:
    finite = fit(Sum(), tmp_path)
    assert (finite.skipped, len(checkpoints(tmp_path / "checkpoints"))) == (0, 4)


def scaled(start: float) -> dict[str, object]:
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=start))]}


def test_16_bits_skip_steps_that_overflow_and_count_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Gradients of 4 overflow float32 at scales of 2^126 and above: at 2^128 (halved after each) three steps do."""
    method = Sum(scale=4.0)
    start = next(iter(method.policy.trainable().values())).detach().clone()
    finite = fit(method, tmp_path, **scaled(2.0**127))
    assert finite.skipped == 2
    moved = (next(iter(method.policy.trainable().values())) - start).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 6e-3), rtol=0.05, atol=0)  # Adam: lr for each other step
    assert "2 of 8 steps were skipped: their gradients overflowed in 16 bits" in caplog.text
    kept = torch.load(checkpoints(tmp_path / "checkpoints")[-1], weights_only=True)
    assert kept["callbacks"]["Finite"] == {"skipped": 2, "row": 0}


def test_16_bits_end_where_no_scale_helps_and_where_the_loss_overflows(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=f"the gradients of {ROW} steps up to step {ROW} overflow, however scaled"):
        fit(Sum(scale=1e38), tmp_path / "gradient", steps=40, **scaled(2.0**120))
    with pytest.raises(RunFailed, match=r"the loss is nan in step 5 of the training.*hardware\.precision=32-true"):
        fit(Sum("nan"), tmp_path / "loss", **scaled(1.0))
