"""Mosaic bases: their files, names and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

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
    assert base_kind("mosaic-untrained") is MosaicBase and base_kind("nothing-here") is WanBase
    assert base_config("mosaic-untrained") == MOSAIC_CONFIG
    defaults = [base_settings(name).defaults for name in ("mosaic-untrained", "nothing-here")]
    assert [x.guidance for x in defaults] == [1, 5]
    assert not shipped_adapters("mosaic-untrained")
    assert not base_settings("mosaic-untrained").trained
    assert not load_base("mosaic-untrained", seed=1).trained
