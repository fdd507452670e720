"""Weights of the release: there and back, from every kind of file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from support.tiny_wan import inputs, lively_adapter, shared_folder, tiny_wan
from torch import Tensor

from genhoi import from_official, to_official
from genhoi.convert import infer_config, load_weights


@pytest.fixture
def model() -> WanTransformer3DModel:
    return tiny_wan()


@pytest.fixture
def official(model: WanTransformer3DModel) -> dict[str, Tensor]:
    return to_official(model, lively_adapter(model))


@pytest.mark.parametrize("image", [True, False])
def test_there_and_back(image: bool) -> None:
    """Lossless in names, values and dtypes, and without a copy."""
    model = tiny_wan(image=image)
    adapter = lively_adapter(model)
    model.blocks[1].to(torch.bfloat16)
    official = to_official(model, adapter)
    transformer, again = from_official(official)
    assert again.config.rank == 8
    config = again.config
    assert (config.mask_gate, config.flow_gate) == (False, "sequence")
    assert config.schedule == "release"
    for mine, other in ((model, transformer), (adapter, again)):
        wanted, converted = mine.state_dict(), other.state_dict()
        assert set(converted) == set(wanted)
        assert all(converted[n].data_ptr() == x.data_ptr() for n, x in wanted.items())
    back = to_official(transformer, again)
    assert set(back) == set(official)
    assert all(torch.equal(back[n], x) and back[n].dtype == x.dtype for n, x in official.items())
    assert not [n for n, p in transformer.named_parameters() if p.is_meta]
    assert not any(b.is_meta for b in transformer.buffers())


def test_same_outputs(model: WanTransformer3DModel, official: dict[str, Tensor]) -> None:
    transformer, _ = from_official(official, {"num_heads": 4, "eps": 1e-6, "unused": None})
    with torch.no_grad():
        assert torch.equal(transformer(**inputs(model))[0], model(**inputs(model))[0])


@pytest.mark.shared
def test_names_of_the_release() -> None:
    from safetensors.torch import load_file

    folder = shared_folder() / "goldens"
    weights = load_file(folder / "model_A_weights.safetensors")
    config = json.loads((folder / "model_A.json").read_text())["config"]
    assert infer_config(weights) | {"eps": 1e-6} == config
    back = to_official(*from_official(weights, config))
    assert set(back) == set(weights)
    assert all(torch.equal(back[n], x) and back[n].dtype == x.dtype for n, x in weights.items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dim": 32}, r"config\['dim'\]: got 32, wanted 64 as in the weights"),
        ({"num_heads": 8}, r"config\['num_heads'\]: got 8, wanted 4"),
        ({"patch_size": [1, 4, 4]}, r"config\['patch_size'\]: got \[1, 4, 4\], wanted \[1, 2, 2\]"),
        ({"has_ref_conv": True}, r"config: got \['has_ref_conv'\], wanted only dim, "),
    ],
)
def test_config_that_contradicts(
    official: dict[str, Tensor], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_official(official, config)


def test_names_that_do_not_fit(model: WanTransformer3DModel, official: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"state_dict: got 'blocks.0.extra.weight', wanted a name"):
        from_official(official | {"blocks.0.extra.weight": torch.zeros(1)})
    one = official.pop("blocks.1.ffn.2.bias")
    with pytest.raises(ValueError, match=r"base's part.*blocks.1.ffn.net.2.bias: missing"):
        from_official(official)
    official["blocks.1.ffn.2.bias"] = one[:5]
    with pytest.raises(ValueError, match=r"ffn.net.2.bias: got shape \(5,\), wanted \(64,\)"):
        from_official(official)
    del official["patch_embedding.weight"]
    with pytest.raises(ValueError, match=r"patch_embedding.weight is missing"):
        from_official(official)
    model.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"got a weight 'blocks.0.attn1.to_qkv.weight', for which"):
        to_official(model, lively_adapter(tiny_wan()))
    with pytest.raises(ValueError, match="num_layers 3, wanted 2"):
        to_official(tiny_wan(), lively_adapter(tiny_wan(layers=3)))


def write(folder: Path, kind: str, weights: dict[str, Tensor]) -> list[Path]:
    """The same weights in every form that load_weights takes."""
    weights = {name: x.detach().contiguous() for name, x in weights.items()}
    names = sorted(weights)
    halves = [{n: weights[n] for n in part} for part in (names[::2], names[1::2])]
    if kind == "pth":
        torch.save({"state_dict": weights}, folder / "all.pth")
        return [folder / "all.pth"]
    if kind == "pth folder":
        for i, half in enumerate(halves):
            torch.save(half, folder / f"{i}.pth")
        return [folder]
    if kind == "safetensors":
        save_file(weights, folder / "all.safetensors")
        return [folder / "all.safetensors"]
    files = [folder / f"part-{i}.safetensors" for i in range(2)]
    for file, half in zip(files, halves, strict=True):
        save_file(half, file)
    if kind == "two files":
        return files
    index = {n: file.name for file, half in zip(files, halves, strict=True) for n in half}
    save_file({"unrelated": torch.zeros(1)}, folder / "not-in-the-index.safetensors")
    (folder / "all.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return [folder] if kind == "folder" else [folder / "all.safetensors.index.json"]


KINDS = ["pth", "pth folder", "safetensors", "two files", "index", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_files(tmp_path: Path, kind: str, official: dict[str, Tensor]) -> None:
    loaded = load_weights(write(tmp_path, kind, official))
    assert set(loaded) == set(official)
    assert all(torch.equal(loaded[n], x) for n, x in official.items())
