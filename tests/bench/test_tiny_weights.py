"""What there is of the tiny model in training: whole, small, and with a codec that is good."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from diffusers import WanImageToVideoPipeline
from safetensors.torch import load_file

from genhoi import GenHOIPipeline
from genhoi.bases.wan import WanBase
from genhoi.data.synthetic import SyntheticHOI
from genhoi.evaluation.metrics import region_psnr, squared_error

FOLDER = Path(__file__).parents[2] / "benchmarks" / "tiny_model" / "weights"


def test_it_is_a_small_plain_pipeline() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 4  # transformer, codec, adapter, the text encoder that says nothing
    for path in weights:
        assert all(weight.isfinite().all() for weight in load_file(path).values()), path
    for path in files:
        if path.suffix in (".json", ".md"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"[\" (]/\w+/", text), f"{path} names a folder of some machine"
    pipe = WanImageToVideoPipeline.from_pretrained(FOLDER)
    assert pipe.vae.config.z_dim == pipe.transformer.config.out_channels == 16


def test_its_codec_gives_held_out_clips_back() -> None:
    pytest.importorskip("skimage", reason="scikit-image carries the photographs")
    pipeline = GenHOIPipeline.from_pretrained(FOLDER)
    base = pipeline.base
    assert isinstance(base, WanBase) and base.trained and pipeline.adapter_trained
    for sample in SyntheticHOI("test", clips=2, frames=17, seed=11):
        latents = base.encode(sample.clip.frames)
        assert latents.shape == (1, 16, 5, 16, 16) and 0.5 < latents.std() < 2
        assert region_psnr(squared_error(base.decode(latents), sample.clip.frames)).mean() > 28
