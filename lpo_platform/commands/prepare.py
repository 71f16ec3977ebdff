"""lpo-prepare: everything frozen of the training samples into the cache, before a training."""

from pathlib import Path

from omegaconf import DictConfig

from lpo_platform.commands.build import create, title
from lpo_platform.commands.job import assemble
from lpo_platform.commands.job_log import quiet, say
from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.conditions import ConditionPairs
from lpo_platform.data.prepared.export import export_pairs
from lpo_platform.data.prepared.poses import extract
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.tasks.pose import Pose


def prepare(cfg: DictConfig, folder: Path) -> None:
    """Computes everything frozen of the training samples, losing conditions included, into the cache.

    With `export` also into a folder that others can read. With `pose`, instead, the poses of a folder of pictures.
    """
    if cfg.pose is not None:
        return extract_poses(cfg)
    job = assemble(cfg)
    rows = job.rows(force=cfg.force)
    if cfg.export is not None:
        if not isinstance(rows, ConditionPairs):
            raise UserError(f"export={cfg.export}: method={title(cfg)} has no pairs of conditions; use method=cpo")
        export_pairs(job.data.train, rows, Path(cfg.export).expanduser())
    if rows is None:
        say(f"method={title(cfg)} makes its samples while it trains: there is nothing to prepare")
    else:
        say(f"{len(rows)} training samples are ready in {cfg.export or rows.cache.folder}")


def extract_poses(cfg: DictConfig) -> None:
    """Keypoints, skeletons and lines of photographs; toy scenes are those that task.detector=toy asks for."""
    quiet()
    hardware: Hardware = create(cfg.hardware)
    hardware.join()
    task: Pose = create(cfg.task, resolution=cfg.model.resolution, toy=False)
    found = extract(cfg.pose, Path(cfg.export).expanduser(), task, hardware.device)
    say(" | ".join(filter(None, [f"{cfg.export}: train.jsonl, test.jsonl for data=jsonl", found.line()])))
