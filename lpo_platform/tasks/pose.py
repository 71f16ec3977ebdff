"""Human poses: COCO's 17 keypoints of each person, or 133 with hands and face.

ViTPose (arXiv:2204.12484) finds the keypoints in the boxes of a person detector.
"""

import json
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForObjectDetection,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
)

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Share
from lpo_platform.models.weights import digest
from lpo_platform.tasks.blazepose import blazepose
from lpo_platform.tasks.detector import (
    SETTING,
    Detector,
    Embedded,
    Preprocessing,
    from_transformers,
    identity_of,
    wants_toy,
)
from lpo_platform.tasks.keypoint_files import JOINTS, WHOLE, fitted, read_folder, whole
from lpo_platform.tasks.oks import oks, reported_ap
from lpo_platform.tasks.skeleton import Drawing, draw, read_person
from lpo_platform.tasks.task import Task
from lpo_platform.tasks.toy_detector import SECOND

Choice = Literal["auto", "toy", "published", "blazepose", "openpose"]
PUBLISHED = "usyd-community/vitpose-base-simple"
PEOPLE = "PekingU/rtdetr_r50vd_coco_o365"
NEAR, DARK = 0.03, 0.1  # how far from a joint its drawing may lie, by the side; a level that is no drawing
MARGIN = 1.25  # by which a person's box is enlarged before its joints are sought
EXPERTS = {JOINTS: 0, WHOLE: 5}  # of ViTPose++, whose last layers differ by data set: COCO, COCO-WholeBody


def small(keypoints: int = JOINTS) -> VitPoseConfig:
    """A ViTPose of 0.1 million weights."""
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        mlp_ratio=2, out_features=["stage2"],
    )  # fmt: skip
    return VitPoseConfig(backbone_config=backbone, num_labels=keypoints)


class PeopleNetwork(nn.Module):
    """(B, 3, H, W) in [0, 1] -> B boxes (P, 4) x, y, width, height in pixels; the whole picture where nobody is found.

    weights: folder or hub id of an object detector of transformers whose classes include "person".
    """

    def __init__(self, weights: str, threshold: float) -> None:
        super().__init__()
        setting = "task.people"
        self.model = from_transformers(lambda _: AutoModelForObjectDetection, weights, True, _none, setting=setting)
        names = {name.lower(): int(number) for number, name in self.model.config.id2label.items()}
        if "person" not in names:
            raise UserError(f"{setting}={weights}: its classes have no 'person'")
        self.person, self.threshold = names["person"], threshold
        self.preprocessing = Preprocessing(weights, default=((0.0,) * 3, (1.0,) * 3), setting=setting, pretrained=True)
        size = self.preprocessing.size
        self.size = (size.get("height", 640), size.get("width", 640))

    def forward(self, images: Tensor) -> list[Tensor]:
        pixels = self.preprocessing(F.interpolate(images, self.size, mode="bilinear", antialias=True))
        found = self.model(pixel_values=pixels)
        sides = torch.tensor(images.shape[:1:-1], device=images.device).repeat(2)
        boxes = []
        for logits, relative in zip(found.logits.sigmoid(), found.pred_boxes, strict=True):
            sure = logits[:, self.person] > self.threshold
            middle, extent = relative[sure].split(2, 1)
            boxes.append(torch.cat([middle - extent / 2, extent], 1) * sides)
        return boxes


def _none() -> None:
    raise UserError("task.people: a person detector with random weights finds nobody; pass null to take whole pictures")


