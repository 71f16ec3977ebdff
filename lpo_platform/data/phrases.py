"""Phrases that training adds to captions, so that pictures are asked for in better quality."""

from collections.abc import Sequence
from dataclasses import dataclass

from lpo_platform.diffusion import noise


@dataclass(frozen=True)
class Phrases:
    """Captions with some phrases appended, drawn once for each row, as pose RL does.

    Args:
        choices: the phrases to draw from.
        number: how many different ones are drawn.
        suffix: what stands behind them always.
        seed: by which they are drawn, with the row.
    """

    choices: Sequence[str]
    number: int
    suffix: str
    seed: int

    def __call__(self, caption: str, row: int) -> str:
        order = noise.permutation(len(self.choices), seed=self.seed, stream=f"phrases/{row}")
        drawn = [self.choices[place] for place in order[: self.number].tolist()]
        return ", ".join(filter(None, [caption, *drawn, self.suffix]))
