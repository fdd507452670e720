"""Clip, mask and picture of an object in; edited clip out.

Source: GenHOI, arXiv 2603.06048. A long clip is edited in windows of 81 frames, each of which
begins with the last frame of the one before; the reference's keys and values are computed once for
all windows of one length.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from genhoi.bases.base import Base
from genhoi.bases.load import is_tiny, load_base, shipped_adapter
from genhoi.conditioning.condition import Condition, build_condition, reference_tokens
from genhoi.conditioning.masks import MaskRule
from genhoi.editing.background import keep_background
from genhoi.editing.checks import check_inputs, check_seen
from genhoi.editing.parts import Parts, fingerprint
from genhoi.media.media import Clip, fit_image
from genhoi.models.adapter import FlowGateReduction, GenHOIAdapter, Schedule
from genhoi.models.sampling import denoise, noise, noise_levels, windows
from genhoi.models.wan.attach import Preset, attach
from genhoi.models.wan.attention_share import AttentionShare

__all__ = ["GenHOIPipeline", "Progress"]


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
            `genhoi.models.wan.attention_share`.
    """

    window: int
    windows: int
    step: int
    steps: int
    done: float
    seconds_left: float
    latents: Tensor
    attention: Tensor | None = None


class GenHOIPipeline:
    """A base with an adapter, ready to edit.

    Args:
        base: see `from_pretrained` for a name instead.
        adapter: None for a fresh one, which is not trained.
        preset, mask_gate, flow_gate, schedule: as for `genhoi.attach`, except that a mask_gate and
            a schedule of None are the preset's or the adapter's, as is a flow_gate of "preset".

    Raises:
        TypeError, ValueError: as `genhoi.attach`.
    """

    def __init__(
        self,
        base: Base,
        adapter: GenHOIAdapter | None = None,
        *,
        preset: Preset | None = None,
        mask_gate: bool | None = None,
        flow_gate: FlowGateReduction | Literal["preset"] | None = "preset",
        schedule: Schedule | None = None,
    ) -> None:
        self.base = base
        self.adapter_trained = adapter is not None
        weight = next(base.transformer.parameters())
        if adapter is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                adapter = GenHOIAdapter.for_transformer(base.transformer)
        adapter = adapter.to(weight.device, base.transformer.dtype)
        given: dict[str, Any] = {}
        if mask_gate is not None:
            given["mask_gate"] = mask_gate
        if flow_gate != "preset":
            given["flow_gate"] = flow_gate
        if schedule is not None:
            given["schedule"] = schedule
        self.attachment = attach(base.transformer, adapter, preset=preset, **given)

    @classmethod
    def from_pretrained(
        cls,
        base: str | os.PathLike[str] = "tiny",
        *,
        adapter: str | os.PathLike[str] | GenHOIAdapter | None = None,
        video_lora: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        offload: Literal["none", "model", "group"] = "none",
        **options: Any,
    ) -> GenHOIPipeline:
        """Load a base, and an adapter on it.

        Args:
            base: "tiny", trained and shipped with the package; "tiny-untrained"; or the folder of
                a tiny base or of a diffusers Wan2.1 image-to-video pipeline; or the name of one on
                the Hugging Face Hub that has been downloaded before.
            adapter: folder or name on the Hub, see `GenHOIAdapter.from_pretrained`; an adapter; or
                None for the one that comes with the base "tiny", else for a fresh one, which is
                not trained.
            video_lora: folder of low-rank weights for the video's own attention, as `genhoi train
                --video-rank` writes them for bases in diffusers' format.
            device: where to compute.
            dtype: of transformer, adapter and text encoder.
            offload: "model" keeps one component at a time on the device, "group" one block of the
                transformer.
            options: preset, mask_gate, flow_gate, schedule; see the class.

        Raises:
            FileNotFoundError: no such base; the message says what to fetch. Or no video_lora.
            ImportError: video_lora needs peft.
            TypeError, ValueError: as the class; a base that takes no video_lora.
        """
        device = torch.device(device)
        if offload not in ("none", "model", "group"):
            raise ValueError(f"offload: got {offload!r}, wanted 'none', 'model' or 'group'")
        if offload != "none" and (is_tiny(base) or device.type == "cpu"):
            raise ValueError(
                f"offload: got {offload!r} for base {base} on {device}, wanted 'none': it serves "
                f"large bases on a GPU"
            )
        if adapter is None:
            adapter = shipped_adapter(base)
        if isinstance(adapter, (str, os.PathLike)):
            adapter = GenHOIAdapter.from_pretrained(adapter)
        loaded = load_base(base, device=device, dtype=dtype)
        pipeline = cls(loaded, adapter, **options)
        if video_lora is not None:
            loaded.load_video_lora(video_lora)
        loaded.place(offload)
        return pipeline

    def __call__(
        self,
        clip: Clip,
        masks: Tensor | Sequence[Tensor],
        objects: Tensor | Sequence[Tensor],
        *,
        first_frame: Tensor | None = None,
        last_frame: Tensor | None = None,
        prompt: str = "",
        negative_prompt: str = "",
        strengths: Sequence[float] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        shift: float | None = None,
        seed: int = 0,
        window: int | None = None,
        mask_rule: MaskRule | None = None,
        restore_background: bool = False,
        parts: str | os.PathLike[str] | None = None,
        discard_parts: bool = False,
        attention_layer: int | None = None,
        callback: Callable[[Progress], object] | None = None,
    ) -> Clip:
        """Put objects into a clip.

        Args:
            clip: 1 + 4 n frames, n at least 1; height and width multiples of 16.
            masks: bool [F, H, W] for each object: where to generate, and what sees that object.
            objects: pictures, uint8 [h, w, 3]; fitted into the frame on grey.
            first_frame: uint8 [H, W, 3], frame 0 finished. None: frame 0 is generated too, which
                departs from the authors' release.
            last_frame: the last frame finished.
            prompt, negative_prompt: texts; the latter serves guidance.
            strengths: of each object, default 1: factor on the weight of its tokens before softmax.
            steps: of Euler's method. None for the base's own, as for the next ones: 50 for Wan.
            guidance: on the text; 1 is none, and then the model runs once a step, else twice. 5 for
                Wan; a base that takes no text wants 1.
            shift: of the noise levels towards noise; 5 for Wan.
            seed: of the noise; the same seed gives the same clip.
            window: frames a window, 1 + 4 n; 81 for Wan.
            mask_rule: when a token counts as masked for the gate, see `token_mask`; "release" for
                Wan.
            restore_background: put the source's own pixels back outside the masks, with a soft
                edge; see `keep_background`.
            parts: folder for finished windows. An edit that was interrupted goes on after the last
                finished one, with the same result. Removed by you, when the result is safe.
            discard_parts: throw another edit's windows away instead of refusing.
            attention_layer: block whose attention to the objects is measured in each window's last
                step, at the cost of two more attention calls; goes to the callback.
            callback: called after every step; what it raises ends the edit.

        Returns:
            The edited clip, of the same length, size and rate.

        Raises:
            TypeError, ValueError: an argument does not fit, before any long work.
            FileExistsError: `parts` holds something else.
        """
        masks = [masks] if isinstance(masks, Tensor) else list(masks)
        objects = [objects] if isinstance(objects, Tensor) else list(objects)
        check_inputs(clip, masks, objects, first_frame, last_frame, strengths)
        defaults = self.base.defaults
        steps = defaults.steps if steps is None else steps
        guidance = defaults.guidance if guidance is None else guidance
        shift = defaults.shift if shift is None else shift
        window = defaults.window if window is None else window
        mask_rule = mask_rule or defaults.mask_rule
        sigmas = noise_levels(steps, shift)
        spans = windows(clip.num_frames, window)
        if not math.isfinite(guidance):
            raise ValueError(f"guidance: got {guidance}, wanted a finite number")
        if guidance != 1 and not self.base.takes_text:
            raise ValueError(f"guidance: got {guidance}, wanted 1: this base takes no text")
        layers = len(self.base.transformer.blocks)
        if attention_layer is not None and not 0 <= attention_layer < layers:
            raise ValueError(f"attention_layer: got {attention_layer}, wanted 0 to {layers - 1}")
        if self.attachment.options.mask_gate:
            check_seen(clip, masks, mask_rule, first_frame is not None)
        settings: dict[str, Any] = {
            "base": self.base.about, "options": self.attachment.options, "prompt": prompt,
            "negative_prompt": negative_prompt, "strengths": strengths, "steps": steps,
            "guidance": guidance, "shift": shift, "seed": seed, "window": window,
            "mask_rule": mask_rule, "fps": clip.fps,
        }  # fmt: skip
        kept = None
        if parts is not None:
            tensors = {"clip": clip.frames, "first": first_frame, "last": last_frame}
            tensors |= {f"mask {i}": x for i, x in enumerate(masks)}
            tensors |= {f"object {i}": x for i, x in enumerate(objects)}
            job = fingerprint(settings, tensors, self.base.transformer)
            kept = Parts(parts, job, discard=discard_parts)

        job_ = _Job(
            self.base, self.attachment, clip, masks, objects, mask_rule, strengths, sigmas,
            guidance, seed, spans, kept, attention_layer, callback,
        )  # fmt: skip
        with torch.inference_mode():
            frames = job_.run(first_frame, last_frame, prompt, negative_prompt)
        if restore_background:
            frames = keep_background(frames, clip.frames, torch.stack(masks).any(0))
        return Clip(frames, clip.fps)


