"""The files of the authors' VACE release, put together: branch, low-rank weights, and the trunk.

The release comes in parts: the whole VACE branch with gates, which takes the place of the stock
one; a LoRA file, perhaps with gates of its own; and the trunk of a stock Wan VACE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from genhoi.models.wan.vace.convert import is_vace
from genhoi.models.wan.vace.official_names import is_low_rank, official_name

__all__ = ["ReleaseParts", "is_vace_release", "join_files"]


@dataclass(frozen=True)
class ReleaseParts:
    """What `from_official` takes.

    Args:
        state_dict: trunk and VACE branch, and its gates.
        lora: what a LoRA file holds, or None.
    """

    state_dict: dict[str, Tensor]
    lora: Mapping[str, Tensor] | None


def is_vace_release(files: Sequence[Mapping[str, Tensor]]) -> bool:
    """Tell whether any of some files is of the VACE version."""
    return any(is_vace(weights) for weights in files)


def join_files(
    files: Sequence[Mapping[str, Tensor]], stock: Mapping[str, Tensor] | None = None
) -> ReleaseParts:
    """Put together what files of the VACE release hold, each under its official names.

    Args:
        files: in any order. A VACE branch with gates takes the place of one without.
        stock: weights of a stock Wan VACE under diffusers' names, for what the files lack: the
            trunk, and where they hold low-rank weights alone the VACE branch.

    Raises:
        ValueError: two LoRA files, or a weight that comes twice; no trunk in files or stock.
    """
    lora: Mapping[str, Tensor] | None = None
    weights: dict[str, Tensor] = {}
    # Branches with gates come last, to overwrite.
    for held in sorted(files, key=_has_gates):
        if any(map(is_low_rank, held)) and not any(map(_is_branch, held)):
            if lora is not None:
                raise ValueError("weights: got two LoRA files, wanted one of them")
            lora = held
            continue
        twice = [name for name in held if name in weights]
        if twice and not _has_gates(held):
            raise ValueError(f"weights: {twice[0]} comes twice; name one of the files")
        weights |= held
    return ReleaseParts(_completed(weights, stock), lora)


def _completed(weights: dict[str, Tensor], stock: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    missing = [
        (what, name)
        for what, name in (
            ("trunk", "patch_embedding.weight"),
            ("VACE branch", "vace_patch_embedding.weight"),
        )
        if name not in weights
    ]
    if not missing:
        return weights
    lacking = " and ".join(what for what, _ in missing)
    if stock is None:
        raise ValueError(
            f"weights: they lack the {lacking}, which are those of a stock Wan VACE; wanted them "
            f"among the files, or a stock pipeline with its transformer (--pipeline)"
        )
    official = {official_name(name): x for name, x in stock.items()}
    wanted = {
        name: x
        for name, x in official.items()
        if any(_is_branch(name) == (what == "VACE branch") for what, _ in missing)
    }
    return wanted | weights


def _is_branch(name: str) -> bool:
    """Tell whether an official name is of the VACE branch itself, not of gates or LoRA."""
    is_own = name.startswith(("vace_blocks.", "vace_patch_embedding."))
    return is_own and not is_low_rank(name) and ".attn.gate." not in name


def _has_gates(weights: Mapping[str, Tensor]) -> bool:
    return any(".attn.gate." in name for name in weights)
