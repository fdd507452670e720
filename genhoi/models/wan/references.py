"""What the video refers to: references, their weights, and which tokens see them, all checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genhoi.conditioning.grid import STRIDES, Grid
from genhoi.conditioning.masks import token_mask
from genhoi.models.placement import check_device, execution_device
from genhoi.models.protocol import ReferenceStreamModel
from genhoi.models.wan.programs import is_exporting
from genhoi_kernels import MaskGate

__all__ = ["References", "Visibility"]

_OF_AN_IMAGE = "genhoi.encode_reference(vae, image, size=(height, width)) makes one of an image"


@dataclass(frozen=True, eq=False)
class Visibility:
    """Which video tokens see the references.

    Args:
        gate: for the op.
        grid: tokens (f, h, w) that the mask was made for; None where it does not tell.
        any_token: whether any token sees a reference.
    """

    gate: MaskGate
    grid: Grid | None
    any_token: bool

    @classmethod
    def of_mask(cls, mask: Tensor | None, latents: Sequence[Tensor], patch: Grid) -> Visibility:
        """Build it from a mask as `Attachment.set_reference` takes it; wait for the device once.

        Raises:
            TypeError, ValueError: as `Attachment.set_reference`.
        """
        mask = _checked_mask(mask, latents)
        if mask.dim() == 2:
            grid = None
            gate = MaskGate.build(mask)
        else:
            f, h, w = (size // p for size, p in zip(mask.shape[-3:], patch, strict=True))
            grid = (f, h, w)
            gate = MaskGate.build(token_mask(mask, grid))
        # The bits of the references there are; int32 holds 32 with its sign.
        bits = (1 << len(latents)) - 1 if len(latents) < 32 else -1
        # A mask that is an input of an exported program has no values yet.
        any_token = is_exporting() or bool((gate.bits & bits).any())
        return cls(gate, grid, any_token)


@dataclass(frozen=True, eq=False)
class References:
    """What one call of `Attachment.set_reference` chose.

    Args:
        latents: ``[1 or B, C, 1, h, w]`` of each reference.
        lengths: tokens of each.
        bias: float32 ``[R]``, added to each reference's logits, or None.
        visibility: which tokens see them; None: all do.
    """

    latents: list[Tensor] = field(default_factory=list)
    lengths: tuple[int, ...] = ()
    bias: Tensor | None = None
    visibility: Visibility | None = None

    @classmethod
    def checked(
        cls,
        model: ReferenceStreamModel,
        latents: Sequence[Tensor] | None,
        mask: Tensor | None,
        ref_bias: Sequence[float] | None,
        *,
        mask_gate: bool,
    ) -> References:
        """Check and keep the arguments of `Attachment.set_reference`.

        Raises:
            TypeError, ValueError: as `Attachment.set_reference`.
        """
        latents = _checked_latents(model, [] if latents is None else latents)
        _, rows, columns = model.sizes.patch
        chosen = cls(
            latents,
            tuple((x.shape[3] // rows) * (x.shape[4] // columns) for x in latents),
            _bias(ref_bias, len(latents)),
        )
        if mask is None and not (latents and mask_gate):
            return chosen
        return chosen.with_mask(model, mask, mask_gate=mask_gate)

    def with_mask(
        self, model: ReferenceStreamModel, mask: Tensor | None, *, mask_gate: bool
    ) -> References:
        """Return the same references with another mask.

        Raises:
            TypeError, ValueError: as `Attachment.set_reference`.
        """
        if not self.latents or not mask_gate:
            why = "the mask gate is off" if self.latents else "no reference is set"
            raise ValueError(f"mask: got one while {why}, wanted none, for it would not be used")
        visibility = Visibility.of_mask(mask, self.latents, model.sizes.patch)
        return replace(self, visibility=visibility)

    @property
    def mask(self) -> MaskGate | None:
        """Return the gate for the op."""
        return None if self.visibility is None else self.visibility.gate

    @property
    def any_seen(self) -> bool:
        """Tell whether any token sees a reference."""
        return bool(self.latents) and (self.visibility is None or self.visibility.any_token)

    def check_forward(self, video: Tensor, grid: Grid) -> None:
        """Raise ValueError unless they fit the video's latents and its tokens."""
        if not self.latents:
            return
        device, batch = self.latents[0].device, len(video)
        if device != video.device:
            raise ValueError(
                f"references: got device {device}, wanted {video.device} as the video latents; "
                f"call set_reference with tensors there"
            )
        for x in self.latents:
            if len(x) not in (1, batch):
                raise ValueError(f"references: got a batch of {len(x)}, wanted 1 or {batch}")
        if self.visibility is not None:
            _check_mask_fits(self.visibility, grid, batch)


