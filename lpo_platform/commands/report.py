"""The command lpo-report: the page of a run or a sweep again, from its folder, or live while it trains."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lpo_platform.commands.terminal import VERSION
from lpo_platform.config.errors import UserError
from lpo_platform.config.paths import named, run_folder

EXAMPLES = """examples:

  lpo-report outputs/cpo-tiny-canny              the newest run there: writes its report.html
  lpo-report outputs/sweeps                      the newest sweep: its leaderboard
  lpo-report outputs/cpo-tiny-canny --watch      a page that follows the training; Ctrl-C ends it
"""


def main() -> None:
    """Console command lpo-report."""
    try:
        sys.exit(_report(arguments_of()))
    except UserError as error:
        print(f"lpo-report: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "lpo-report", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=VERSION)
    words = "a run, a folder of runs (its newest counts), or a sweep; run= may be left out"
    parser.add_argument("folder", type=named, metavar="run=FOLDER", help=words)
    parser.add_argument("--watch", action="store_true", help="serve the page on 127.0.0.1 and keep it up to date")
    parser.add_argument("--port", type=int, default=8765, help="where --watch serves (default 8765; 0 is any free one)")
    return parser.parse_args()


def _report(asked: argparse.Namespace) -> int:
    from lpo_platform.commands.terminal import shown

    folder = page_folder(asked.folder)
    if not asked.watch:
        from lpo_platform.tracking.report.report import write_report

        try:
            print(shown(write_report(folder)))
        except OSError as error:
            raise UserError(f"{shown(folder)}/report.html: {error.strerror}") from None
        return 0
    from lpo_platform.tracking.report.serve import HOST, server

    with server(folder, asked.port) as served:
        print(f"http://{HOST}:{served.server_port}/ shows {shown(folder)}; Ctrl-C ends it", flush=True)
        try:
            served.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def page_folder(folder: Path) -> Path:
    """The folder of the run or sweep that is meant; UserError where there is none."""
    for place in (folder, folder / "latest"):
        if (place / "sweep.json").is_file():
            return place.resolve()
    if (found := run_folder(str(folder))) is not None:
        return found
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    raise UserError(f"{folder}: not a run (no resolved.yaml, here or in 'latest') and not a sweep (no sweep.json)")
