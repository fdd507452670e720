"""The tiny base: its files, its defaults, and what the shipped weights can do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from genhoi import GenHOIAdapter, attach
from genhoi.bases.load import (
    base_config,
    base_defaults,
    base_kind,
    check_base,
    load_base,
    shipped_adapters,
)
from genhoi.bases.tiny import SHIPPED_ADAPTER, SHIPPED_BASE, TINY_CONFIG, TinyBase
from genhoi.bases.wan import WanBase
from genhoi.data.encoded import EncodedClips, encode_dataset
from genhoi.data.synthetic import SyntheticHOI
from genhoi.editing.pipeline import GenHOIPipeline
from genhoi.evaluation.metrics import region_mean, squared_error
from genhoi.training.reconstruction import rebuild


def test_saved_and_loaded(tmp_path: Path) -> None:
    base = TinyBase(seed=3)
    base.save_pretrained(tmp_path / "base", about="a test")
    assert base_kind(tmp_path / "base") is TinyBase and base_kind(tmp_path) is WanBase
    loaded = load_base(tmp_path / "base")
    assert loaded.trained and loaded.about == "tiny: a test" and not base.trained
    wanted = base.transformer.state_dict()
    for name, weight in loaded.transformer.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, wanted[name].to(torch.bfloat16).float()), name
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "base").iterdir())


def test_folders_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="wanted the folder of a tiny base"):
        TinyBase(tmp_path)
    TinyBase().save_pretrained(tmp_path, about="")
    mark = tmp_path / "tiny_base.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"version": 2}))
    with pytest.raises(ValueError, match="wanted"):
        TinyBase(tmp_path)
    check_base(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="wanted the folder of a tiny base"):
        check_base(tmp_path)


def test_names() -> None:
    assert base_kind("tiny") is TinyBase and base_kind("tiny-untrained") is TinyBase
    assert base_kind("nothing-here") is WanBase
    assert base_config("tiny-untrained") == TINY_CONFIG
    assert base_defaults("tiny").guidance == 1 and base_defaults("nothing-here").guidance == 5
    assert shipped_adapters("tiny") == (SHIPPED_ADAPTER,) and not shipped_adapters("tiny-untrained")
    assert not load_base("tiny-untrained", seed=1).trained


# ------------------------------------------------------------------------------ what is shipped


def test_what_ships_is_small_and_loads() -> None:
    files = [p for folder in (SHIPPED_BASE, SHIPPED_ADAPTER) for p in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    assert all(path.suffix in (".safetensors", ".json") for path in files)
    pipeline = GenHOIPipeline.from_pretrained()
    assert pipeline.base.trained and pipeline.adapter_trained
    card = (SHIPPED_BASE.parent / "README.md").read_text(encoding="utf-8")
    for word in ("Data", "Training", "Metrics", "Limits", "genhoi train", "seed"):
        assert word in card, word


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> EncodedClips:
    pytest.importorskip("skimage", reason="scikit-image carries the photographs")
    dataset = SyntheticHOI("test", clips=6, seed=11)
    folder = tmp_path_factory.mktemp("latents") / "test"
    return encode_dataset(TinyBase(), dataset, folder, given=("none",))


def test_the_shipped_model_paints_the_object_it_is_given(held_out: EncodedClips) -> None:
    """On clips and objects that nobody trained on: closer to the truth with the right picture than
    with another clip's or none, and the background stays."""
    base = load_base("tiny")
    attachment = attach(base.transformer, GenHOIAdapter.from_pretrained(SHIPPED_ADAPTER).float())
    dataset = SyntheticHOI("test", clips=6, seed=11)
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
            sample = dataset[i]
            inside.append(region_mean(error, sample.object_mask).nanmean())
            outside.append(region_mean(error, ~sample.mask).mean())
        return float(torch.stack(inside).mean().sqrt()), float(torch.stack(outside).mean().sqrt())

    own, background = errors(indices)
    others, _ = errors(indices[1:] + indices[:1])
    assert own < 0.7 * others
    assert background < 8
