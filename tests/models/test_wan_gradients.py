"""Gradients through the reference stream and the gates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan
from torch import Tensor

from genhoi import Attachment, GenHOIAdapter, attach


def attached(
    *, checkpointing: bool = False, **options: Any
) -> tuple[WanTransformer3DModel, GenHOIAdapter, Attachment]:
    model = tiny_wan(layers=3)
    model.requires_grad_(False)
    adapter = lively_adapter(model, **options)
    handle = attach(model, adapter, preset="paper")
    handle.set_reference([reference(), reference(4, 6, seed=9)], some_tokens())
    if checkpointing:
        model.enable_gradient_checkpointing()
    model.train()
    return model, adapter, handle


def loss(model: WanTransformer3DModel, **changes: Any) -> Tensor:
    (out,) = model(**(inputs(model) | changes))
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    result: Tensor = (out * target).mean()
    return result


def gradients(adapter: GenHOIAdapter) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in adapter.named_parameters() if p.grad is not None}


def test_every_trainable_weight_gets_a_gradient() -> None:
    """All but the last block's lora_q, which does not ask for one."""
    model, adapter, _ = attached()
    loss(model).backward()
    trainable = {n for n, p in adapter.named_parameters() if p.requires_grad}
    rest = {n for n, _ in adapter.named_parameters()} - trainable
    assert rest == {"layers.2.lora_q.down", "layers.2.lora_q.up"}
    by_name = gradients(adapter)
    assert set(by_name) == trainable
    assert all(g.abs().max() > 0 for g in by_name.values())
    adapter.requires_grad_(False)
    adapter.requires_grad_(True)
    assert {n for n, p in adapter.named_parameters() if p.requires_grad} == trainable


PROBED = [
    "layers.0.lora_q.up",
    "layers.0.lora_k.down",
    "layers.0.lora_v.up",
    "layers.1.lora_q.down",
    "layers.2.lora_v.up",
    "layers.0.self_gate.fc1.weight",
    "layers.1.text_gate.fc2.weight",
    "layers.2.image_gate.norm.bias",
]


def test_finite_differences() -> None:
    """Along the sign of the gradient. The base computes its norms in float32, hence the step."""
    model, adapter, _ = attached()
    loss(model).backward()
    by_name = gradients(adapter)
    step = 4e-3
    for name in PROBED:
        weight, direction = adapter.get_parameter(name), by_name[name].sign()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * step * direction)
                values.append(loss(model).item())
                weight.sub_(sign * step * direction)
        numeric = (values[0] - values[1]) / (2 * step)
        assert numeric == pytest.approx((by_name[name] * direction).sum().item(), rel=2e-2), name


def test_checkpointing_changes_nothing() -> None:
    results = []
    for checkpointing in (False, True):
        model, adapter, handle = attached(checkpointing=checkpointing)
        loss(model).backward()
        assert handle.reference_passes == 1
        results.append(gradients(adapter))
    plain, checkpointed = results
    assert set(plain) == set(checkpointed)
    for name, wanted in plain.items():
        torch.testing.assert_close(checkpointed[name], wanted, rtol=1e-5, atol=1e-8)


def test_checkpointed_clips_may_overlap() -> None:
    """Two forward passes with other references, masks and grids, then their backward passes."""
    model, adapter, handle = attached()
    other = {"grid": (2, 3, 3), "seed": 30}

    def losses(handle: Attachment, model: WanTransformer3DModel) -> list[Tensor]:
        handle.set_reference([reference()], some_tokens())
        first = loss(model)
        handle.set_reference([reference(4, 4, seed=31)], some_tokens()[:, :18])
        second = loss(model, **inputs(model, **other))  # type: ignore[arg-type]
        handle.set_reference(None)
        return [first, second, loss(model)]

    for one in losses(handle, model):
        one.backward()
    wanted = gradients(adapter)
    model, adapter, handle = attached(checkpointing=True)
    for one in reversed(losses(handle, model)):
        one.backward()
    for name, gradient in gradients(adapter).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-7)


def test_computed_at_every_training_step_and_once_after() -> None:
    model, _, handle = attached()
    for _ in range(2):
        loss(model).backward()
    assert handle.reference_passes == 2
    with torch.no_grad():
        loss(model)
        loss(model)
    assert handle.reference_passes == 3
    loss(model)  # and no cached value without a graph is used where gradients are wanted
    assert handle.reference_passes == 4


def test_float32_adapter_on_a_bfloat16_base() -> None:
    model = tiny_wan(layers=3).to(torch.bfloat16).requires_grad_(False)
    adapter = lively_adapter(model)
    handle = attach(model, adapter, preset="paper")
    handle.set_reference([reference()], some_tokens())
    (out,) = model(**inputs(model, dtype=torch.bfloat16))
    out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    by_name = gradients(adapter)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in by_name.values())


def test_autocast() -> None:
    model, adapter, _ = attached()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = loss(model)
    autocast.backward()
    assert all(g.isfinite().all() for g in gradients(adapter).values())
    assert autocast.item() == pytest.approx(loss(model).item(), abs=0.05)


def train_in_parallel(rank: int, ranks: int, store: Path) -> None:
    """Two steps; DDP refuses the second if a weight that wants a gradient got none in the first."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(store), ranks), rank=rank, world_size=ranks
    )
    model, adapter, _ = attached()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        adapter.zero_grad()
        parallel(**inputs(model, seed=rank))[0].square().mean().backward()
    mean = gradients(adapter)
    assert mean
    adapter.zero_grad()
    losses = [model(**inputs(model, seed=r))[0].square().mean() for r in range(ranks)]
    torch.stack(losses).mean().backward()
    for name, wanted in gradients(adapter).items():
        torch.testing.assert_close(mean[name], wanted, rtol=1e-4, atol=1e-7)
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes get the gradient of one with both samples."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    # In processes of their own: what waits for another process forever ends with the time limit.
    spawn = torch.multiprocessing.get_context("spawn")
    ranks = [
        spawn.Process(target=train_in_parallel, args=(rank, 2, tmp_path / "store"))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0]
