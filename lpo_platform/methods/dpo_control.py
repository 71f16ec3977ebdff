"""Image-DPO for control, the baseline of CPO (arXiv:2511.04753): prefer the picture that follows its condition better.

This is Diffusion-DPO on a ControlNet. A pair is the best and the worst aligned one of a group of pictures that the
starting ControlNet draws from one condition. Content and quality differ between them along with alignment. CPO avoids
that: it compares two conditions of one picture.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from lpo_platform.config.numbers import Several
from lpo_platform.methods.diffusion_dpo import DiffusionDPO


class DPOControl(DiffusionDPO):
    """Diffusion-DPO on pairs that data/prepared/alignment_pairs.py draws.

    Args:
        group: pictures drawn from each condition, of which the best and the worst are kept. The paper: 20.
        gap: the smallest difference in `reward=` by which the winner must also surpass the loser. It is not used
            without a reward. The paper filters by ImageReward; its gap is not published.
    """

    trains: ClassVar[tuple[str, ...]] = ("control",)
    reads: ClassVar[str] = "pictures"
    rewards: ClassVar[tuple[str, ...]] = ("none", "pictures")
    needs: ClassVar[tuple[str, ...]] = (*DiffusionDPO.needs, "control")

    @classmethod
    def small(cls, settings: Mapping[str, Any], processes: int) -> dict[str, Any]:
        return super().small(settings, processes) | {"group": min(2, settings["group"])}

    def __init__(self, *, group: Several = 20, gap: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.group, self.gap = group, gap
