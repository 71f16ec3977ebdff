"""What reading somebody's folder brought to light, by reason, so that nothing is dropped in silence."""

from dataclasses import dataclass, field

from lpo_platform.runs.given_files import shown

EXAMPLES = 3


@dataclass
class Findings:
    """Names by reason: `skipped` is not used, `noted` is used but converted or incomplete."""

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
        """The report as text for one line; empty when there is nothing to say."""
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