def _checked_latents(model: ReferenceStreamModel, latents: Sequence[Tensor]) -> list[Tensor]:
    if not isinstance(latents, (list, tuple)):
        raise TypeError(
            f"references: got {type(latents).__name__}, wanted a list of tensors or None; "
            f"{_OF_AN_IMAGE}"
        )
    _, rows, columns = model.sizes.patch
    device = execution_device(model.transformer)
    for x in latents:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"references: got {came}, wanted floating-point tensors of latents; {_OF_AN_IMAGE}"
            )
        is_latent = x.dim() == 5 and x.shape[1] != 3 and x.shape[2] == 1
        if not is_latent or x.shape[3] % rows or x.shape[4] % columns:
            raise ValueError(
                f"references: got shape {tuple(x.shape)}, wanted [1 or B, C, 1, h, w], h a "
                f"multiple of {rows} and w of {columns}; {_OF_AN_IMAGE}"
            )
        check_device("references", x, device, "the transformer")
        model.check_reference(x)
    if len(batches := {len(x) for x in latents} - {1}) > 1:
        raise ValueError(f"references: got batches of {sorted(batches)}, wanted 1 or one B")
    return list(latents)


def _bias(ref_bias: Sequence[float] | None, references: int) -> Tensor | None:
    """Check the numbers; return ``[R]`` float32."""
    if ref_bias is None:
        return None
    if not isinstance(ref_bias, (list, tuple)) or not all(
        isinstance(x, (int, float)) for x in ref_bias
    ):
        raise TypeError(f"ref_bias: got {ref_bias!r}, wanted a list of numbers or None")
    if len(ref_bias) != references or not all(math.isfinite(x) for x in ref_bias):
        raise ValueError(
            f"ref_bias: got {list(ref_bias)}, wanted {references} finite numbers, one a reference"
        )
    return torch.tensor(ref_bias, dtype=torch.float32) if references else None


def _checked_mask(mask: Tensor | None, latents: Sequence[Tensor]) -> Tensor:
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"mask: got {type(mask).__name__}, wanted a tensor, for the mask gate is on "
            f"(attach with mask_gate=False to do without)"
        )
    check_device("mask", mask, latents[0].device, "references")
    if mask.dim() not in (2, 4, 5):
        pixels = f"; {_of_pixels('(f, h, w)')}" if mask.dim() == 3 else ""
        raise ValueError(
            f"mask: got shape {tuple(mask.shape)}, wanted latents [1 or B, 4 or 1, F, H, W] or "
            f"tokens [1 or B, f*h*w]{pixels}"
        )
    if mask.dtype == torch.uint8 and mask.dim() == 2 and len(latents) > 8:
        raise ValueError(
            f"mask: got uint8 tokens, whose bits tell 8 references apart, wanted int32 for "
            f"{len(latents)}"
        )
    return mask


def _of_pixels(grid: str) -> str:
    return f'genhoi.token_mask(mask, {grid}, kind="pixel") makes tokens of a mask over pixels'


def _check_mask_fits(visibility: Visibility, grid: Grid, batch: int) -> None:
    if visibility.grid not in (None, grid):
        came, (f, h, w) = visibility.grid, grid
        # Taken for latents, pixels make a grid that is larger by the codec's strides.
        of_pixels = (STRIDES.pixel_frames(f), STRIDES.space * h, STRIDES.space * w)
        call = f"; {_of_pixels(str(grid))}" if came == of_pixels else ""
        raise ValueError(
            f"mask: got one for grid {came}, wanted {grid} as the video's tokens{call}"
        )
    shape, tokens = tuple(visibility.gate.bits.shape), grid[0] * grid[1] * grid[2]
    if shape[1] != tokens or shape[0] not in (1, batch):
        raise ValueError(
            f"mask: got tokens of shape {shape}, wanted [1 or {batch}, {tokens}] for grid {grid}"
        )
