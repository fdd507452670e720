"""How things of the synthetic clips move: smooth random paths, and turns made of angles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Path", "as_tensor", "light_from", "smooth_path", "turned"]

Path = Callable[[float, float], np.ndarray]
"""(low, high) -> [T], a smooth random function of time within these bounds."""


def smooth_path(rng: Generator, time: np.ndarray, low: float, high: float) -> np.ndarray:
    """Move smoothly between two random values, with a swing on the way, within bounds.

    Args:
        rng: four numbers are drawn: start, end, and the swing's frequency and phase.
        time: [T], 0 at the start and 1 at the end.
        low, high: the bounds.

    Returns:
        float64 [T].
    """
    start, end = rng.uniform(low, high, 2)
    swing = 0.15 * (high - low) * np.sin(2 * np.pi * (rng.uniform(0.5, 1.5) * time + rng.random()))
    return np.clip(start + (end - start) * (time - np.sin(2 * np.pi * time) / 8) + swing, low, high)


def turned(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> Tensor:
    """Make rotations: about the own axis, then the top towards the viewer, then in the picture.

    Args:
        yaw, pitch, roll: [T], radians.

    Returns:
        float32 [T, 3, 3], from a thing's own frame to the camera's.
    """
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)

    def matrix(*entries: np.ndarray) -> np.ndarray:
        return np.stack(entries, -1).reshape(-1, 3, 3)

    c, s = np.cos(yaw), np.sin(yaw)
    about_y = matrix(c, zero, s, zero, one, zero, -s, zero, c)
    c, s = np.cos(pitch), np.sin(pitch)
    about_x = matrix(one, zero, zero, zero, c, -s, zero, s, c)
    c, s = np.cos(roll), np.sin(roll)
    about_z = matrix(c, -s, zero, s, c, zero, zero, zero, one)
    return as_tensor(about_z @ about_x @ about_y)


def light_from(x: np.ndarray, y: np.ndarray) -> Tensor:
    """Give the unit direction towards a light before the scene.

    Args:
        x, y: [T], how far it is to the right and below, over how far it is before the scene.

    Returns:
        float32 [T, 3].
    """
    return F.normalize(as_tensor(np.stack([x, y, -np.ones_like(x)], -1)), dim=-1)


def as_tensor(values: np.ndarray) -> Tensor:
    """Make a float32 tensor of an array."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
