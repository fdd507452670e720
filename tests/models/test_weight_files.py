"""Weights by what a file holds: names say nothing, and what is no file of weights is named."""

from __future__ import annotations

import argparse
import gzip
import json
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_wan import lively_adapter, tiny_wan
from torch import Tensor

from genhoi import from_official, to_official
from genhoi.convert import load_weights

PUBLISHED = "GenHOI_wan_flf.consolidated"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 33000000000\n"
WEIGHTS = {"blocks.0.a": torch.arange(6.0).view(2, 3), "head.b": torch.ones(3, dtype=torch.int64)}

WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "safetensors": lambda weights, path: save_file(weights, path),
    "torch": lambda weights, path: torch.save(weights, path),
    "legacy": lambda weights, path: torch.save(weights, path, _use_new_zipfile_serialization=False),
}


def same(loaded: dict[str, Tensor], wanted: dict[str, Tensor] = WEIGHTS) -> bool:
    return set(loaded) == set(wanted) and all(torch.equal(loaded[n], wanted[n]) for n in wanted)


def refused(path: Path, match: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=match) as caught:
        load_weights([path])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------- one file


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", [PUBLISHED, "weights.bin", "weights"])
def test_content_decides(kind: str, name: str, tmp_path: Path) -> None:
    WRITERS[kind](WEIGHTS, tmp_path / name)
    assert same(load_weights([tmp_path / name]))


def test_a_misleading_suffix(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "weights.safetensors")
    refused(tmp_path / "weights.safetensors", "was written by torch.save; give it another suffix")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_memory_is_mapped(tmp_path: Path, kind: str) -> None:
    """The parameters lie in the file's own pages: converting 33 GB does not take 33 GB."""
    path = tmp_path / PUBLISHED
    model = tiny_wan()
    official = to_official(model, lively_adapter(model))
    WRITERS[kind]({n: x.detach().contiguous() for n, x in official.items()}, path)
    transformer, adapter = from_official(load_weights([path]))
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [
        tuple(int(end, 16) for end in line[0].split("-")) for line in maps if line[-1] == str(path)
    ]
    for p in (*transformer.parameters(), *adapter.parameters()):
        assert any(start <= p.data_ptr() < end for start, end in spans)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """8 GB, of which the disk holds the header alone."""
    count = 2 << 30
    tensor = {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}
    header = json.dumps({"large": tensor}).encode()
    path = tmp_path / PUBLISHED
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_weights([path])["large"].shape == (count,)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", "model_state_dict"])
def test_wrapped(wrapper: str, tmp_path: Path) -> None:
    torch.save({wrapper: WEIGHTS, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / PUBLISHED)
    assert same(load_weights([tmp_path / PUBLISHED]))


@pytest.mark.parametrize("prefix", ["module.", "model.diffusion_model.", "module._orig_mod."])
def test_a_prefix_of_all_names(prefix: str, tmp_path: Path) -> None:
    weights = {prefix + name: x for name, x in WEIGHTS.items()}
    torch.save(weights, tmp_path / PUBLISHED)
    assert same(load_weights([tmp_path / PUBLISHED]))
    weights |= {"vae.c": torch.ones(1)}
    torch.save(weights, tmp_path / PUBLISHED)
    assert same(load_weights([tmp_path / PUBLISHED]), weights)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"step": 3}, r"holds 'step', a int, wanted tensors by name"),
        ({"a": {"b": torch.ones(1)}}, "holds 'a', a dict"),
        ({"model": {"deep": {"b": torch.ones(1)}}}, "holds 'deep', a dict"),
        ({3: torch.ones(1)}, "holds 3, a Tensor"),
        ({"model": WEIGHTS, "state_dict": WEIGHTS}, "holds state_dict and model, wanted one"),
        ({}, "holds nothing"),
        ([torch.ones(1)], "holds a list"),
        ({"a": argparse.Namespace()}, "holds a argparse.Namespace, .* may run a program"),
    ],
)
@pytest.mark.parametrize("kind", ["torch", "legacy"])
def test_other_content(kind: str, content: Any, match: str, tmp_path: Path) -> None:
    WRITERS[kind](content, tmp_path / PUBLISHED)
    refused(tmp_path / PUBLISHED, match)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


