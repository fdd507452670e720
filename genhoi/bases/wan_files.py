"""The files of a diffusers Wan pipeline's folder: where it is, what it says, what it lacks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genhoi.extras import needed_for
from genhoi.models.adapter_config import CONFIG_NAME

__all__ = [
    "INDEX",
    "PIPELINES",
    "SHIPPED",
    "SUGGESTED",
    "adapters_in",
    "find_base",
    "find_index",
    "folder_named",
    "has_component",
    "has_weights",
    "locate_base",
    "missing_files",
    "read_json",
    "variant_of",
    "wanted_text",
]

INDEX = "model_index.json"
# Names of bases that come with the package. What kind of base each is, its folder says.
SHIPPED = {"tiny": Path(__file__).resolve().parents[1] / "weights" / "tiny"}
# diffusers' pipelines that are bases, and what people call them.
PIPELINES = {
    "WanImageToVideoPipeline": "image-to-video",
    "WanVACEPipeline": "VACE",
    "WanPipeline": "text-to-video",
}

_WEIGHTS = ("*.safetensors", "*.bin")
# model.fp16.safetensors, or a part of it, model.fp16-00001-of-00002.safetensors.
_VARIANT = re.compile(r"^[^.]+\.(\w+)(?:-\d+-of-\d+)?\.(?:safetensors|bin)$")
SUGGESTED = (
    "for example Wan-AI/Wan2.1-I2V-14B-480P-Diffusers: 16.4 billion parameters in the "
    "transformer, 5.7 in the text encoder, 0.8 in the rest, so about 46 GB in bfloat16 and 91 GB "
    "in float32"
)


def wanted_text(suggested: str = SUGGESTED) -> str:
    """Say which pipelines are bases.

    Args:
        suggested: an example, with its size.
    """
    kinds = " or ".join(PIPELINES.values())
    return f"a diffusers Wan {kinds} pipeline ({suggested})"


def folder_named(base: str | os.PathLike[str]) -> Path:
    """Return the folder of a base that comes with the package, else the name itself as a path."""
    return SHIPPED.get(str(base), Path(base))


def find_base(base: str | os.PathLike[str]) -> Path | None:
    """Find a base's folder, as `locate_base` does; None where there is none."""
    path = folder_named(base)
    if path.is_dir():
        return path
    if not _may_be_of_the_hub(base):
        return None
    with needed_for("a base of the Hugging Face Hub"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(base), local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def locate_base(base: str | os.PathLike[str]) -> Path:
    """Find a base's folder: one that comes with the package, the path itself, or one that was
    downloaded from the Hugging Face Hub.

    Nothing is downloaded: it may be 90 GB.

    Raises:
        FileNotFoundError: there is none; the message says what to fetch and how large it is.
    """
    found = find_base(base)
    if found is not None:
        return found
    if not _may_be_of_the_hub(base):
        raise FileNotFoundError(
            f"base: there is no folder {base}; wanted one of {wanted_text()}, or the name of one "
            f"on the Hugging Face Hub"
        )
    raise FileNotFoundError(
        f"base: there is no folder {base}, and nothing of that name has been downloaded. Fetch "
        f"it with `hf download {base}`: {_hub_size(str(base))}"
    )


def find_index(base: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read a folder's model_index.json; None where there is none."""
    folder = find_base(base)
    if folder is None or not (folder / INDEX).is_file():
        return None
    return read_json(folder / INDEX)


def has_component(index: Mapping[str, Any], name: str) -> bool:
    """Tell whether a pipeline has a component, by its model_index.json."""
    # One that the pipeline does without is [null, null].
    return (index.get(name) or [None])[0] is not None


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the folder's configurations.

    Raises:
        FileNotFoundError: there is none. ValueError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"base: there is no {path}; wanted the folder of {wanted_text()}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"base: {path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"base: {path} holds {values!r}, wanted settings by name")
    return values


def missing_files(folder: Path, *, weights: Sequence[str], configs: Sequence[str]) -> list[str]:
    """List what a folder lacks.

    Args:
        folder: of the pipeline.
        weights: components of which weights have to be there.
        configs: files that have to be there.
    """
    missing = [file for name in weights for file in _missing_weights(folder / name)]
    return missing + [path for path in configs if not (folder / path).is_file()]


def adapters_in(folder: Path, *, two_experts: bool) -> tuple[Path, ...]:
    """Find the adapters that come with a base.

    Args:
        folder: of the base: adapter/, as `genhoi convert --pipeline` writes it.
        two_experts: whether adapter_2/ may lie beside it, for a second transformer.
    """
    names = ("adapter", "adapter_2") if two_experts else ("adapter",)
    there = [folder / name for name in names if (folder / name / CONFIG_NAME).is_file()]
    return tuple(there) if there[:1] == [folder / "adapter"] else ()


def has_weights(folder: Path) -> bool:
    """Tell whether a component's folder holds its weights, all parts of them."""
    return not _missing_weights(folder)


def variant_of(folder: Path, components: Sequence[str]) -> str | None:
    """Choose which variant of the weights is loaded, as diffusers names them: "fp16", "bf16".

    Args:
        folder: of the pipeline, or "" as the one component for a folder of one model.
        components: whose weights are loaded.

    Returns:
        None for the weights without a variant in their names, where every component has them.

    Raises:
        ValueError: a component has several variants, or they differ, and there is no default.
    """
    found = {name: _variants(folder / name) for name in components}
    lacking = {name: names for name, names in found.items() if names and "" not in names}
    if not lacking:
        return None
    common = set.intersection(*lacking.values())
    if len(common) != 1:
        listed = "; ".join(f"{n or folder} has {', '.join(sorted(x))}" for n, x in lacking.items())
        raise ValueError(
            f"base: got weights in several variants and none without ({listed}), wanted one of "
            f"them for all components, or weights without a variant in their names"
        )
    return common.pop()


def _variants(folder: Path) -> set[str]:
    """List the variants that a component's weights are there in; "" for none in the name."""
    names = [path.name for pattern in _WEIGHTS for path in folder.glob(pattern)]
    matches = [_VARIANT.match(name) for name in names]
    return {"" if match is None else match[1] for match in matches}


def _missing_weights(folder: Path) -> list[str]:
    """List the parts that an index names and that are not there, else say that there is none."""
    present = {path.name for pattern in _WEIGHTS for path in folder.glob(pattern)}
    # model.safetensors.index.json, of a variant model.safetensors.index.fp16.json.
    indices = [*folder.glob("*.index.json"), *folder.glob("*.index.*.json")]
    named = [set(read_json(x)["weight_map"].values()) for x in indices]
    # There may be one index for .safetensors and one for .bin files, of which one set is there.
    if not present:
        return [f"{folder.name}/ (weights)"]
    lacks = min((parts - present for parts in named), key=len, default=set())
    return [f"{folder.name}/{part}" for part in sorted(lacks)]


def _may_be_of_the_hub(base: str | os.PathLike[str]) -> bool:
    name = str(base)
    is_path = name.startswith((".", "/", "~")) or Path(base).exists()
    return name.count("/") == 1 and not is_path


def _hub_size(name: str) -> str:
    """Say how large a repository is, or what is known of it without a connection."""
    try:
        from huggingface_hub import HfApi

        info = HfApi().model_info(name, files_metadata=True, timeout=5)
        size = sum(file.size or 0 for file in info.siblings or [])
        return f"{size / 1e9:.0f} GB"
    except Exception:
        # No connection, no such repository, no permission: `hf download` will tell.
        return f"its size could not be looked up ({SUGGESTED})"
