"""genhoi convert, and edits with what it wrote."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from support.tiny_base import save_tiny_base
from support.tiny_wan import lively_adapter, tiny_wan

from genhoi import Clip, GenHOIAdapter, GenHOIPipeline, from_official, to_official
from genhoi.bases.load import base_config, check_base, load_base, shipped_adapters
from genhoi.bases.mosaic import MosaicBase
from genhoi.bases.replaced import check_same_sizes
from genhoi.cli.group import main

PUBLISHED = "GenHOI_wan_flf.consolidated"
OTHERS = ["image_encoder", "image_processor", "scheduler", "text_encoder", "tokenizer", "vae"]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as it is downloaded, with weights that are not the published ones."""
    return save_tiny_base(tmp_path_factory.mktemp("stock") / "stock")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published weights, small."""
    path = tmp_path_factory.mktemp("weights") / PUBLISHED
    torch.manual_seed(11)
    model = tiny_wan()
    with torch.no_grad():
        model.proj_out.bias.add_(0.25)
    torch.save(to_official(model, lively_adapter(model)), path)
    return path


@pytest.fixture(scope="module")
def whole(stock: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of both."""
    out = tmp_path_factory.mktemp("whole") / "genhoi"
    result = convert("--weights", weights, "--pipeline", stock, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def convert(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def refused(match: str, *arguments: Any) -> None:
    result = convert(*arguments)
    assert result.exit_code == 1
    assert match in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1


def is_published(transformer: Any, adapter: GenHOIAdapter, weights: Path) -> bool:
    wanted = torch.load(weights, weights_only=True)
    got = to_official(transformer, adapter)
    return set(got) == set(wanted) and all(torch.equal(got[n], x) for n, x in wanted.items())


# ------------------------------------------------------------------------- transformer and adapter


def test_two_folders(weights: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "config.json", tmp_path / "out"
    config.write_text(json.dumps({"num_heads": 4, "eps": 1e-6}))
    arguments = ["--weights", weights, "--config", config, "--out", out]
    assert convert(*arguments).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["adapter", "transformer"]
    assert len({path.stat().st_mode & 0o777 for path in out.glob("*/*")}) == 1
    transformer = WanTransformer3DModel.from_pretrained(out / "transformer")
    assert is_published(transformer, GenHOIAdapter.from_pretrained(out / "adapter"), weights)
    refused("--out: ", *arguments)
    refused("--force overwrites it", *arguments)
    left = tmp_path / ".out.01234567.tmp"  # by a program that was killed
    left.mkdir()
    assert convert(*arguments, "--force").exit_code == 0
    config.write_text(json.dumps({"num_heads": 5}))
    refused("config['num_heads']: got 5, wanted 4", *arguments, "--force")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "out"]


def test_what_is_not_ours_is_not_replaced(stock: Path, weights: Path, tmp_path: Path) -> None:
    arguments = ["--weights", weights, "--force", "--out"]
    refused("lacks transformer/ or adapter/: not replaced", *arguments, stock)
    (tmp_path / "mine.txt").write_text("")
    refused("holds mine.txt: not replaced", *arguments, tmp_path)
    refused("is a file, wanted a folder", *arguments, tmp_path / "mine.txt")
    for out in (stock, stock / "vae" / "new"):
        refused(
            "in the folder of the pipeline; wanted one apart", *arguments, out, "--pipeline", stock
        )


def test_a_disk_that_is_too_small(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    refused("got 1e-06 GB of free space, wanted", "--weights", weights, "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_stands_half_written(
    stock: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(GenHOIAdapter, "save_pretrained", no_space)
    arguments = ["--weights", weights, "--pipeline", stock, "--out", tmp_path / "out"]
    refused("no space left", *arguments)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ a whole pipeline


def test_links_and_converted_parts(stock: Path, weights: Path, whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == sorted(
        ["adapter", "transformer", "model_index.json", *OTHERS]
    )
    for name in OTHERS:
        assert not os.path.isabs(os.readlink(whole / name))
        assert (whole / name).resolve() == (stock / name).resolve()
    pipe = WanImageToVideoPipeline.from_pretrained(whole)
    (adapter,) = shipped_adapters(whole)
    assert adapter == whole / "adapter"
    assert is_published(pipe.transformer, GenHOIAdapter.from_pretrained(adapter), weights)


def test_its_adapter_comes_with_it(whole: Path) -> None:
    pipeline = GenHOIPipeline.from_pretrained(whole)
    assert pipeline.adapter_trained and pipeline.attachment.options.schedule == "release"


def test_copies(stock: Path, weights: Path, tmp_path: Path) -> None:
    """Of a pipeline whose transformer was not downloaded; they replace links, which lead on."""
    bare = tmp_path / "bare"
    shutil.copytree(stock, bare, ignore=shutil.ignore_patterns("diffusion_pytorch_model*"))
    shutil.copytree(stock / "vae", bare / "vae", dirs_exist_ok=True)
    arguments = ["--weights", weights, "--pipeline", bare, "--out", tmp_path / "out"]
    result = convert(*arguments)
    assert result.exit_code == 0, result.output
    assert "Links, to be kept where they lead: " in result.output
    result = convert(*arguments, "--copy", "--force")
    assert result.exit_code == 0, result.output
    assert "Copies: " in result.output and "--base" in result.output
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    shutil.rmtree(bare)
    check_base(tmp_path / "out")


def test_copies_where_links_are_impossible(
    stock: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impossible(*_: Any, **__: Any) -> None:
        raise OSError("not permitted")

    monkeypatch.setattr(Path, "symlink_to", impossible)
    result = convert("--weights", weights, "--pipeline", stock, "--out", tmp_path / "out")
    assert "Copies, for links are impossible here: " in result.output
    check_base(tmp_path / "out")


def test_other_pipelines(stock: Path, weights: Path, tmp_path: Path) -> None:
    arguments = ["--weights", weights, "--out", tmp_path / "out"]
    refused("--pipeline: there is no folder nowhere", *arguments, "--pipeline", "nowhere")
    refused("--copy: got it without --pipeline", *arguments, "--copy")
    other = tmp_path / "other"
    shutil.copytree(stock, other)
    path = other / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 40, "ffn_dim": 80}))
    sizes = "the converted one, wanted the base's sizes: it has ffn_dim"
    refused(sizes, *arguments, "--pipeline", other)
    refused("num_layers 2 instead of 40", *arguments, "--pipeline", other)
    shutil.rmtree(other / "vae")
    refused("lacks vae/ (weights)", *arguments, "--pipeline", other)
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------- another transformer


def clip() -> tuple[Clip, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (5, 32, 48, 3), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(5, 32, 48, dtype=torch.bool)
    mask[:, :16, 16:32] = True
    return Clip(frames), mask, frames[0, :16, :16]


@pytest.mark.filterwarnings("ignore::genhoi.EditWarning")
def test_on_a_stock_base(stock: Path, whole: Path, tmp_path: Path) -> None:
    """As the whole pipeline edits; the stock transformer's weights are not even looked at."""
    bare = tmp_path / "bare"
    shutil.copytree(stock, bare)
    for path in (bare / "transformer").glob("*.safetensors"):
        path.write_bytes(b"")
    parts = {"transformer": whole / "transformer", "adapter": whole / "adapter"}
    put_together = GenHOIPipeline.from_pretrained(bare, **parts)
    one = GenHOIPipeline.from_pretrained(whole)
    arguments = {"steps": 2, "window": 5, "progress_bar": False}
    edited = put_together(*clip(), **arguments)
    assert torch.equal(edited.frames, one(*clip(), **arguments).frames)

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one(*clip(), parts=tmp_path / "parts", callback=interrupt, **arguments)
    with pytest.raises(FileExistsError, match="an unfinished edit with other inputs or settings"):
        put_together(*clip(), parts=tmp_path / "parts", **arguments)
    assert put_together.base.about == f"{bare}, with the transformer of {whole / 'transformer'}"


def test_its_sizes_are_the_bases(stock: Path, whole: Path, tmp_path: Path) -> None:
    transformer = whole / "transformer"
    assert base_config(stock, transformer=transformer) == base_config(stock)
    with pytest.raises(ValueError, match=r"transformer: got the one in .*instead of"):
        base_config("mosaic-untrained", transformer=transformer)
    with pytest.raises(FileNotFoundError, match=r"transformer: there is no .*config\.json; wanted"):
        base_config(stock, transformer=whole)
    with pytest.raises(TypeError, match=r"transformer: .*vae holds a AutoencoderKLWan; wanted"):
        base_config(stock, transformer=whole / "vae")
    other = "a WanVACETransformer3DModel, wanted a WanTransformer3DModel as the base's own"
    with pytest.raises(ValueError, match=f"got VACE's, {other}"):
        vace = {"_class_name": "WanVACETransformer3DModel", "num_layers": 2, "vace_layers": [0]}
        check_same_sizes(vace, base_config(stock), what="VACE's")
    shutil.copy(transformer / "config.json", tmp_path)
    assert base_config(stock, transformer=tmp_path) == base_config(stock)
    with pytest.raises(FileNotFoundError, match="transformer: there are no weights in"):
        check_base(stock, transformer=tmp_path)


def test_on_a_mosaic_base(tmp_path: Path) -> None:
    """Its own adapter does not come with it, for that was trained on other weights."""
    base, other = tmp_path / "base", tmp_path / "other"
    MosaicBase().save_pretrained(base, about="a test")
    lively_adapter(MosaicBase().transformer).save_pretrained(base / "adapter")
    assert GenHOIPipeline.from_pretrained(base).adapter_trained
    load_base("mosaic-untrained", seed=7).transformer.save_pretrained(other)
    with pytest.raises(ValueError, match=f"got none, wanted one that was trained on {other}"):
        GenHOIPipeline.from_pretrained(base, transformer=other)
    loaded = load_base(base, transformer=other, dtype=torch.bfloat16)
    assert loaded.trained and loaded.about == f"mosaic, with the transformer of {other}"
    wanted = load_base("mosaic-untrained", seed=7, dtype=torch.bfloat16).transformer.state_dict()
    assert all(torch.equal(x, wanted[n]) for n, x in loaded.transformer.state_dict().items())


def test_the_weights_are_those_of_the_release(weights: Path) -> None:
    assert is_published(*from_official(torch.load(weights, weights_only=True)), weights)
