"""Forms that published runs have and toy runs have not: OpenCV's drawings, edges to train on, depth's pixels."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lpo_platform
from lpo_platform.data.prepared.conditions import packed, unpacked
from lpo_platform.data.source import Sample
from lpo_platform.data.truth import asked_in_training, control_of, truth_of
from lpo_platform.tasks.canny import Canny
from lpo_platform.tasks.depth import Depth
from lpo_platform.tasks.opencv_shapes import disc, limb
from lpo_platform.tasks.pose import Pose
from lpo_platform.tasks.skeleton import draw


@pytest.mark.parametrize(
    ("start", "end", "width", "count", "columns", "rows"),
    [  # number of pixels and the sums of their columns and rows, of OpenCV 5.0 on 256 x 256 pixels
        ((148.0, 48.2), (217.8, 122.4), 2, 429, 78078, 36465),
        ((150.8, 216.3), (121.4, 139.0), 1, 221, 30056, 39117),
        ((235.1, 121.6), (200.7, 122.9), 2, 149, 32333, 18178),
        ((70.1, 52.8), (220.0, 104.2), 2, 653, 94635, 50902),
        ((165.0, 33.8), (183.8, 147.7), 1, 293, 50982, 26370),
        ((188.5, 197.9), (78.2, 148.5), 4, 877, 116641, 151721),
        ((174.3, 219.0), (105.3, 193.0), 8, 991, 137749, 204146),
        ((228.2, 49.0), (99.0, 27.8), 8, 1779, 289964, 67583),
        ((66.9, 228.5), (114.2, 155.4), 8, 1185, 106650, 226335),
        ((111.0, 200.0), (144.0, 135.4), 4, 537, 68199, 89679),
    ],
)
def test_a_limb_has_the_pixels_of_opencv(
    start: list[float], end: list[float], width: int, count: int, columns: int, rows: int
) -> None:
    row, column = limb(start, end, width, 256).nonzero().T
    assert (len(row), int(column.sum()), int(row.sum())) == (count, columns, rows)


def test_a_horizontal_limb_with_its_joints_covers_1549_pixels() -> None:
    """OpenPose's half width of 4 at 512 px and joints 200 px apart; a joint is OpenCV's circle of 49 pixels."""
    assert [int(disc(100.9, 100.2, radius, 512).sum()) for radius in (1, 2, 4)] == [5, 13, 49]
    person = torch.zeros(1, 17, 3)
    person[0, 6], person[0, 8] = torch.tensor([100.0, 100, 1]), torch.tensor([300.0, 100, 1])
    assert int(draw(person, 512, "opencv").any(0).sum()) == 1549
    assert int(draw(person + torch.tensor([0.5, 0.5, 0]), 512).any(0).sum()) < 1400  # smooth limbs are thinner
    published, own = (Pose("published", pretrained=False, drawing=form) for form in ("opencv", "smooth"))
    assert torch.equal(published.render(person[None])[0], draw(person, 512, "opencv"))
    assert published.fingerprint != own.fingerprint
    assert not limb([10, 10], [10, 10], 4, 64)[30:].any()
    assert limb([-40, 20], [30, 20], 4, 64).any() and not limb([-90, -90], [-30, -40], 4, 64).any()


def test_a_drawing_of_opencv_is_read_back_to_a_pixel() -> None:
    x = torch.tensor([32, 36, 28, 42, 22, 44, 20, 52, 12, 58, 6, 38, 26, 40, 24, 42, 22])
    y = torch.tensor([14, 8, 8, 10, 10, 22, 22, 30, 30, 38, 38, 40, 40, 50, 50, 60, 60])
    person = torch.stack([8 * x + 0.5, 8 * y + 0.5, torch.ones(17)], 1)[None, None]
    task = Pose("published", pretrained=False, drawing="opencv")
    read = task.parse(task.render(person))
    assert torch.equal(read[..., 2], person[..., 2]) and (read - person).abs().max() <= 1


def pictures(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_training_and_evaluation_of_canny_have_forms_of_their_own() -> None:
    """As in the DINO rows: magnitudes of a 7 x 7 blur, also above 1, to train on; binary edges to evaluate."""
    task, edges, magnitudes = (Canny(0.15, 0.3, *forms) for forms in (("binary", "magnitude"), (), ("magnitude",)))
    images = (pictures() > 0.5).float().repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :64, :64].contiguous()
    samples = [Sample(str(i), image, "") for i, image in enumerate(images)]
    trained, (maps, evaluated) = control_of(samples, task, images), truth_of(samples, task, images)
    assert torch.equal(trained, magnitudes.detect(images).expand(-1, 3, -1, -1)) and trained.max() > 1
    assert torch.equal(evaluated, edges.render(edges.detect(images))) and set(evaluated.unique().tolist()) == {0.0, 1.0}
    for own, wanted in ((task, trained), (edges, evaluated)):
        asked = asked_in_training(samples, own, images)
        assert torch.equal(asked[0], maps) and torch.equal(asked[1], wanted)
    assert torch.equal(task.detect(images), maps)
    assert torch.equal(task.worse(images, trained), trained), "losers have the form of training"
    kept = packed(trained, task)
    assert kept.dtype == torch.half and kept.shape[1] == 1
    torch.testing.assert_close(unpacked(kept), trained, rtol=1e-3, atol=0)
    assert packed(evaluated, edges).dtype == torch.uint8 and torch.equal(unpacked(packed(evaluated, edges)), evaluated)
    assert task.fingerprint != edges.fingerprint
    assert Canny(0.15, 0.3).fingerprint == edges.fingerprint


def test_whatever_trains_on_conditions_shows_the_form_of_training() -> None:
    """truth_of has that of evaluation; of what prepares samples, conditions.py alone takes its maps."""
    package = Path(lpo_platform.__file__).parent
    files = [file for room in ("methods", "data/prepared") for file in sorted((package / room).rglob("*.py"))]
    text = {file.name: file.read_text(encoding="utf-8") for file in files}
    assert {name for name in text if "asked_in_training(" in text[name]} == {"alignment_pairs.py", "trajectories.py"}
    assert {name for name in text if "truth_of(" in text[name]} == {"conditions.py"}
    assert "truth_of(samples, task, images)[0]" in text["conditions.py"]


def test_the_depth_reward_resizes_bilinearly_and_the_detector_bicubically() -> None:
    task, seen = Depth("published", pretrained=False), []
    network = task.detector.network
    network.model.register_forward_pre_hook(lambda _, __, given: seen.append(given["pixel_values"]), with_kwargs=True)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    task.loss(images, task.detect(images))
    for mode, pixels in zip(("bicubic", "bilinear"), seen, strict=True):
        wanted = F.interpolate(2 * images - 1, (network.side, network.side), mode=mode, antialias=True)
        torch.testing.assert_close(pixels, wanted)
    assert not torch.equal(*seen)