@dataclass
class _Job:
    """One call of the pipeline."""

    base: Base
    attachment: Any
    clip: Clip
    masks: list[Tensor]
    objects: list[Tensor]
    mask_rule: MaskRule
    strengths: Sequence[float] | None
    sigmas: Tensor
    guidance: float
    seed: int
    spans: list[tuple[int, int]]
    parts: Parts | None
    attention_layer: int | None
    callback: Callable[[Progress], object] | None

    def run(self, first: Tensor | None, last: Tensor | None, prompt: str, negative: str) -> Tensor:
        """uint8 [F, H, W, 3]."""
        texts: tuple[Tensor, Tensor | None] | None = None
        out: list[Tensor] = []
        self.begun, self.run_here = time.monotonic(), 0
        for i, (_, end) in enumerate(self.spans):
            frames = None if self.parts is None else self.parts.load(i)
            if frames is None:
                if texts is None:  # not where an earlier run has finished everything
                    texts = self._start(prompt, negative)
                ends = last if end == self.clip.num_frames else None
                frames = self._window(i, first, ends, *texts)
                if self.parts is not None:
                    self.parts.save(i, frames)
            out.append(frames if i == 0 else frames[1:])
            first = frames[-1]
        return torch.cat(out)

    def _start(self, prompt: str, negative: str) -> tuple[Tensor, Tensor | None]:
        """Encode the texts, which may be refused, and set the references."""
        no_text = None if self.guidance == 1 else self.base.encode_text(negative)
        text = self.base.encode_text(prompt)
        size = (self.clip.height, self.clip.width)
        latents = [self.base.encode(fit_image(x, size)[None]) for x in self.objects]
        strengths = self.strengths
        bias = None if strengths is None else [math.log(x) for x in strengths]
        tokens = self._tokens(0, False) if self.attachment.options.mask_gate else None
        self.attachment.set_reference(latents, tokens, ref_bias=bias)
        return text, no_text

    def _tokens(self, window: int, first_given: bool) -> Tensor:
        begin, end = self.spans[window]
        grid = (1 + (end - begin - 1) // 4, self.clip.height // 16, self.clip.width // 16)
        masks = [mask[begin:end] for mask in self.masks]
        tokens = reference_tokens(masks, grid, rule=self.mask_rule, first_frame_given=first_given)
        return tokens.to(self.base.device)

    def _condition(self, window: int, first: Tensor | None, last: Tensor | None) -> Condition:
        begin, end = self.spans[window]
        return build_condition(
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
        channels = condition.channels
        shape = (1, channels.shape[1] - 4, *channels.shape[2:])

        steps = len(self.sigmas) - 1
        layer = self.attention_layer
        share = None if layer is None else AttentionShare(self.attachment, layer)

        def after_step(step: int, latents: Tensor) -> None:
            self.run_here += 1
            if share is not None and step == steps - 1:
                share.watch_next()
            found = None if share is None or step < steps else share.found
            self._report(window, step, latents, found)

        if share is not None and steps == 1:
            share.watch_next()
        latents = denoise(
            self.base.transformer,
            noise(shape, self.seed, window).to(channels.device),
            channels,
            text=text,
            no_text=no_text,
            image=self.base.encode_image(condition.first_image, condition.last_image),
            guidance=self.guidance,
            sigmas=self.sigmas,
            after_step=after_step,
        )
        return self.base.decode(latents)

    def _report(self, window: int, step: int, latents: Tensor, attention: Tensor | None) -> None:
        if self.callback is None:
            return
        steps = len(self.sigmas) - 1
        # A shorter last window takes less; counted by frames, which is near enough.
        lengths = [end - begin for begin, end in self.spans]
        done = (sum(lengths[:window]) + lengths[window] * step / steps) / sum(lengths)
        if self.run_here == 1:
            self.begun_at = done - lengths[window] / steps / sum(lengths)
        elapsed = time.monotonic() - self.begun
        left = elapsed / max(done - self.begun_at, 1e-9) * (1 - done)
        self.callback(
            Progress(window, len(self.spans), step, steps, done, left, latents, attention)
        )
