"""The tiny base that comes with the package, and mosaic bases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.ablation.flat import FlatHOI
from genhoi import GenHOIAdapter, attach
from genhoi.bases.load import (
    base_config,
    base_kind,
    base_settings,
    check_base,
    load_base,
    shipped_adapters,
)
from genhoi.bases.mosaic import MOSAIC_CONFIG, MosaicBase
from genhoi.bases.wan import WanBase
from genhoi.bases.wan_files import SHIPPED
from genhoi.data.encoded import EncodedClips, encode_dataset
from genhoi.editing.pipeline import GenHOIPipeline
from genhoi.evaluation.metrics import region_mean, squared_error
from genhoi.training.reconstruction import rebuild

FOLDER = SHIPPED["tiny"]


def test_saved_and_loaded(tmp_path: Path) -> None:
    base = MosaicBase(seed=3)
    base.save_pretrained(tmp_path / "base", about="a test")
    assert base_kind(tmp_path / "base") is MosaicBase and base_kind(tmp_path) is WanBase
    loaded = load_base(tmp_path / "base")
    assert loaded.trained and loaded.about == "mosaic: a test" and not base.trained
    wanted = base.transformer.state_dict()
    for name, weight in loaded.transformer.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, wanted[name].to(torch.bfloat16).float()), name
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "base").iterdir())


def test_folders_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="wanted the folder of a mosaic base"):
        MosaicBase(tmp_path)
    MosaicBase().save_pretrained(tmp_path, about="")
    mark = tmp_path / "mosaic_base.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"version": 2}))
    with pytest.raises(ValueError, match="wanted"):
        MosaicBase(tmp_path)
    check_base(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="wanted the folder of a mosaic base"):
        check_base(tmp_path)


def test_names() -> None:
    assert base_kind("tiny") is MosaicBase and base_kind("mosaic-untrained") is MosaicBase
    assert base_kind("nothing-here") is WanBase
    assert base_config("mosaic-untrained") == MOSAIC_CONFIG
    defaults = [base_settings(name).defaults for name in ("tiny", "nothing-here")]
    assert [x.guidance for x in defaults] == [1, 5]
    assert shipped_adapters("tiny") == (FOLDER / "adapter",)
    assert not shipped_adapters("mosaic-untrained")
    assert base_settings("tiny").trained and not base_settings("mosaic-untrained").trained
    assert not load_base("mosaic-untrained", seed=1).trained


# ------------------------------------------------------------------------------ what is shipped


def test_what_ships_is_small_and_loads() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    for path in files:
        assert path.suffix in (".safetensors", ".json", ".md", ".yaml"), path
        if path.suffix == ".safetensors":
            assert all(weight.isfinite().all() for weight in load_file(path).values()), path
    pipeline = GenHOIPipeline.from_pretrained()
    assert pipeline.base.trained and pipeline.adapter_trained
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for word in ("Data", "Training", "Metrics", "Limits", "genhoi train", "seed"):
        assert word in card, word


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> EncodedClips:
    pytest.importorskip("skimage", reason="scikit-image carries the photographs")
    dataset = FlatHOI("test", clips=6, seed=11)
    folder = tmp_path_factory.mktemp("latents") / "test"
    return encode_dataset(MosaicBase(), dataset, folder, given=("none",))


def test_the_shipped_model_paints_the_object_it_is_given(held_out: EncodedClips) -> None:
    """On clips and objects that nobody trained on: closer to the truth with the right picture than
    with another clip's or none, and the background stays."""
    base = load_base("tiny")
    attachment = attach(base.transformer, GenHOIAdapter.from_pretrained(FOLDER / "adapter").float())
    dataset = FlatHOI("test", clips=6, seed=11)
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
