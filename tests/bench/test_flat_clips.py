"""The ablation study's clips stay what its results were measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="scikit-image carries the photographs")

from benchmarks.ablation.flat import FlatHOI

RECORDED = Path(__file__).parent / "flat_clips.npz"  # of the study's day; bits of masks are packed
CASES = {
    "train": (1, FlatHOI("train", clips=4, frames=3, size=(32, 40), mask="tight", seed=5)),
    "test": (2, FlatHOI("test", clips=4, frames=3, size=(40, 32), mask="box", seed=5)),
}

# So many values may differ on another CPU.
SHARES = {
    "frames": 0.01,
    "picture": 0.01,
    "boxes": 0.1,
    "mask": 0.005,
    "object_mask": 0.005,
    "hand_mask": 0.005,
}


@pytest.mark.parametrize("split", CASES)
def test_clips_are_those_of_the_study(split: str) -> None:
    index, clips = CASES[split]
    sample = clips[index]
    with np.load(RECORDED) as arrays:
        wanted = {key: arrays[f"{split}/{key}"] for key in SHARES | {"coordinates": 0}}
    assert sample.name == f"{split}-5-{index:05}"
    assert sample.object_mask is not None and sample.hand_mask is not None
    came = {
        "frames": sample.clip.frames,
        "picture": sample.object[::4, ::4],
        "boxes": sample.object_boxes,
        "mask": sample.mask,
        "object_mask": sample.object_mask,
        "hand_mask": sample.hand_mask,
    }
    for key, share in SHARES.items():
        value = np.asarray(came[key])
        if value.dtype == bool:
            value = np.unpackbits(np.packbits(value))
            wanted[key] = np.unpackbits(wanted[key])
        # The last bit of a float may differ: by one level, or a pixel at an edge.
        different = np.abs(value.astype(float) - wanted[key].astype(float))
        assert (different > 0).mean() <= share and different.max(initial=0) <= 1, key
    torch.testing.assert_close(
        clips.coordinates(index), torch.from_numpy(wanted["coordinates"]), rtol=1e-4, atol=1e-4
    )


def test_lengths_sizes_and_options_are_checked() -> None:
    for options, match in (
        ({"size": (31, 40)}, r"size: got \(31, 40\), wanted at least"),
        ({"frames": 0}, "clips, frames: got 4 and 0"),
        ({"mask": "round"}, "mask: got 'round'"),
    ):
        with pytest.raises(ValueError, match=match):
            FlatHOI("train", **({"clips": 4} | options))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split: got 'all'"):
        FlatHOI("all", clips=1)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="wanted 0 to 3"):
        CASES["train"][1][4]
