"""One edit at work: window by window, each from noise to frames."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genhoi.bases.base import Base
from genhoi.bases.settings import EditSettings
from genhoi.conditioning.condition import Condition, reference_tokens
from genhoi.editing.joining import join_window, match_colour
from genhoi.editing.parts import Parts
from genhoi.media import Clip, fit_image
from genhoi.models.attachment import Attachment
from genhoi.models.sampling import denoise, guidance_by_step, noise, noise_levels

__all__ = ["EditArguments", "EditRun", "Progress"]


@dataclass(frozen=True)
class Progress:
    """Where an edit stands; what `GenHOIPipeline` calls back with, after every step.

    Args:
        window, windows: this one, from 0, of how many.
        step, steps: steps done in it, of how many.
        done: share of all steps, 0 to 1, windows of earlier runs included.
        seconds_left: at the speed so far.
        latents: float32 [1, C, f, h, w] of this window; do not change them.
        attention: after a window's last step, if it was asked for: float32 [f, h, w], see
            `genhoi.models.attachment.AttentionShare`.
    """

    window: int
    windows: int
    step: int
    steps: int
    done: float
    seconds_left: float
    latents: Tensor
    attention: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class EditArguments(EditSettings):
    """Arguments of `GenHOIPipeline` that need no tensor; see there."""

    prompt: str
    negative_prompt: str
    strengths: Sequence[float] | None
    seed: int


class EditRun:
    """One call of the pipeline.

    Args:
        base, attachment: of the pipeline.
        clip, masks: as the model gets them.
        objects: as given.
        settings: all of them.
        spans: first and one-past-last frame of each window.
        parts: windows that an earlier run finished, and where to keep more.
        attention_layer, callback: as given.
    """

    def __init__(
        self,
        base: Base,
        attachment: Attachment,
        clip: Clip,
        masks: Sequence[Tensor],
        objects: list[Tensor],
        settings: EditArguments,
        spans: list[tuple[int, int]],
        *,
        parts: Parts | None,
        attention_layer: int | None,
        callback: Callable[[Progress], object] | None,
    ) -> None:
        self.base, self.model, self.attachment = base, base.model, attachment
        self.clip, self.masks, self.objects = clip, masks, objects
        self.settings, self.spans, self.parts = settings, spans, parts
        self.attention_layer = attention_layer
        self.callback = callback
        self.references: list[Tensor] = []
        self.sigmas = noise_levels(settings.steps, settings.shift)
        self.guidance = guidance_by_step(
            self.sigmas, settings.guidance, settings.guidance_2, base.boundary
        )
        self.begun, self.begun_at, self.steps_here = time.monotonic(), 0.0, 0

    def run(self, first: Tensor | None, last: Tensor | None) -> Tensor:
        """Edit all windows; return the frames, uint8 [F, H, W, 3]."""
        texts: tuple[Tensor, Tensor | None] | None = None
        out = torch.empty_like(self.clip.frames)
        for i, (begin, end) in enumerate(self.spans):
            if i > 0:
                first = out[begin]
            frames = None if self.parts is None else self.parts.load(i)
            if frames is None:
                if texts is None:  # not where an earlier run has finished everything
                    texts = self._start()
                ends = last if end == self.clip.num_frames else None
                frames = self._window(i, first, ends, *texts)
                if self.parts is not None:
                    self.parts.save(i, frames)
            join_window(out, frames, begin, self.settings.overlap if i > 0 else 0)
        return out

    def _start(self) -> tuple[Tensor, Tensor | None]:
        """Encode the texts, which may be refused, and set the references."""
        settings = self.settings
        no_text = None
        if any(guidance != 1 for guidance in self.guidance):
            no_text = self.base.encode_text(settings.negative_prompt)
        text = self.base.encode_text(settings.prompt)
        size = (self.clip.height, self.clip.width)
        self.references = [self.base.encode(fit_image(x, size)[None]) for x in self.objects]
        strengths = settings.strengths
        bias = None if strengths is None else [math.log(x) for x in strengths]
        tokens = self._tokens(0, False) if self.attachment.options.mask_gate else None
        self.attachment.set_reference(self.references, tokens, ref_bias=bias)
        return text, no_text

    def _tokens(self, window: int, first_given: bool) -> Tensor:
        begin, end = self.spans[window]
        strides = self.model.sizes.strides
        tokens = reference_tokens(
            [mask[begin:end] for mask in self.masks],
            strides.grid(end - begin, self.clip.height, self.clip.width),
            rule=self.settings.mask_rule,
            first_frame_given=first_given,
        )
        return tokens.to(self.base.device)

    def _condition(self, window: int, first: Tensor | None, last: Tensor | None) -> Condition:
        begin, end = self.spans[window]
        return self.model.build_condition(
            self.clip.frames[begin:end],
            torch.stack([mask[begin:end] for mask in self.masks]).any(0),
            self.base.encode,
            first_frame=first,
            last_frame=last,
        )

    def _window(
        self,
        window: int,
        first: Tensor | None,
        last: Tensor | None,
        text: Tensor,
        no_text: Tensor | None,
    ) -> Tensor:
        condition = self._condition(window, first, last)
        if self.attachment.options.mask_gate:
            self.attachment.set_mask(self._tokens(window, first is not None))
        image = self.base.encode_image(condition.first_image, condition.last_image)
        channels = self.model.with_references(condition.channels, self.references)
        _, _, frames, height, width = channels.shape
        shape = (1, self.model.sizes.latent_channels, frames, height, width)
        start = noise(shape, self.settings.seed, window).to(channels.device)
        latents = denoise(
            self.model,
            start,
            channels,
            text=text,
            no_text=no_text,
            image=image,
            guidance=self.guidance,
            sigmas=self.sigmas,
            after_step=self._after_step(window),
        )
        made = self.base.decode(latents[:, :, self.attachment.reference_frames :])
        if self.settings.match_colour:
            begin, end = self.spans[window]
            made = match_colour(made, self.clip.frames[begin:end], condition.mask)
        return made

    def _after_step(self, window: int) -> Callable[[int, Tensor], None]:
        """Make what is called after each step: it reports, and measures attention in the last."""
        steps = self.settings.steps
        layer = self.attention_layer
        meter = None if layer is None else self.attachment.attention_share(layer)
        if meter is not None and steps == 1:
            meter.watch_next()

        def after_step(step: int, latents: Tensor) -> None:
            self.steps_here += 1
            if meter is not None and step == steps - 1:
                meter.watch_next()
            share = None if meter is None or step < steps else meter.share
            self._report(window, step, latents, share)

        return after_step

    def _report(self, window: int, step: int, latents: Tensor, attention: Tensor | None) -> None:
        if self.callback is None:
            return
        steps = self.settings.steps
        # A shorter last window takes less; counted by frames, which is near enough.
        lengths = [end - begin for begin, end in self.spans]
        done = (sum(lengths[:window]) + lengths[window] * step / steps) / sum(lengths)
        if self.steps_here == 1:
            self.begun_at = done - lengths[window] / steps / sum(lengths)
        elapsed = time.monotonic() - self.begun
        left = elapsed / max(done - self.begun_at, 1e-9) * (1 - done)
        self.callback(
            Progress(window, len(self.spans), step, steps, done, left, latents, attention)
        )
