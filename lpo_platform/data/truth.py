"""The condition of samples: as the data has annotated it, or else what the task detects in their pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lpo_platform.data.source import Sample
from lpo_platform.tasks.task import Task


def control_of(samples: list[Sample], task: Task, images: Tensor) -> Tensor:
    """The control images (B, 3, H, W) that training shows for samples with these images (B, 3, H, W)."""
    if samples[0].condition is not None:
        return _annotated(samples, images)
    return task.render(_labels(samples, images)) if samples[0].labels is not None else task.shown_in_training(images)


def truth_of(samples: list[Sample], task: Task, images: Tensor) -> tuple[Tensor, Tensor]:
    """(maps, control images): what pictures drawn from these samples should show, and what they are drawn from.

    Maps are the annotated labels, else what can be read of the annotated control image, else (nothing is annotated, or
    a drawing of several people, which cannot be read) what is detected. That labels and control image of a row agree is
    looked at when it is read.
    """
    if samples[0].condition is None:
        maps = _labels(samples, images) if samples[0].labels is not None else task.detect(images)
        return maps, task.render(maps)
    control = _annotated(samples, images)
    if samples[0].labels is None:
        try:
            return task.parse(control), control
        except ValueError:
            return task.detect(images), control
    return _labels(samples, images), control


def asked_in_training(samples: list[Sample], task: Task, images: Tensor) -> tuple[Tensor, Tensor]:
    """truth_of, with the control images that training shows, where the task has others for it."""
    maps, control = truth_of(samples, task, images)
    detected = samples[0].condition is None and samples[0].labels is None
    return maps, control_of(samples, task, images) if detected and task.train_form is not None else control


def _annotated(samples: list[Sample], images: Tensor) -> Tensor:
    return torch.stack([sample.condition for sample in samples]).to(images.device)


def _labels(samples: list[Sample], images: Tensor) -> Tensor:
    """Label maps, or people with rows of zeros where others have more people or keypoints."""
    labels = [sample.labels for sample in samples]
    most = max(len(one) for one in labels)
    joints = max(one.shape[1] for one in labels)
    padded = [F.pad(one, (0, 0, 0, joints - one.shape[1], 0, most - len(one))) for one in labels]
    return torch.stack(padded).to(images.device)
