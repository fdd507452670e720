"""What GenHOI asks of a family of video models.

The pipeline, training, evaluation and the estimates know these classes and no others. A new family
is a folder beside `genhoi.models.wan` and a line in `genhoi.models.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from genhoi.conditioning.condition import Condition
from genhoi.conditioning.grid import Grid, Strides

if TYPE_CHECKING:
    from genhoi.models.adapter import GenHOIAdapter
    from genhoi.models.attachment import Attachment
    from genhoi.models.options import Options

__all__ = ["Block", "ModelSizes", "ReferenceStreamModel", "VideoModel"]


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model.

    Args:
        num_layers: blocks.
        num_heads, head_dim: of the attention; the width is their product.
        ffn_dim: width of a block's feed-forward layer.
        text_dim: width of the encoded text.
        in_channels: what the patch embedding takes.
        latent_channels: of the codec's latents, and so of the output.
        image_attention: the blocks have cross-attention over an image.
        patch: latent frames, rows and columns of a token.
        strides: from pixels to latents to tokens.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    ffn_dim: int
    text_dim: int
    in_channels: int
    latent_channels: int
    image_attention: bool
    patch: tuple[int, int, int]
    strides: Strides

    @property
    def dim(self) -> int:
        """Return the width of the model."""
        return self.num_heads * self.head_dim

    def grid(self, latents: Tensor) -> Grid:
        """Count the tokens (f, h, w) of latents ``[..., F, H, W]``."""
        frames, height, width = latents.shape[-3:]
        return frames // self.patch[0], height // self.patch[1], width // self.patch[2]


class Block(NamedTuple):
    """One block of a transformer, and its attention layers."""

    module: Any
    self_attention: Any
    cross_attention: Any


class VideoModel(ABC):
    """A transformer of one family, and how to use it.

    Of two transformers that share the noise levels between them, as in Wan 2.2, each is a model;
    `hand_over` joins them, and `at` says which of them is at work.

    Args:
        transformer: of the family, a diffusers model.

    Attributes:
        references_in_sequence: references are latent frames at the front of the noisy latents and
            of the condition (see `with_references`); else they are a stream of their own.
    """

    references_in_sequence: bool = False

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self._other: VideoModel | None = None
        self._below = 0.0

    def hand_over(self, other: VideoModel, *, below: float) -> None:
        """Let another model of the same sizes take all timesteps below this one."""
        self._other, self._below = other, below

    def at(self, timestep: float) -> VideoModel:
        """Return the model for a timestep: this one, or the one that it hands over to."""
        return self if self._other is None or timestep >= self._below else self._other

    @classmethod
    @abstractmethod
    def takes(cls, class_name: str, config: Mapping[str, Any]) -> bool:
        """Tell whether a transformer of this class and configuration belongs to the family."""

    @classmethod
    @abstractmethod
    def empty(cls, config: Mapping[str, Any]) -> VideoModel:
        """Make a model with fresh weights on the current device, from a saved configuration."""

    @property
    @abstractmethod
    def sizes(self) -> ModelSizes:
        """Return the sizes of the model and its codec."""

    # -------------------------------------------------------------------- what its channels mean

    @abstractmethod
    def build_condition(
        self,
        frames: Tensor,
        mask: Tensor,
        encode: Callable[[Tensor], Tensor],
        *,
        first_frame: Tensor | None = None,
        last_frame: Tensor | None = None,
    ) -> Condition:
        """Build what the model sees of a window beside the noise.

        Arguments and errors are those of `genhoi.conditioning.condition.build_condition`.
        """

    @abstractmethod
    def condition_mask(self, condition: Tensor) -> Tensor:
        """Return the part of a condition that says what is generated, 1 or 0.

        `token_mask` takes it as a latent mask ``[B, channels, f, h, w]``.
        """

    @abstractmethod
    def condition_latents(self, condition: Tensor) -> Tensor:
        """Return the part of a condition that the codec decodes to what is seen of the clip."""

    @abstractmethod
    def given_condition(self, clean: Tensor) -> Tensor:
        """Build the condition where latent frames are given, finished.

        Args:
            clean: their latents, ``[B, C, f, h, w]``.
        """

    def with_references(self, condition: Tensor, references: Sequence[Tensor]) -> Tensor:
        """Put references at the front of a condition, where the family has them in the sequence.

        Args:
            condition: of the video, ``[B, channels, f, h, w]``.
            references: latents ``[B or 1, C, 1, h, w]``, in order.

        Returns:
            ``[B, channels, R + f, h, w]``; elsewhere the condition itself.
        """
        return condition

    def with_given(
        self, latents: Tensor, condition: Tensor, noise: Tensor, sigma: float | Tensor
    ) -> Tensor:
        """Put what is given of the clip into noisy latents, where they have to hold it.

        Args:
            latents: at this noise level, ``[B, C, f, h, w]``.
            condition: as for `inputs`.
            noise: that the latents began with.
            sigma: the noise level, a number or ``[B]``.

        Returns:
            The latents themselves where the condition has a place of its own in the model.
        """
        return latents

    def predicted(self, condition: Tensor) -> Tensor | None:
        """Return which latents the model says a velocity for, 1 or 0 ``[B, 1, f, h, w]``.

        None where it does for all.
        """
        return None

    @abstractmethod
    def inputs(
        self,
        latents: Tensor,
        condition: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None,
    ) -> dict[str, Any]:
        """Make the keyword arguments of the transformer's forward, which returns (velocity,).

        Args:
            latents: noisy, ``[B, C, f, h, w]``.
            condition: the channels of a `Condition`, on the same device and in the same dtype.
            timestep: float32 ``[B]``.
            text: ``[B, tokens, text_dim]``.
            image: ``[B, tokens, image_dim]`` or None.
        """

    # ------------------------------------------------------------------------------- its anatomy

    @property
    @abstractmethod
    def blocks(self) -> Sequence[Block]:
        """List the blocks that an adapter is on, in order."""

    @property
    def all_blocks(self) -> Sequence[Any]:
        """List the modules of all blocks, as they run, those without an adapter too."""
        return [block.module for block in self.blocks]

    @property
    @abstractmethod
    def video_projections(self) -> str:
        """Match the names of q, k and v of the video's own attention, as a regular expression."""

    # ------------------------------------------------------------------------------- the adapter

    @property
    def adapter_defaults(self) -> dict[str, Any]:
        """Return what a fresh ``AdapterConfig`` has in the place of its own defaults."""
        return {}

    @property
    def adapter_sizes(self) -> dict[str, Any]:
        """Return the part of an ``AdapterConfig`` that the model dictates."""
        return {
            "num_heads": self.sizes.num_heads,
            "head_dim": self.sizes.head_dim,
            "num_layers": len(self.blocks),
            "image_attention": self.sizes.image_attention,
            "references": "frames" if self.references_in_sequence else "stream",
        }

    @abstractmethod
    def attach(
        self, adapter: GenHOIAdapter, options: Options, backend: str | None = None
    ) -> Attachment:
        """Put an adapter that fits to work; `genhoi.attach` has checked the options.

        Raises:
            ValueError: the adapter lies on another device, or the transformer has an adapter or
                foreign processors already.
        """


class ReferenceStreamModel(VideoModel):
    """A family whose references run through the blocks by themselves, at timestep 0."""

    @abstractmethod
    def embed_reference(self, reference: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed a reference's latent ``[b, C, 1, H, W]``: tokens ``[b, h*w, dim]``, and (h, w).

        Raises:
            ValueError: another number of channels.
        """

    @abstractmethod
    def check_reference(self, reference: Tensor) -> None:
        """Raise ValueError unless `embed_reference` takes this number of channels."""

    @abstractmethod
    def still_modulation(self, tokens: Tensor) -> Tensor:
        """Compute the blocks' modulation at timestep 0, for reference tokens."""
