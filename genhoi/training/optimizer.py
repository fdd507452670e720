"""The optimiser of a run: AdamW, or Muon for the matrices inside the blocks and AdamW for the rest.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon) makes the update of a matrix nearly
orthogonal, so that it learns in all directions alike. Its updates are scaled as large as AdamW's
are (Moonshot, arXiv 2502.16982), so that one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genhoi.models.registry import model_of
from genhoi.training.config import TrainConfig
from genhoi_kernels import FlowGate

__all__ = ["OptimizerPair", "hidden_matrices", "make_optimizer"]

_BETAS = (0.9, 0.98)


class OptimizerPair(torch.optim.Optimizer):
    """Several optimisers, each with weights of its own, as one.

    All parameter groups and the whole state are here; the parts look into the same.

    Args:
        parts: optimisers that have made no step yet.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts
        self._counts = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step of every part.

        Args:
            closure: computes the loss again; called once, before.

        Returns:
            What it returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take groups and state of another such optimiser; see `torch.optim.Optimizer`."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        first = 0
        for part, count in zip(self._parts, self._counts, strict=True):
            part.state = self.state
            part.param_groups = self.param_groups[first : first + count]
            first += count


def make_optimizer(
    config: TrainConfig,
    weights: Mapping[str, Tensor],
    transformer: nn.Module,
    adapter: nn.Module | None,
) -> torch.optim.Optimizer:
    """Make the optimiser that a run's settings name.

    Args:
        config: its optimizer, learning_rate and weight_decay are used.
        weights: what is trained, by name.
        transformer: of the base.
        adapter: on it, if any.
    """
    if config.optimizer == "adamw":
        return _adamw(config, weights.values())
    matrices = hidden_matrices(transformer, adapter)
    by_muon = [weight for weight in weights.values() if weight in matrices]
    others = [weight for weight in weights.values() if weight not in matrices]
    parts: list[torch.optim.Optimizer] = []
    if by_muon:
        muon = torch.optim.Muon(
            by_muon,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        parts.append(muon)
    if others:
        parts.append(_adamw(config, others))
    return OptimizerPair(*parts)


def hidden_matrices(transformer: nn.Module, adapter: nn.Module | None) -> set[Tensor]:
    """Collect the weights that Muon is for: matrices of the blocks, and low-rank ones.

    It is not for embeddings and the output's projection, whose rows are used apart or whose scale
    counts, nor for biases, norms and modulation, which are vectors, nor for flow gates, which have
    one or few outputs.

    Args:
        transformer: of a base.
        adapter: on it, if any.
    """
    blocks = [*model_of(transformer).all_blocks, *([] if adapter is None else [adapter])]
    inside = {weight for block in blocks for weight in block.parameters()}
    gates = {
        weight
        for block in blocks
        for module in block.modules()
        if isinstance(module, FlowGate)
        for weight in module.parameters()
    }
    return {weight for weight in inside - gates if weight.ndim == 2}


def _adamw(config: TrainConfig, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        list(weights),
        lr=config.learning_rate,
        betas=_BETAS,
        weight_decay=config.weight_decay,
    )
