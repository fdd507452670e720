"""Muon beside AdamW: which weights each gets, what its updates are, and that a run learns by it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_training import checkpoint, losses, small_config, trainer_in
from torch import Tensor, nn

from genhoi.training import estimate
from genhoi.training.config import changed_settings
from genhoi.training.estimate import estimate_training, what_fits
from genhoi.training.optimizer import OptimizerPair, hidden_matrices
from genhoi.training.trainer import Trainer


def kinds(trainer: Trainer) -> dict[str, str]:
    """Name the optimiser of every weight, by the settings of its group."""
    names = {weight: name for name, weight in trainer.weights().items()}
    found = {}
    for group in trainer.optimizer.param_groups:
        for weight in group["params"]:
            assert names[weight] not in found
            found[names[weight]] = "muon" if "ns_steps" in group else "adamw"
    assert found.keys() == trainer.weights().keys()
    return found


@pytest.mark.parametrize("stage", [{"stage": "base"}, {"train_base": True}, {}])
def test_which_weights_muon_gets(tmp_path: Path, stage: dict[str, Any]) -> None:
    trainer = trainer_in(tmp_path, optimizer="muon", **stage)
    found, weights = kinds(trainer), trainer.weights()
    for name, kind in found.items():
        of_block = name.startswith(("blocks.", "layers."))
        wanted = of_block and weights[name].ndim == 2 and "gate" not in name
        assert (kind == "muon") == wanted, name
    by = {kind: [n for n in found if found[n] == kind] for kind in ("muon", "adamw")}
    if stage:
        assert {"blocks.0.attn1.to_q.weight", "blocks.1.ffn.net.2.weight"} <= set(by["muon"])
        apart = ("patch_embedding.weight", "proj_out.weight", "blocks.0.scale_shift_table")
        assert {*apart, "condition_embedder.time_proj.weight"} <= set(by["adamw"])
    if "stage" not in stage:
        assert {"layers.0.lora_v.up", "layers.0.lora_k.down"} <= set(by["muon"])
        assert "layers.0.self_gate.fc1.weight" in by["adamw"]
    assert set(kinds(trainer_in(tmp_path, "plain", **stage)).values()) == {"adamw"}


def test_muon_gets_low_rank_weights_of_the_video(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    found = kinds(trainer_in(tmp_path, optimizer="muon", video_rank=2))
    low_rank = [name for name in found if "lora_A" in name or "lora_B" in name]
    assert low_rank and all(found[name] == "muon" for name in low_rank)


def test_an_update_is_nearly_orthogonal(tmp_path: Path) -> None:
    """Wherever the gradient is more than rounding, it is of one length: learning_rate x 0.2 x
    sqrt(longer side), within what Jordan's five iterations leave. AdamW's is of many lengths."""
    near = {}
    for optimizer in ("muon", "adamw"):
        changes = {"stage": "base", "weight_decay": 0.0, "warmup": 0, "steps": 1, "decay": 0.0}
        trainer = trainer_in(tmp_path, optimizer, optimizer=optimizer, **changes)
        name = "blocks.0.ffn.net.0.proj.weight"
        before = trainer.weights()[name].detach().clone()
        trainer.run()
        update = (before - trainer.weights()[name].detach()) / trainer.config.learning_rate
        assert update.shape == (64, 64)
        values = torch.linalg.svdvals(update)
        if optimizer == "muon":
            assert values.max() < 1.35 * 0.2 * 64**0.5
        near[optimizer] = int((values > 0.5 * values.max()).sum())
    assert near["muon"] >= 16 > 8 >= near["adamw"], near


def test_muon_turns_by_the_gradient() -> None:
    """Its update is U V^T of the gradient's U S V^T, within what five iterations leave."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(24, 40))
    weight.grad = torch.randn(24, 40)
    u, _, v = torch.linalg.svd(weight.grad, full_matrices=False)
    muon = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    OptimizerPair(muon).step()
    inside = u.T @ (-weight.detach() / (0.2 * 40**0.5)) @ v.T
    assert (inside.diagonal() - 1).abs().max() < 0.4
    assert (inside - inside.diagonal().diag()).abs().max() < 0.05


