"""lpo-prepare: computes the frozen parts of the samples that a training will read, before it or while it runs."""

from pathlib import Path

from omegaconf import DictConfig

from lpo_platform.commands.build import create, title
from lpo_platform.commands.job import assemble
from lpo_platform.commands.job_log import quiet, say
from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.export import export_pairs
from lpo_platform.data.prepared.poses import extract
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.tasks.pose import Pose


def prepare(cfg: DictConfig, folder: Path) -> None:
    """Computes everything frozen of the samples that a training of this command line reads, in its order.

    With `export` of all samples, and into a folder that others can read. With `pose`, instead, the poses of a folder of
    pictures.
    """
    if cfg.pose is not None:
        return extract_poses(cfg)
    job = assemble(cfg)
    rows, method = job.rows(force=cfg.force), title(cfg)
    if cfg.export is not None and (rows is None or "labels" in job.needs()):
        raise UserError(f"export={cfg.export}: method={method} has no pairs of conditions; use method=cpo")
    if rows is None:
        say(f"method={method} makes its samples while it trains: there is nothing to prepare")
        return
    read = None if cfg.export is not None else job.read_of(rows)
    rows.fill(read)
    usable = rows.usable(read)
    if cfg.export is not None:
        export_pairs(job.data.train, usable, Path(cfg.export).expanduser())
    rows.close()
    say(f"{len(usable)} training samples are ready in {cfg.export or rows.store.folder}")


def extract_poses(cfg: DictConfig) -> None:
    """Keypoints, skeletons and lines of photographs; toy scenes are those that task.detector=toy asks for."""
    quiet()
    hardware: Hardware = create(cfg.hardware)
    hardware.join()
    task: Pose = create(cfg.task, resolution=cfg.model.resolution, toy=False)
    found = extract(cfg.pose, Path(cfg.export).expanduser(), task, hardware.device)
    say(" | ".join(filter(None, [f"{cfg.export}: train.jsonl, test.jsonl for data=jsonl", found.line()])))
