"""An adapter at work in a transformer: what `genhoi.attach` returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.options import Options

__all__ = ["ATTACHMENT", "Attachment", "AttentionShare"]

ATTACHMENT = "_genhoi_attachment"
"""Attribute of a transformer that holds its attachment, from ``attach`` to ``detach``."""


class AttentionShare(ABC):
    """Measures, on request, how much of one block's attention goes to the references.

    Attributes:
        share: float32 [f, h, w] on the CPU, mean over heads, NaN where the mask gate keeps a token
            from all references; None before `watch_next` and where there is no reference to see.
    """

    share: Tensor | None = None

    @abstractmethod
    def watch_next(self) -> None:
        """Measure the next forward pass."""


class Attachment(ABC):
    """A transformer with an adapter on it; made by ``attach``.

    Attributes:
        transformer, adapter: as given.
        options: mask_gate, flow_gate and schedule in force.
        reference_passes: how often the reference stream has run.
        skip_unseen: leave references out where no token of the batch sees them. Training turns it
            off, so that every weight is reached in every pass, which DistributedDataParallel and
            FSDP rely on; the result is the same.
        reference_frames: latent frames at the front of the noisy latents that stand for the
            references; 0 where these are a stream of their own.

    Example:
        >>> import genhoi, torch
        >>> pipeline = genhoi.GenHOIPipeline.from_pretrained("mosaic-untrained")
        >>> handle = pipeline.attachment  # or what `genhoi.attach` returned
        >>> handle.options.mask_gate, handle.options.schedule
        (True, 'paper')
        >>> handle.detach()  # the transformer as it was
    """

    transformer: Any
    adapter: GenHOIAdapter
    options: Options
    reference_passes: int = 0
    skip_unseen: bool = True
    reference_frames: int = 0

    @abstractmethod
    def set_reference(
        self,
        references: Sequence[Tensor] | None,
        mask: Tensor | None = None,
        *,
        ref_bias: Sequence[float] | None = None,
    ) -> None:
        """Choose what the video refers to, for all forward passes until the next call.

        Nothing is computed until the first of them; then keys and values are, once, and kept for
        all steps and guidance branches. Synchronises with the host once. Of a VACE model, whose
        inputs have the references, they are only counted (``set_reference_frames``): it takes
        neither mask nor ref_bias.

        Args:
            references: latents ``[1 or B, C, 1, h, w]`` of each reference, of any size that the
                patches divide; C is the latent's channels, completed as the model's input asks, or
                the model's in_channels. Cast to the video's dtype when used. None: no reference;
                flow gates stay on.
            mask: which video tokens see them: a latent mask ``[1 or B, 4 or 1, F, H, W]`` (see
                ``token_mask``), or tokens ``[1 or B, f*h*w]``, bool, or integer with bit r for
                reference r. For a mask over pixels call ``token_mask(..., kind="pixel")`` first.
                Needed with the mask gate on, refused with it off or without references.
            ref_bias: one number a reference, added to its logits: log(2) doubles the weight of its
                tokens before softmax, log(1/2) halves it. None: 0 for all.

        Raises:
            TypeError: not tensors, a mask of floating-point tokens, or no mask with the mask gate
                on.
            ValueError: shapes or devices that do not fit, or a mask that would not be used. A mask
                for another grid than the video's is found out in the next forward pass.
            RuntimeError: after ``detach``.
        """

    def set_reference_frames(
        self, count: int, *, sliding: Literal["all", "last", "none"] = "all"
    ) -> None:
        """Say how many latent frames at the front are references, and which of them slide.

        Of VACE models, whose references are frames of the sequence: noise of theirs comes first in
        ``hidden_states``, and they themselves in ``control_hidden_states``
        (``genhoi.vace_context``). It holds for all forward passes until the next call.

        Args:
            count: of the references; 0 for none.
            sliding: which turn per head: "all"; "last", as in the authors' release, whose other
                references stay where their frame is; or "none".

        Raises:
            TypeError: count is no integer, or the model's references are a stream of their own.
            ValueError: count is below 0, or sliding is unknown. That there are no more frames than
                references is found out in the next forward pass.
            RuntimeError: after ``detach``.
        """
        raise TypeError(
            "set_reference_frames: references of this model are a stream of their own, wanted "
            "set_reference"
        )

    @abstractmethod
    def take_reference(self, other: Attachment) -> None:
        """Refer to what another attachment of the same kind does; nothing is checked again.

        For the experts of one pipeline. Keys and values are each attachment's own.

        Raises:
            RuntimeError: after ``detach``.
        """

    @abstractmethod
    def set_mask(self, mask: Tensor) -> None:
        """Change which video tokens see the references, and keep the references' keys and values.

        For the windows of a long clip, which share references and grid.

        Args:
            mask: as for ``set_reference``.

        Raises:
            TypeError, ValueError, RuntimeError: as ``set_reference``.
        """

    def refresh(self) -> None:  # noqa: B027  (of those that keep something)
        """Compute what is kept of the references again, in the next forward pass.

        Call it after weights were changed through ``.data``, as diffusers' ``EMAModel.copy_to`` and
        ``restore`` change them: that leaves no trace in a tensor. All other changes are noticed, a
        LoRA's hot swap among them. Where nothing is kept, as of a VACE model, it does nothing.

        Raises:
            RuntimeError: after ``detach``.
        """

    @abstractmethod
    def attention_share(self, layer: int) -> AttentionShare:
        """Put a meter at a block."""

    @abstractmethod
    def detach(self) -> None:
        """Leave the transformer as it was before ``attach``; the adapter keeps its weights."""
