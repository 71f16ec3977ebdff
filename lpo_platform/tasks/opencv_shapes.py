"""Filled shapes with the pixels that OpenCV gives them, in which published skeletons are drawn."""

import math

import torch
from torch import Tensor


def disc(x: float, y: float, radius: int, resolution: int) -> Tensor:
    """cv2.circle, filled, about the whole pixel that (x, y) lies in: (R, R) bool."""
    column, row = torch.arange(resolution), torch.arange(resolution)[:, None]
    return (column - math.floor(x)).square() + (row - math.floor(y)).square() <= radius**2


def limb(start: list[float], end: list[float], half_width: int, resolution: int) -> Tensor:
    """The ellipse between two joints as OpenPose's drawing makes it, (R, R) bool.

    cv2.ellipse2Poly of whole pixels and whole degrees, then cv2.fillConvexPoly, which colours the outline, too: a limb
    is 2 half_width + 1 pixels wide.
    """
    (xa, ya), (xb, yb) = start[:2], end[:2]
    middle = torch.tensor([int((xa + xb) / 2), int((ya + yb) / 2)])
    length, degrees = math.hypot(xb - xa, yb - ya), int(math.degrees(math.atan2(ya - yb, xa - xb)))
    corners = middle + _ellipse(int(length / 2), half_width, degrees)
    kept = (corners != corners.roll(1, 0)).any(1)
    return _filled(_outline(corners[kept] if kept.any() else corners[:1]), resolution)


def _ellipse(half_length: int, half_width: int, degrees: int) -> Tensor:
    """Its points at every degree, about the origin, rounded: (360, 2)."""
    around, turn = torch.deg2rad(torch.arange(360).double()), math.radians(degrees)
    along, across = half_length * around.cos(), half_width * around.sin()
    x = along * math.cos(turn) - across * math.sin(turn)
    y = along * math.sin(turn) + across * math.cos(turn)
    return torch.stack([x, y], 1).mul(1e6).round().div(1e6).round().long()  # halves are halves, whatever cos rounds


def _outline(corners: Tensor) -> Tensor:
    """The pixels of the lines from corner to corner, (N, 2) x, y: Bresenham's, from the left end, and the crossings."""
    pixels = [corners]
    for start, end in zip(corners.tolist(), corners.roll(-1, 0).tolist(), strict=True):
        (xa, ya), (xb, yb) = sorted([start, end])
        steps = max(xb - xa, abs(yb - ya))
        if steps > 1:
            number = torch.arange(1, steps)
            x, y = (_along(number, size, steps) for size in (xb - xa, yb - ya))
            pixels += [torch.stack([xa + x, ya + y], 1), _crossings(start, end)]
    return torch.cat(pixels)


def _along(number: Tensor, size: int, steps: int) -> Tensor:
    """size * number / steps as whole numbers; halves are rounded towards the start."""
    whole = -((steps - 2 * abs(size) * number) // (2 * steps))
    return whole if size >= 0 else -whole


def _crossings(start: list[int], end: list[int]) -> Tensor:
    """Where the rows between two corners meet their line, to which the filling reaches; halves are rounded up."""
    (xa, ya), (xb, yb) = sorted([start, end], key=lambda corner: corner[1])
    rows, height = torch.arange(1, max(1, yb - ya)), yb - ya
    return torch.stack([xa + (2 * rows * (xb - xa) + height) // (2 * max(1, height)), ya + rows], 1)


def _filled(outline: Tensor, resolution: int) -> Tensor:
    """Each row from the first to the last pixel of a convex outline."""
    x, y = outline.T
    inside = (y >= 0) & (y < resolution)
    rows, columns = y[inside], x[inside]
    first = torch.full((resolution,), resolution).scatter_reduce(0, rows, columns, "amin")
    last = torch.full((resolution,), -1).scatter_reduce(0, rows, columns, "amax")
    column = torch.arange(resolution)
    return (column >= first[:, None]) & (column <= last[:, None])
