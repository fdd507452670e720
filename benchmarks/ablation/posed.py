"""Encoded clips with the object's pose in the condition.

Hand-object systems often get a pose or depth map beside the mask. Here the condition's last four
channels, which else carry changes of brightness within a latent frame, say of every latent pixel
where on the object it lies: (u, v, cos pi u, cos pi v), zero off the object. Given and hidden
frames have it alike, and so has the reference, about itself. So a base learns to copy what belongs
to the same place on the object, wherever it sees it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.ablation.flat import FlatHOI
from genhoi.data.encoded import EncodedClips

__all__ = ["PosedClips"]

_BEYOND = 1.3  # so far past the object's edge the pose is told
_CHANNELS = 4


class PosedClips(EncodedClips):
    """Encoded clips whose conditions and objects carry the object's pose.

    Args:
        folder: of the encoded clips.
        dataset: the same clips.
    """

    def __init__(self, folder: Path, dataset: FlatHOI) -> None:
        super().__init__(folder)
        self._dataset = dataset
        # Drawn from the scene, which takes longer than a sample's share of a training step.
        self._known: dict[int, Tensor] = {}
        self._aspects: dict[int, float] = {}

    def has(self, name: str) -> bool:
        """Say whether a part is there; "shown", the condition with every frame given, always is."""
        return name == "shown" or super().has(name)

    def take(self, name: str, indices: Sequence[int]) -> Tensor:
        """Take a part as `EncodedClips` does; conditions and objects come with the pose.

        Objects have all of the model's input channels.
        """
        if name == "object":
            return torch.stack([self._object(i) for i in indices])
        if name == "shown":
            clean = super().take("clean", indices)
            part = torch.cat([torch.zeros_like(clean[:, :4]), clean], dim=1)
        else:
            part = super().take(name, indices)
        if name in ("shown", "condition_none"):
            part[:, -_CHANNELS:] = torch.stack([self._pose(i) for i in indices])
        return part

    def _pose(self, index: int) -> Tensor:
        """Return the pose's features, [4, f, h, w]."""
        if index not in self._known:
            uv = self._dataset.coordinates(index)
            # The middle of the frames that a latent frame stands for.
            self._known[index] = _features(torch.cat([uv[:1], uv[2::4]])).half()
        return self._known[index].float()

    def _object(self, index: int) -> Tensor:
        """Return [4 + 2 C, 1, h, w]: the picture, no mask, the picture with its pose."""
        latent = super().take("object", [index])[0]
        height, width = latent.shape[-2:]
        if index not in self._aspects:
            self._aspects[index] = self._dataset.aspect(index)
        aspect = self._aspects[index]
        u = ((torch.arange(width) + 0.5) / width * 2 - 1) * max(1.0, aspect)
        v = ((torch.arange(height) + 0.5) / height * 2 - 1) * max(1.0, 1 / aspect)
        uv = torch.stack([u.expand(height, -1), v[:, None].expand(-1, width)], -1)
        posed = latent.clone()
        posed[-_CHANNELS:] = _features(uv[None])
        return torch.cat([latent, torch.zeros_like(latent[:4]), posed])


def _features(uv: Tensor) -> Tensor:
    """Turn positions [f, h, w, 2] into features [4, f, h, w]."""
    inside = (uv.abs().amax(-1, keepdim=True) < _BEYOND).float()
    features = torch.cat([uv.clamp(-_BEYOND, _BEYOND), torch.cos(math.pi * uv)], -1) * inside
    return features.permute(3, 0, 1, 2)
