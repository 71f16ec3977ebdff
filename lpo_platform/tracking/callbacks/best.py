"""Keeps the best reward model beside the last one."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from lpo_platform.data.prepared.rows import Chosen
from lpo_platform.evaluation.pairs import ACCURACY, PairEvaluator
from lpo_platform.models.export import export


class Best(Callback):
    """Measures pair accuracy on validation rows at the end of every round and exports the model while it is the best.

    The original exports its last step only; here the last is export/reward and the best export/reward_best.
    """

    def __init__(self, folder: Path, evaluator: PairEvaluator, rows: Chosen) -> None:
        self.folder, self.evaluator, self.rows, self.accuracy = Path(folder), evaluator, rows, -1.0

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        with trainer.precision_plugin.forward_context():
            found = self.evaluator(module.policy, self.rows, title="validate")
        module.policy.train()
        accuracy = found.scores[ACCURACY].mean().item()
        module.log("val/pair_accuracy", accuracy)
        if accuracy > self.accuracy:
            self.accuracy = accuracy
            export(module.policy, self.folder, "_best")

    def state_dict(self) -> dict[str, float]:
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.accuracy = state["accuracy"]
