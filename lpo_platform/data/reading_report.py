"""Counts, by reason, what was left out or converted while files were read, so that nothing is lost in silence."""

from dataclasses import dataclass, field

from lpo_platform.runs.given_files import shown

EXAMPLES = 3


@dataclass
class Findings:
    """Names by reason. `skipped` were not used; `noted` were used, but converted or incomplete."""

    skipped: dict[str, list[str]] = field(default_factory=dict)
    noted: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, name: str) -> None:
        self.skipped.setdefault(reason, []).append(shown(name))

    def note(self, reason: str, name: str) -> None:
        self.noted.setdefault(reason, []).append(shown(name))

    def report(self) -> dict[str, dict[str, dict[str, object]]]:
        """`skipped` and `noted`: for each reason, most frequent first, the count and up to 3 names."""
        return {"skipped": _counted(self.skipped), "noted": _counted(self.noted)}

    def line(self) -> str:
        """The report in one line; empty where there is nothing to report."""
        parts = {"not used": _counted(self.skipped), "noted": _counted(self.noted)}
        return " | ".join(f"{title}: {_listed(found)}" for title, found in parts.items() if found)


def _counted(found: dict[str, list[str]]) -> dict[str, dict[str, object]]:
    order = sorted(found, key=lambda reason: (-len(found[reason]), reason))
    return {key: {"count": len(found[key]), "examples": sorted(found[key])[:EXAMPLES]} for key in order}


def _listed(counted: dict[str, dict[str, object]]) -> str:
    return "; ".join(f"{row['count']} {reason} ({_names(row)})" for reason, row in counted.items())


def _names(row: dict[str, object]) -> str:
    names = list(row["examples"])
    return ", ".join(names + ["..."] * (row["count"] > len(names)))
