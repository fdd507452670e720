"""Group offload, by leaf and by block, to memory and to disk: the same result bit for bit."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import group_offloading
from support.attached import attached_vace, attached_wan, run
from support.tiny_wan import reference, some_tokens

from genhoi import attach

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
    _overwrite(model)
    assert torch.equal(run(model, arguments), wanted)
    _overwrite(model)
    assert torch.equal(run(model, arguments), wanted)
    assert handle.reference_passes == (make is attached_wan)


def _overwrite(model: Any) -> None:
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


class StandIn:
    """A stream without a GPU, as diffusers uses one: what is moved on it has arrived at once."""

    def __init__(self, *_: object) -> None: ...

    def synchronize(self) -> None: ...

    def stream(self, _: object) -> Any:
        return contextlib.nullcontext()

    def current_stream(self) -> Any:
        return self


@both_families
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("to_disk", [False, True])
def test_with_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, kind: str, to_disk: bool
) -> None:
    """After a first pass every group is brought by the one before it, the adapter's, too."""
    monkeypatch.setattr(group_offloading, "TorchDeviceBackend", StandIn)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    plain, _, arguments = make()
    wanted = run(plain, arguments)
    model, handle, _ = make()
    config = group_offloading.GroupOffloadingConfig(
        onload_device=CPU,
        offload_device=CPU,
        offload_type=group_offloading.GroupOffloadingType(kind),
        num_blocks_per_group=1,
        non_blocking=False,
        record_stream=False,
        low_cpu_mem_usage=False,
        offload_to_disk_path=str(tmp_path) if to_disk else None,
        stream=StandIn(),
    )
    group_offloading._apply_group_offloading(model, config)
    for _ in range(3):
        if to_disk:
            _overwrite(model)
        assert torch.equal(run(model, arguments), wanted)
    if make is attached_wan:
        handle.set_reference([reference()], some_tokens())
        assert torch.equal(run(model, arguments), wanted)
        assert torch.equal(run(model, arguments), wanted)
    groups = {name: group for name, group in _groups(model).items() if name}
    assert groups and not any(group.onload_self for group in groups.values())


def _groups(model: Any) -> dict[str, Any]:
    """Find the group of every module that has one."""
    hooks = {
        name: module.__dict__["_diffusers_hook"].get_hook("group_offloading")
        for name, module in model.named_modules()
        if "_diffusers_hook" in module.__dict__
    }
    return {name: hook.group for name, hook in hooks.items() if hook is not None}


@both_families
def test_what_is_brought_goes_again(make: Any) -> None:
    """Weights that are read without their module's forward are offloaded like all others."""
    model, _, arguments = make()
    offload(model, offload_type="leaf_level")
    moves: list[tuple[str, str]] = []
    for name, group in _groups(model).items():
        if "norm_q" in name or "gate" in name:
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
