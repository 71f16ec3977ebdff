"""Image-DPO for control, the baseline of CPO (arXiv:2511.04753): prefer the picture that follows its condition better.

Diffusion-DPO on a ControlNet. Its pairs are the best and the worst aligned of a group of pictures that the starting
ControlNet draws of one condition, so image, quality and content differ between winner and loser along with alignment;
CPO compares conditions of one picture instead.
"""

from typing import Any, ClassVar

from lpo_platform.methods.diffusion_dpo import DiffusionDPO


class DPOControl(DiffusionDPO):
    """group: pictures drawn of each condition, 20 in the paper; gap: by how much the winner must also surpass the loser
    in the reward, which without one is not asked. Both say how pairs are made (data/aligned_pairs.py).
    """

    needs: ClassVar[tuple[str, ...]] = (*DiffusionDPO.needs, "control")

    def __init__(self, *, group: int = 20, gap: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.group, self.gap = group, gap