class PoseNetwork(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, P, K, 3): x, y in pixels and score; rows of people who are not there are 0.

    keypoints: K, COCO's 17, which a network of COCO-WholeBody's 133 has too, or these.
    """

    def __init__(self, weights: str, people: str | None, pretrained: bool, threshold: float, keypoints: int) -> None:
        super().__init__()
        random = partial(small, keypoints)
        self.model = from_transformers(lambda _: VitPoseForPoseEstimation, weights, pretrained, random)
        named, self.keypoints = self.model.config.num_labels, keypoints
        if named not in {keypoints, WHOLE}:
            what = "17 of COCO" if keypoints == JOINTS else "133 of COCO-WholeBody, which task.whole_body asks for"
            raise UserError(f"{SETTING}={weights}: names {named} keypoints, not the {what}")
        self.preprocessing = Preprocessing(weights, pretrained=pretrained)
        self.size = tuple(self.model.config.backbone_config.image_size)
        self.experts = getattr(self.model.config.backbone_config, "num_experts", 1)
        self.people = PeopleNetwork(people, threshold) if people is not None and pretrained else None

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        whole = images.new_tensor([[0, 0, width, height]])
        boxes = [whole] * len(images) if self.people is None else self.people(images)
        rows = torch.cat([torch.full((len(b),), i, device=images.device) for i, b in enumerate(boxes)])
        most = max(1, *(len(b) for b in boxes))
        found = images.new_zeros(len(images), most, self.keypoints, 3)
        if len(rows) == 0:
            return found
        places = padded(torch.cat(boxes), self.size)
        pixels = self.preprocessing(crops(images[rows], places, self.size))
        number = EXPERTS[self.model.config.num_labels]
        expert = torch.full((len(rows),), number, device=images.device) if self.experts > 1 else None
        heat = self.model(pixel_values=pixels, dataset_index=expert).heatmaps
        joints = placed(peaks(heat[:, : self.keypoints]), places, heat.shape[-2:])
        column = torch.cat([torch.arange(len(b), device=images.device) for b in boxes])
        found[rows, column] = joints
        return found


def padded(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 4) x, y, width, height -> the same about the same middle, enlarged to the network's aspect and by MARGIN."""
    corner, extent = boxes.split(2, 1)
    aspect = size[1] / size[0]
    width = torch.maximum(extent[:, 0], extent[:, 1] * aspect)
    wanted = MARGIN * torch.stack([width, width / aspect], 1)
    return torch.cat([corner + (extent - wanted) / 2, wanted], 1)


def crops(images: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 3, H, W) and (N, 4) -> (N, 3, h, w), bilinear, black outside; the corners' pixels lie on the box (UDP)."""
    height, width = images.shape[-2:]
    x = places[:, :1] + places[:, 2:3] * torch.linspace(0, 1, size[1], device=images.device)
    y = places[:, 1:2] + places[:, 3:] * torch.linspace(0, 1, size[0], device=images.device)
    grid = torch.stack(torch.broadcast_tensors(x[:, None] / (width - 1), y[:, :, None] / (height - 1)), 3) * 2 - 1
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def peaks(heat: Tensor) -> Tensor:
    """(N, K, h, w) -> (N, K, 3): column and row of the highest point, and its height.

    Between pixels by the parabola through the logarithms of three neighbours, which is exact for a Gaussian.
    """
    height, flat = heat.flatten(2).max(2)
    rows, columns = flat // heat.shape[-1], flat % heat.shape[-1]
    log = heat.clamp_min(1e-6).log()
    along = [
        _offset(log.gather(2, rows[..., None, None].expand(-1, -1, 1, heat.shape[-1]))[:, :, 0], columns),
        _offset(log.gather(3, columns[..., None, None].expand(-1, -1, heat.shape[-2], 1))[..., 0], rows),
    ]
    return torch.stack([columns + along[0], rows + along[1], height], 2)


def _offset(line: Tensor, peak: Tensor) -> Tensor:
    """(N, K, L) values with their highest at (N, K) -> where the parabola through it and its neighbours peaks."""
    inside = peak.clamp(1, line.shape[-1] - 2)
    before, at, after = (line.gather(2, (inside + step)[..., None])[..., 0] for step in (-1, 0, 1))
    curve = before - 2 * at + after
    shift = torch.where(curve < 0, (before - after) / (2 * curve), 0).clamp(-0.5, 0.5)
    return torch.where(inside == peak, shift, 0)


