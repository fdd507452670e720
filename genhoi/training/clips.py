"""The clips that a run's settings name: opened, and encoded once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from genhoi.bases.base import Base
from genhoi.data.clip_dataset import ClipDataset
from genhoi.data.encoded import EncodedClips, conditions_for, encode_dataset
from genhoi.data.folders import find_clips
from genhoi.data.sample import HOIDataset
from genhoi.training.config import TrainConfig

__all__ = ["encode_clips", "encode_samples", "has_samples", "open_clips"]

_MAX_WORKERS = 8
_FEW_CLIPS = 32


def open_clips(config: TrainConfig) -> HOIDataset:
    """Open the clips to train on.

    Raises:
        FileNotFoundError, ValueError: as `find_clips` and `ClipDataset`.
        ImportError: synthetic clips need scikit-image.
    """
    if config.data == "synthetic":
        return _synthetic(config, "train", config.clips)
    return ClipDataset(
        find_clips(config.data),
        frames=config.frames,
        size=(config.height, config.width),
        windows="all",
        object_from_mask=config.object_from_mask,
    )


def encode_clips(
    base: Base,
    config: TrainConfig,
    dataset: HOIDataset,
    folder: Path,
    *,
    progress: Callable[[int, int], object],
) -> EncodedClips:
    """Encode the clips to train on, or take a folder where this has been done.

    Args:
        base: of the run.
        config: its settings.
        dataset: of `open_clips`.
        folder: of the encoded clips.
        progress: called with (done, of how many).

    Raises:
        FileExistsError, ValueError: as `encode_dataset`.
    """
    return encode_dataset(
        base,
        dataset,
        folder,
        given=conditions_for(base, config.given),
        workers=_workers(config, len(dataset)),
        progress=progress,
    )


def has_samples(config: TrainConfig) -> bool:
    """Say whether a run draws sample sheets of clips that it is not trained on."""
    return config.data == "synthetic" and bool(config.sample_every and config.samples)


def encode_samples(base: Base, config: TrainConfig, folder: Path) -> None:
    """Encode the clips of the sample sheets; other ones in the folder are replaced.

    Raises:
        ImportError: synthetic clips need scikit-image.
    """
    held_out = _synthetic(config, "test", config.samples)
    given = conditions_for(base, config.given)
    try:
        encode_dataset(base, held_out, folder, given=given)
    except FileExistsError:  # of another number, say; they are few
        shutil.rmtree(folder)
        encode_dataset(base, held_out, folder, given=given)


def _synthetic(config: TrainConfig, split: Literal["train", "test"], clips: int) -> HOIDataset:
    from genhoi.data.synthetic import SyntheticHOI

    return SyntheticHOI(
        split,
        clips=clips,
        frames=config.frames,
        size=(config.height, config.width),
        mask=config.mask,
        seed=config.data_seed,
    )


def _workers(config: TrainConfig, clips: int) -> int:
    """Choose how many processes read or draw clips, where the settings do not say."""
    if config.workers or clips < _FEW_CLIPS:
        return config.workers  # to start processes takes longer than to draw a few clips
    # Windows of one clip are decoded together, by one process, while this one encodes.
    return min(os.cpu_count() or 1, _MAX_WORKERS) if config.data == "synthetic" else 1
