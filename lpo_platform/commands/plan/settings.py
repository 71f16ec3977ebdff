"""What lpo-plan is told beside the command line of lpo-train: words of the form plan.key=value."""

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lpo_platform.commands.plan.devices import DEVICES
from lpo_platform.config.errors import UserError, hint, one_line

PREFIX = "plan."


@dataclass(frozen=True)
class Settings:
    """device: auto (what is here), cpu, a100, h100, h200 or rtx4090; utilisation: share of its peak that is reached."""

    device: str = "auto"
    utilisation: float = 0.4


KNOWN = ", ".join(f"{PREFIX}{name}" for name in Settings.__dataclass_fields__)
NAMES = ("auto", "cpu", *DEVICES)


def settings_of(words: Sequence[str]) -> tuple[Settings, list[str]]:
    """The settings, and the words that are none. UserError for an unknown key or a wrong value."""
    plain = [word.removeprefix("+") for word in words]
    own = [word.removeprefix(PREFIX) for word in plain if word.startswith(PREFIX)]
    for word in own:
        key, _, value = word.partition("=")
        if key not in Settings.__dataclass_fields__:
            close = hint(key, Settings.__dataclass_fields__, options=False)
            raise UserError(f"{PREFIX}{word}: no such setting{close}; what works: {KNOWN}")
        if key == "device" and value not in NAMES:
            raise UserError(f"{PREFIX}{word}: no such device{hint(value, NAMES)}")
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_dotlist(own)))
    except OmegaConfBaseException as error:
        raise UserError(f"{PREFIX}{own[-1]}: {one_line(error)}; what works: {KNOWN}") from error
    if not 0 < found.utilisation <= 1:
        raise UserError(f"plan.utilisation={found.utilisation}: a share of the peak, above 0 and at most 1")
    return found, [word for word, kept in zip(words, plain, strict=True) if not kept.startswith(PREFIX)]