def _cut(kind: str, share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        WRITERS[kind](WEIGHTS, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return write


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: path.write_text('{"a": 1}'), "a JSON file"),
        (lambda path: path.write_text("\n<!DOCTYPE html><title>404"), "an HTML page, as a down"),
        (lambda path: path.write_text(POINTER), "a Git LFS pointer, .*`git lfs pull`"),
        (lambda path: path.write_text("weights"), "a text file"),
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_bytes(bytes([1, 2, 3, 0, 255])), "begins with 01 02 03 00 ff"),
        (lambda path: path.write_bytes(gzip.compress(b"a")), "a gzip archive"),
        (lambda path: path.write_bytes(pickle.dumps(3)), "a pickle that torch.save did not"),
        (_zip, "a zip archive that torch.save did not write"),
        (_cut("torch", 0.9), "a zip archive that was cut off; fetch it anew"),
        (_cut("safetensors", 0.95), r"of \d+ bytes where its header wants \d+; fetch it anew"),
        (_cut("legacy", 0.9), "cannot be mapped and has to fit into memory, .* failed"),
    ],
)
def test_other_files(write: Callable[[Path], None], match: str, tmp_path: Path) -> None:
    write(tmp_path / PUBLISHED)
    refused(tmp_path / PUBLISHED, match)


def test_one_path_alone(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / PUBLISHED)
    assert same(load_weights([str(tmp_path / PUBLISHED)]))
    with pytest.raises(TypeError, match="wanted a list of paths"):
        load_weights(str(tmp_path / PUBLISHED))


def test_no_such_file(tmp_path: Path) -> None:
    refused(tmp_path / PUBLISHED, "no such file", FileNotFoundError)


# ------------------------------------------------------------------------------------ a folder


def _beside(folder: Path) -> None:
    """What a downloaded repository has beside its weights."""
    (folder / "README.md").write_text("# GenHOI")
    (folder / "config.json").write_text("{}")
    (folder / "teaser.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "demo.mp4").write_text(POINTER)
    (folder / ".gitattributes").write_text("*")
    (folder / "assets").mkdir()


def test_a_folder_with_other_files(tmp_path: Path) -> None:
    _beside(tmp_path)
    refused(tmp_path, "no file in .* README.md is a text file, config.json is a", FileNotFoundError)
    torch.save(WEIGHTS, tmp_path / PUBLISHED)
    assert same(load_weights([tmp_path]))


def test_an_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, "holds weights: it is empty", FileNotFoundError)


def test_several_files(tmp_path: Path) -> None:
    """Parts are joined; twice the same names, or two formats, have to be chosen from."""
    for i, (name, x) in enumerate(WEIGHTS.items()):
        torch.save({name: x}, tmp_path / f"{i}.consolidated")
    assert same(load_weights([tmp_path]))
    torch.save({"head.b": torch.ones(3)}, tmp_path / "other.consolidated")
    with pytest.raises(
        ValueError, match=r"head.b comes twice, in .*1\.cons.* and in .*other\.cons"
    ):
        load_weights([tmp_path])
    save_file(WEIGHTS, tmp_path / "all.safetensors")
    refused(tmp_path, r"0\.cons.*, 1\.cons.*, all\.safe.*, other\.cons.*; name those")


def test_a_part_that_was_not_fetched(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "1.safetensors")
    (tmp_path / "2.safetensors").write_text(POINTER)
    refused(tmp_path, r"2\.safetensors is a Git LFS pointer")


@pytest.mark.parametrize("text", ["[]", "{}", "weights", '{"weight_map": 3}'])
def test_broken_indices(text: str, tmp_path: Path) -> None:
    index = tmp_path / "a.index.json"
    index.write_text(text)
    refused(index, "no index of a sharded checkpoint")
    (tmp_path / "b.index.json").write_text("{}")
    refused(tmp_path, r"has a\.index\.json, b\.index\.json; name one")