def placed(joints: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Joints in pixels of a heat map -> in pixels of the picture, whose first pixel's middle is 0.5, 0.5."""
    last = joints.new_tensor([size[1] - 1, size[0] - 1])
    xy = joints[..., :2] / last * places[:, None, 2:] + places[:, None, :2] + 0.5
    return torch.cat([xy, joints[..., 2:]], 2)


class Files:
    """Stands in for a detector: people that another program has found, by the names of their pictures."""

    def __init__(self, folder: str, keypoints: int) -> None:
        self.people, self.left_out = read_folder(SETTING, folder)
        self.keypoints = keypoints
        self.identity = json.dumps([digest(folder), keypoints])

    def __call__(self, images: Tensor) -> Tensor:
        raise UserError("task.detector=openpose: reads files and looks at no picture; it serves lpo-prepare pose=")

    def of(self, name: str, size: tuple[int, int] | None = None) -> Tensor:
        """(P, keypoints, 3) in a picture of `size` (width, height), null for the one they were found in.

        Nobody where there is no file. Raises BadKeypoints where they are those of a picture of other proportions.
        """
        found = self.people.get(name)
        people = torch.zeros(0, WHOLE, 3) if found is None else torch.from_numpy(whole(fitted(found, size)))
        return people[:, : self.keypoints]


class Pose(Task):
    """Poses, (B, P, 17, 3): x, y in pixels of a square picture of side `resolution`, visibility 0 or 1; P people.

    A row without a visible joint is nobody.

    Args:
        detector: `published` is ViTPose, `toy` that of the embedded world, `blazepose` the networks of mediapipe's
            wheel, `openpose` keypoint files. `auto` is toy where model or data are embedded, else published.
        weights: folder or hub id of a ViTPose, the wheel of mediapipe, or the folder of keypoint files that
            lpo-prepare reads.
        people: folder or hub id of a person detector. Null takes the whole picture for one person. blazepose has its
            own person detector.
        pretrained: false draws the pose network at random and takes the whole picture for one person.
        person_threshold: the smallest score of a person, 0 to 1.
        joint_threshold: the smallest score of a visible joint, 0 to 1.
        judge: weights of a second detector, by which pose/oks_judge is measured. The embedded world has one.
        whole_body: poses are (B, P, 133, 3) in the order of COCO-WholeBody and are drawn with hands and face. Scores
            are computed from the 17.
        drawing: `smooth`, or `opencv`, with the pixels of published skeletons, whose limbs are wider (skeleton.draw).
    """

    name: ClassVar[str] = "pose"
    annotated: ClassVar[Literal["people"]] = "people"
    scores: ClassVar[dict[str, bool]] = {"pose/oks": True, "pose/ap": True}

    def __init__(
        self,
        detector: Choice = "auto",
        weights: str = PUBLISHED,
        people: str | None = PEOPLE,
        pretrained: bool = True,
        person_threshold: Share = 0.3,
        joint_threshold: Share = 0.3,
        judge: str | None = None,
        whole_body: bool = False,
        drawing: Drawing = "smooth",
        *,
        resolution: Count = 512,
        toy: bool = False,
    ) -> None:
        self.toy, self.resolution, self.drawing = wants_toy(detector, toy), resolution, drawing
        self.person_threshold, self.joint_threshold = person_threshold, joint_threshold
        if whole_body and (self.toy or detector == "blazepose"):
            raise UserError(f"task.whole_body=true: task.detector={detector} finds no hands and faces; published does")
        made = partial(_made, people=people, pretrained=pretrained, threshold=person_threshold)
        keypoints = WHOLE if whole_body else JOINTS
        self.detector = Embedded() if self.toy else made(weights, detector, keypoints=keypoints)
        kind = "blazepose" if judge and judge.endswith(".whl") else "published"
        self.second = Embedded(SECOND) if self.toy else judge and made(judge, kind, keypoints=JOINTS)

    @property
    def fingerprint(self) -> str:
        thresholds = (self.person_threshold, self.joint_threshold)
        drawn = () if self.drawing == "smooth" else (self.drawing,)
        return json.dumps([self.name, self.detector.identity, *thresholds, self.resolution, *drawn])

    def find(self, images: Tensor, detector: Detector | None = None) -> Tensor:
        """(B, P, K, 3): x, y in pixels of the images, and the detector's score."""
        found = (detector or self.detector)(images)
        return _of_toy(found.joints, images) if self.toy else found

    def detect(self, images: Tensor) -> Tensor:
        return self._people(images, self.detector)

    def second_scores(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        """pose/oks_judge: pose/oks by the second detector."""
        if self.second is None:
            return {}
        return {"pose/oks_judge": self.score(self._people(images, self.second), target)["pose/oks"]}

    @torch.no_grad()
    def _people(self, images: Tensor, detector: Detector) -> Tensor:
        people = self.find(images, detector)
        scale = people.new_tensor([self.resolution / side for side in images.shape[:1:-1]])
        visible = (people[..., 2:] > self.joint_threshold).float()
        return torch.cat([people[..., :2] * scale, torch.ones_like(visible)], 3) * visible

    def render(self, maps: Tensor) -> Tensor:
        return torch.stack([draw(people, self.resolution, self.drawing) for people in maps])

    def agreement(self, control: Tensor, maps: Tensor) -> Tensor:
        """Of the visible joints in the picture, those near which something is drawn; of nobody, whether nothing is."""
        reach = max(2, round(NEAR * control.shape[-1]))
        drawn = (control.amax(1, keepdim=True) > DARK).float()
        near = F.max_pool2d(drawn, 2 * reach + 1, 1, reach)[:, 0]
        shares = []
        for picture, people in zip(near, maps, strict=True):
            joints = people[..., :JOINTS, :].flatten(0, -2)
            column, row = joints[joints[:, 2] > 0, :2].floor().long().T
            inside = (column >= 0) & (row >= 0) & (column < picture.shape[1]) & (row < picture.shape[0])
            lit = picture[row[inside], column[inside]]
            shares.append(lit.mean() if len(lit) else 1 - picture.amax())
        return torch.stack(shares)

    def parse(self, control: Tensor) -> Tensor:
        """One person for each picture; what can be read of a drawing says skeleton.read_person."""
        return torch.stack([read_person(picture) for picture in control])

    def distance(self, maps: Tensor, target: Tensor) -> Tensor:
        """1 - OKS, the mean over the target's people; where it has none, 1 if the maps have somebody."""
        return 1 - torch.stack([_oks(*pair) for pair in _pairs(maps, target)])

    def score(self, maps: Tensor, target: Tensor) -> dict[str, Tensor]:
        """pose/oks: COCO's OKS with the best prediction of each person. pose/ap: CPO's mAP as reported.

        Both are nan for a picture whose target shows nobody.
        """
        nobody = torch.tensor(torch.nan, device=maps.device)
        pairs = _pairs(maps, target)
        return {
            "pose/oks": torch.stack([_oks(found, wanted) if len(wanted) else nobody for found, wanted in pairs]),
            "pose/ap": torch.stack([reported_ap(found, wanted) if len(wanted) else nobody for found, wanted in pairs]),
        }


def _made(
    weights: str, kind: Choice, *, people: str | None, pretrained: bool, threshold: float, keypoints: int
) -> Detector | Files:
    if kind == "openpose":
        return Files(weights, keypoints)
    if kind == "blazepose":
        return blazepose(weights, threshold)
    identity = [identity_of(weights, pretrained), people and identity_of(people, pretrained)]
    if keypoints != JOINTS:
        identity.append(keypoints)
    return Detector(PoseNetwork(weights, people, pretrained, threshold, keypoints), json.dumps(identity))


def _pairs(maps: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The bodies of each item, without the empty rows."""
    bodies = zip(maps[..., :JOINTS, :], target[..., :JOINTS, :], strict=True)
    return [(a[_there(a)], b[_there(b)]) for a, b in bodies]


def _there(people: Tensor) -> Tensor:
    return (people[..., 2] > 0).any(1)


def _oks(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean over people of the best OKS; of nobody, 1 if nobody was found."""
    if len(wanted) == 0 or len(found) == 0:
        return wanted.new_tensor(float(len(wanted) == len(found)))
    return oks(found, wanted).amax(1).mean()


def _of_toy(joints: Tensor, images: Tensor) -> Tensor:
    """(B, 17, 64, 64) heat maps -> (B, 1, 17, 3) in pixels of the images."""
    found = peaks(joints)
    scale = found.new_tensor([side / joints.shape[-1] for side in images.shape[:1:-1]])
    return torch.cat([(found[..., :2] + 0.5) * scale, found[..., 2:]], 2)[:, None]
