"""The record of an edit: everything needed to repeat it."""

from __future__ import annotations

import platform
import shlex
from dataclasses import asdict
from importlib import metadata
from typing import Any

import torch

import genhoi_kernels
from genhoi.editing.files import EditInputs
from genhoi.models.sampling import windows

__all__ = ["make_record"]


def make_record(
    options: dict[str, Any],
    inputs: EditInputs,
    pipeline: Any,
    settings: dict[str, Any],
    notes: list[str],
) -> dict[str, Any]:
    """What edit.json says before the results are there; plain JSON values.

    Args:
        options: of the command line.
        inputs: as read.
        pipeline: as used.
        settings: what the pipeline was called with.
        notes: what the user was told.
    """
    clip = inputs.clip
    return {
        "genhoi": genhoi_kernels.__version__,
        "repeat": shlex.join(["genhoi", "edit", *_arguments(options)]),
        "inputs": inputs.files,
        "clip": {
            "frames": clip.num_frames,
            "height": clip.height,
            "width": clip.width,
            "fps": str(clip.fps),
        },
        "settings": settings,
        "first_frame_given": inputs.first_frame is not None,
        "last_frame_given": inputs.last_frame is not None,
        "keep_background": options["keep_background"],
        "base": {
            "name": options["base"],
            "about": pipeline.base.about,
            "trained": pipeline.base.trained,
            "video_lora": None if options["video_lora"] is None else str(options["video_lora"]),
        },
        "adapter": {"name": options["adapter"], "trained": pipeline.adapter_trained},
        "attachment": asdict(pipeline.attachment.options),
        "dtype": options["dtype"],
        "device": options["device"],
        "windows": windows(clip.num_frames, options["window"]),
        "reference_passes": pipeline.attachment.reference_passes,
        "notes": notes,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": metadata.version("diffusers"),
            "machine": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
        },
    }


_FLAGS = {"keep_background"}
_NAMES = {"masks": "mask", "objects": "object", "strengths": "strength"}


def _arguments(options: dict[str, Any]) -> list[str]:
    """A command line that means the same, with every default written out."""
    words: list[str] = []
    for name, value in options.items():
        if name in ("force", "dry_run") or value is None:
            continue
        word = "--" + _NAMES.get(name, name).replace("_", "-")
        if name in _FLAGS:
            words += [word] if value else []
            continue
        for item in value if isinstance(value, tuple) else (value,):
            words += [word, str(item)]
    return words
