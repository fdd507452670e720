"""What a Wan transformer and one with VACE blocks, both of diffusers, have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from genhoi.conditioning.grid import Strides
from genhoi.models.protocol import ModelSizes, ReferenceStreamModel, VideoModel

__all__ = ["WanFamily", "WanStreamFamily"]


class WanFamily(VideoModel):
    """Sizes and positions, read in the same places."""

    @cached_property
    def sizes(self) -> ModelSizes:
        """Read them from the configuration; the strides are those of the Wan 2.1 VAE."""
        config = self.transformer.config
        frames, rows, columns = config.patch_size
        return ModelSizes(
            num_layers=config.num_layers,
            num_heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            ffn_dim=config.ffn_dim,
            text_dim=config.text_dim,
            in_channels=config.in_channels,
            latent_channels=config.out_channels,
            image_attention=config.added_kv_proj_dim is not None,
            patch=(frames, rows, columns),
            strides=Strides(time=4, space=8, patch=rows),
        )

    def on_positions(self, hook: Callable[[Tensor, Tensor], object]) -> Any:
        """Call ``hook(latents, rotary)`` where a forward pass computes the tokens' positions.

        That is in ``transformer.rope``, before the first block; `rotary` is a tensor of that
        forward pass alone, which every block gets.

        Within torch.compile the hook is traced like the forward pass around it.

        Returns:
            A handle; its ``remove()`` ends this.
        """
        # No closure, which a copy of the transformer would share with it.
        return self.transformer.rope.register_forward_hook(partial(_after_rope, hook))


class WanStreamFamily(WanFamily, ReferenceStreamModel):
    """One whose references are a stream of their own."""


def _after_rope(
    hook: Callable[[Tensor, Tensor], object],
    rope: Any,
    args: tuple[Tensor],
    rotary: tuple[Tensor, Tensor],
) -> None:
    hook(args[0], rotary[0])
