"""A W&B workspace for all runs of a project, from the one list of metrics: a section for each panel of it."""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lpo_platform.config.errors import UserError
from lpo_platform.runs.record import write_json
from lpo_platform.tracking.loggers.metrics import AXES, every_metric

NAME = "LPO platform"
OPEN = ("Reward", "Pictures", "Guard rails")
MISSING = 'wandb-workspaces is not installed: pip install "lpo-platform[dashboard]", or write the workspace with --out'
EXAMPLES = """examples:

  python launchers/dashboard.py --entity me --project lpo-platform   a saved view of that project; asks W&B
  python launchers/dashboard.py --dry-run                            prints it and asks nobody
  python launchers/dashboard.py --out workspace.json                 writes it
"""


def workspace() -> dict[str, Any]:
    """{"name", "sections": [{"name", "open", "panels"}]}, a panel being {"kind", "title", "what", "x"} with the metrics
    that it shows: `names`, or of a pattern the `regex`."""
    sections: dict[str, list[dict[str, Any]]] = {}
    for metric in every_metric():
        pattern = "^" + re.escape(metric.name).replace(r"\*", ".*") + "$"
        shown = {"regex": pattern} if "*" in metric.name else {"names": [metric.name]}
        panel = {"kind": metric.kind, "title": metric.name, "what": metric.what, "x": AXES[metric.axis], **shown}
        sections.setdefault(metric.panel, []).append(panel)
    named = [{"name": name, "open": name in OPEN, "panels": panels} for name, panels in sections.items()]
    return {"name": NAME, "sections": named}


def save(spec: dict[str, Any], entity: str, project: str) -> str:
    """Makes a saved view of the project at W&B and returns its address. UserError where that fails."""
    if find_spec("wandb_workspaces") is None:
        raise UserError(MISSING)
    try:
        view = built(spec, entity, project)
        view.save()
    except Exception as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"W&B did not take the workspace: {text}") from error
    return view.url


def built(spec: dict[str, Any], entity: str, project: str) -> Any:
    """The workspace as an object of wandb-workspaces; nothing is sent."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    def panel(of: dict[str, Any]) -> Any:
        if of["kind"] == "image":
            return reports.MediaBrowser(title=of["title"], media_keys=of["names"], mode="gallery", gallery_axis="step")
        if of["kind"] == "table":
            return reports.WeavePanelSummaryTable(table_name=of["names"][0])
        return reports.LinePlot(
            title=of["title"], title_y=of["what"], x=of["x"], y=of.get("names", []), metric_regex=of.get("regex")
        )

    sections = [
        workspaces.Section(name=of["name"], is_open=of["open"], panels=[panel(p) for p in of["panels"]])
        for of in spec["sections"]
    ]
    return workspaces.Workspace(entity=entity, project=project, name=spec["name"], sections=sections)


def main() -> None:
    try:
        _main(_arguments())
    except UserError as error:
        print(f"dashboard: {error}", file=sys.stderr)
        sys.exit(2)


def _main(asked: argparse.Namespace) -> None:
    spec = workspace()
    if asked.out is not None:
        try:
            write_json(asked.out, spec)
        except OSError as error:
            raise UserError(f"--out {asked.out}: {error.strerror}") from None
        print(asked.out)
    elif asked.dry_run:
        print(json.dumps(spec, indent=2))
    elif asked.entity is None:
        raise UserError("--entity: required, the W&B user or team whose project it is; or --dry-run, or --out <file>")
    else:
        print(save(spec, asked.entity, asked.project))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "dashboard", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entity", help="user or team at W&B")
    parser.add_argument("--project", default="lpo-platform", help="as in logger.project (default lpo-platform)")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace as JSON, ask nobody")
    parser.add_argument("--out", type=Path, help="write the workspace as JSON into this file, ask nobody")
    return parser.parse_args()
