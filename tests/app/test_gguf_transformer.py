"""A base's transformer from a GGUF file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_wan import lively_adapter
from support.tiny_wan22 import save_tiny_pipeline, tiny_expert
from torch import Tensor

from genhoi import Clip, GenHOIPipeline
from genhoi.bases import replaced
from genhoi.bases.load import check_base, load_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of text-to-video with one transformer, and its adapter."""
    folder = save_tiny_pipeline(tmp_path_factory.mktemp("gguf") / "base", "text", experts=False)
    lively_adapter(tiny_expert("text")).save_pretrained(folder / "adapter")
    return folder


def save_gguf(path: Path, weights: dict[str, Tensor]) -> Path:
    """Write weights as people share them: matrices of the blocks in 8 bits."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed (make test-quantized has it)")
    bits = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(path, "wan")
    for name, weight in weights.items():
        values = weight.detach().numpy()
        if name.startswith("blocks.") and values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, bits), raw_dtype=bits)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.filterwarnings("ignore::genhoi.EditWarning")
def test_an_edit_with_it(folder: Path, tmp_path: Path) -> None:
    """The result is near that of the weights before they were quantised, and not theirs."""
    file = save_gguf(tmp_path / "wan.gguf", tiny_expert("text").state_dict())
    clip = Clip(torch.full((5, 32, 32, 3), 90, dtype=torch.uint8))
    mask = torch.zeros(5, 32, 32, dtype=torch.bool)
    mask[:, :, :16] = True
    mug = torch.full((16, 16, 3), 200, dtype=torch.uint8)
    made = {}
    for transformer in (None, file):
        pipeline = GenHOIPipeline.from_pretrained(
            folder, adapter=folder / "adapter", transformer=transformer
        )
        seen: list[Any] = []
        options: Any = {"steps": 2, "guidance": 1.0, "parts": tmp_path / f"parts-{transformer}"}
        options["parts"] = tmp_path / ("own" if transformer is None else "gguf")
        pipeline(clip, mask, mug, callback=seen.append, progress_bar=False, **options)
        made[transformer] = seen[-1].latents
        if transformer is not None:
            weight = pipeline.base.transformer.blocks[0].attn1.to_q.weight
            assert weight.dtype == torch.uint8 and str(file) in pipeline.base.about
    difference = (made[None] - made[file]).abs()
    assert 0 < difference.max() < 0.1


def test_files_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    file = save_gguf(tmp_path / "image.gguf", tiny_expert("image").state_dict())
    check_base(folder, transformer=file)
    with pytest.raises(ValueError, match=r"transformer: .*image.gguf does not fit the base: "):
        load_base(folder, transformer=file)
    with pytest.raises(FileNotFoundError, match=r"transformer: there is no file .*none\.gguf"):
        check_base(folder, transformer=tmp_path / "none.gguf")


def test_without_the_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaced, "is_installed", lambda module: False)
    with pytest.raises(ImportError, match=r"a GGUF file needs the package gguf \(pip install"):
        check_base(folder, transformer=tmp_path / "wan.gguf")
