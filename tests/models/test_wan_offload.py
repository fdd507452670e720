"""Group offload, by leaf and by block, to memory and to disk: the same result bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.attached import attached_vace, attached_wan, run
from support.tiny_wan import reference, some_tokens

from genhoi import Attachment, attach

CPU = torch.device("cpu")


both_families = pytest.mark.parametrize("make", [attached_wan, attached_vace])


def offload(model: Any, **options: Any) -> None:
    model.enable_group_offload(CPU, CPU, **({"num_blocks_per_group": 1} | options))


@both_families
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("non_blocking", [False, True])
def test_to_disk(tmp_path: Path, make: Any, kind: str, non_blocking: bool) -> None:
    """Between forward passes nothing is left in memory."""
    plain, _, arguments = make()
    wanted = run(plain, arguments)
    model, handle, _ = make()
    offload(model, offload_type=kind, non_blocking=non_blocking, offload_to_disk_path=str(tmp_path))
    _overwrite(model, handle)
    assert torch.equal(run(model, arguments), wanted)
    _overwrite(model, handle)
    assert torch.equal(run(model, arguments), wanted)
    assert handle.reference_passes == (make is attached_wan)


def _overwrite(model: Any, handle: Attachment) -> None:
    """Put NaN where diffusers left memory that it did not fill, and so say what is offloaded."""
    weights = [x for name, x in model.named_parameters() if "norm_" in name or ".gate." in name]
    assert weights
    for x in weights:
        x.data = torch.full_like(x.data, float("nan"))


@both_families
def test_to_disk_before_attach(tmp_path: Path, make: Any) -> None:
    plain, other, arguments = make()
    wanted = run(plain, arguments)
    model, handle, _ = make()
    handle.detach()
    offload(model, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    again = attach(model, handle.adapter, preset="paper" if make is attached_wan else None)
    if make is attached_wan:
        again.set_reference([reference()], some_tokens())
    else:
        again.set_reference_frames(other.reference_frames)
    assert torch.equal(run(model, arguments), wanted)


@both_families
def test_what_is_brought_goes_again(make: Any) -> None:
    """Weights that are read without their module's forward are offloaded like all others."""
    model, _, arguments = make()
    offload(model, offload_type="leaf_level")
    moves = []
    for name, module in model.named_modules():
        hook = module.__dict__.get("_diffusers_hook")
        if hook is not None and ("norm_q" in name or "gate" in name):
            group = hook.get_hook("group_offloading").group
            for step in ("onload_", "offload_"):
                counted = _counted(getattr(group, step), moves, (name, step))
                setattr(group, step, counted)
    run(model, arguments)
    assert moves
    for module in {name for name, _ in moves}:
        steps = [step for name, step in moves if name == module]
        assert steps == ["onload_", "offload_"] * (len(steps) // 2)


def _counted(method: Any, moves: list[Any], what: tuple[str, str]) -> Any:
    def call() -> None:
        moves.append(what)
        method()

    return call
