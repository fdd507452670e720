"""The tiny base that comes with the package: whole, small, and good at what its card says."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from safetensors.torch import load_file

from genhoi import GenHOIAdapter, GenHOIPipeline, attach
from genhoi.bases.load import base_kind, base_settings, load_base, shipped_adapters
from genhoi.bases.wan import WanBase
from genhoi.bases.wan_files import SHIPPED
from genhoi.data.encoded import EncodedClips, encode_dataset
from genhoi.data.synthetic import SyntheticHOI
from genhoi.evaluation.metrics import region_mean, region_psnr, squared_error
from genhoi.training.reconstruction import rebuild

FOLDER = SHIPPED["tiny"]


def test_its_files_are_small_and_name_no_folder_of_a_machine() -> None:
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
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for word in ("Data", "Training", "Metrics", "Limits", "genhoi train", "seed"):
        assert word in card, word


def test_it_is_a_plain_pipeline_and_the_default() -> None:
    pipe = WanImageToVideoPipeline.from_pretrained(FOLDER)
    assert pipe.vae.config.z_dim == pipe.transformer.config.out_channels == 16
    assert base_kind("tiny") is WanBase and base_settings("tiny").trained
    assert base_settings("tiny").defaults.guidance == 1
    assert shipped_adapters("tiny") == (FOLDER / "adapter",)
    pipeline = GenHOIPipeline.from_pretrained()
    assert pipeline.base.trained and pipeline.adapter_trained


CLIPS = SyntheticHOI("test", clips=6, frames=17, seed=11)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> EncodedClips:
    pytest.importorskip("skimage", reason="scikit-image carries the photographs")
    folder = tmp_path_factory.mktemp("latents") / "test"
    return encode_dataset(load_base("tiny"), CLIPS, folder, given=("none",))


def test_its_codec_gives_held_out_clips_back(held_out: EncodedClips) -> None:
    base = load_base("tiny")
    for i in range(2):
        latents = held_out.take("clean", [i])
        assert latents.shape == (1, 16, 5, 16, 16) and 0.5 < latents.std() < 2
        frames = CLIPS[i].clip.frames
        assert region_psnr(squared_error(base.decode(latents), frames)).mean() > 28


def test_it_paints_the_object_it_is_given(held_out: EncodedClips) -> None:
    """On clips and objects that nobody trained on: closer to the truth with the right picture than
    with another clip's, and the background stays."""
    base = load_base("tiny")
    attachment = attach(base.transformer, GenHOIAdapter.from_pretrained(FOLDER / "adapter").float())
    indices = list(range(len(held_out)))

    def errors(objects: list[int]) -> tuple[float, float]:
        """Root mean square in the object's region, and in the background."""
        latents = rebuild(
            base, attachment, held_out, indices, given="none", objects=objects, steps=8
        )
        inside, outside = [], []
        for i in indices:
            truth = base.decode(held_out.take("clean", [i]))
            error = squared_error(base.decode(latents[i : i + 1]), truth)
            sample = CLIPS[i]
            inside.append(region_mean(error, sample.object_mask).nanmean())
            outside.append(region_mean(error, ~sample.mask).mean())
        return float(torch.stack(inside).mean().sqrt()), float(torch.stack(outside).mean().sqrt())

    own, background = errors(indices)
    others, _ = errors(indices[1:] + indices[:1])
    assert own < 0.75 * others
    assert background < 5