def problem() -> tuple[nn.Module, Callable[[], Tensor]]:
    """A small regression with one hidden matrix."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    model.append(nn.Linear(32, 4))
    x = torch.randn(64, 8)
    y = torch.sin(x @ torch.randn(8, 4))
    return model, lambda: (model(x) - y).square().mean()


def pair_for(model: nn.Module) -> OptimizerPair:
    hidden = model[2].weight  # type: ignore[index]
    others = [weight for weight in model.parameters() if weight is not hidden]
    return OptimizerPair(torch.optim.Muon([hidden], lr=0.02), torch.optim.AdamW(others, lr=0.02))


def steps(model: nn.Module, loss: Callable[[], Tensor], pair: OptimizerPair, count: int) -> float:
    for _ in range(count):
        pair.zero_grad()
        value = loss()
        value.backward()
        pair.step()
    return loss().item()


def test_the_pair_learns_as_one() -> None:
    model, loss = problem()
    before = loss().item()
    pair = pair_for(model)
    assert steps(model, loss, pair, 60) < 0.1 * before
    keys = {weight: set(pair.state[weight]) for weight in model.parameters()}
    assert keys.pop(model[2].weight) == {"momentum_buffer"}  # type: ignore[index]
    assert all(found == {"step", "exp_avg", "exp_avg_sq"} for found in keys.values())
    for group in pair.param_groups:
        group["lr"] = 0.0
    kept = [weight.detach().clone() for weight in model.parameters()]
    steps(model, loss, pair, 1)
    assert all(torch.equal(w, k) for w, k in zip(model.parameters(), kept, strict=True))


def test_the_pair_goes_on_from_its_state() -> None:
    """As accelerate does it: state and groups are replaced by loaded ones."""
    model, loss = problem()
    pair = pair_for(model)
    steps(model, loss, pair, 5)
    other, other_loss = problem()
    other.load_state_dict(model.state_dict())
    loaded = pair_for(other)
    loaded.load_state_dict(copy.deepcopy(pair.state_dict()))  # else they share moments
    for one in (pair, loaded):
        one.param_groups[0]["lr"] = 0.01
    assert steps(model, loss, pair, 5) == steps(other, other_loss, loaded, 5)


def test_a_step_with_a_closure() -> None:
    model, loss = problem()
    pair = pair_for(model)
    calls = []

    def closure() -> float:
        calls.append(0)
        pair.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    before = loss().item()
    assert pair.step(closure) == pytest.approx(before) and len(calls) == 1
    assert loss().item() < before


def test_a_run_learns_by_muon(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, optimizer="muon", stage="base", steps=30)
    trainer.run()
    curve = losses(tmp_path / "run")
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])
    state = checkpoint(tmp_path / "run", 30)
    moments = [name for name in state if name.startswith("momentum_buffer/")]
    found = kinds(trainer)
    assert len(moments) == sum(kind == "muon" for kind in found.values())
    assert all(state[name].any() for name in moments)
    assert not any(f"exp_avg/{name.partition('/')[2]}" in state for name in moments)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"optimizer: got 'sgd', wanted one of \('adamw', 'muon'\)"
    ):
        small_config(optimizer="sgd")
    with pytest.raises(ValueError, match="optimizer: got 'muon' with parallel 'fsdp', wanted"):
        small_config(optimizer="muon", parallel="fsdp")
    earlier = small_config().to_dict()
    assert changed_settings(earlier, small_config(optimizer="muon")) == [
        "optimizer 'adamw' -> 'muon'"
    ]
    del earlier["optimizer"]  # of a run made before there was a choice
    assert changed_settings(earlier, small_config()) == []


@pytest.mark.parametrize("stage", [{"stage": "base"}, {"train_base": True}, {}])
def test_estimated_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: dict[str, Any]
) -> None:
    """Is what a run really has: weights, gradients, average, moments without AdamW's counters."""
    trainer = trainer_in(tmp_path, optimizer="muon", steps=1, **stage)
    monkeypatch.setattr(estimate, "base_config", lambda name: trainer.base.transformer.config)
    trainer.run()
    state = checkpoint(tmp_path / "run", 1)
    held = sum(x.numel() for name, x in state.items() if not name.startswith("step/"))
    gradients = sum(x.numel() for x in trainer.weights().values())
    needs = estimate_training(trainer.config)
    assert needs.state_bytes == 4 * (held + gradients)
    transformer, adapter = trainer.base.transformer, trainer.adapter
    assert 0 < len(hidden_matrices(transformer, adapter)) < len(list(transformer.parameters()))
    assert "fsdp" not in (what_fits(trainer.config, needs.memory_bytes // 50) or "")
