"""What a Wan transformer and one with VACE blocks, both of diffusers, have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, ClassVar

from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from genhoi.conditioning.grid import Strides
from genhoi.models.protocol import ModelSizes, ReferenceStreamModel, VideoModel

__all__ = ["WanFamily", "WanStreamFamily", "latent_channels", "wan_strides"]

# Pixels that a latent pixel is wide, by the VAE's latent channels: Wan 2.1's, and that of 2.2 TI2V.
_SPACE = {16: 8, 48: 16}


def latent_channels(config: Mapping[str, Any]) -> int:
    """Read the latent channels of a Wan's VAE from the transformer's configuration."""
    return int(config.get("out_channels", 16) or config.get("in_channels", 16))


def wan_strides(config: Mapping[str, Any]) -> Strides:
    """Say how pixels become tokens of a Wan, from the transformer's configuration."""
    space = _SPACE.get(latent_channels(config), 8)
    return Strides(time=4, space=space, patch=config.get("patch_size", (1, 2, 2))[1])


class WanFamily(VideoModel):
    """Sizes and positions, read in the same places.

    Attributes:
        processor_class: of the attention layers, whose place the adapter's take.
    """

    processor_class: ClassVar[type] = WanAttnProcessor

    @cached_property
    def sizes(self) -> ModelSizes:
        """Read them from the configuration; the latent channels tell which VAE it is for."""
        config = self.transformer.config
        frames, rows, columns = config.patch_size
        return ModelSizes(
            num_layers=config.num_layers,
            num_heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            ffn_dim=config.ffn_dim,
            text_dim=config.text_dim,
            in_channels=config.in_channels,
            latent_channels=latent_channels(config),
            image_attention=config.added_kv_proj_dim is not None,
            patch=(frames, rows, columns),
            strides=wan_strides(config),
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
