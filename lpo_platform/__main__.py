"""`python -m lpo_platform train ...` is `lpo-train ...`, and so on for every command."""

import sys
from importlib import import_module

from lpo_platform import __version__

MAIN = "lpo_platform.commands.main"
COMMANDS = {
    "train": (MAIN, "train"),
    "eval": (MAIN, "evaluate"),
    "prepare": (MAIN, "prepare"),
    "score": (MAIN, "score"),
    "doctor": (MAIN, "doctor"),
    "plan": (MAIN, "plan"),
    "report": ("lpo_platform.commands.report", "main"),
    "diff": ("lpo_platform.commands.diff", "main"),
    "export": ("lpo_platform.commands.export.export", "main"),
    "results": ("lpo_platform.commands.results", "main"),
    "benchmark": ("lpo_platform.commands.benchmark.command", "main"),
}


def main() -> None:
    """Runs the command that the first word names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "--version":
        print(f"lpo-platform {__version__}")
        sys.exit()
    if name not in COMMANDS:
        print(f"python -m lpo_platform: the first word names a command: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(0 if name in ("-h", "--help") else 2)
    module, function = COMMANDS[name]
    sys.argv[:2] = [f"lpo-{name}"]
    getattr(import_module(module), function)()


if __name__ == "__main__":
    main()
