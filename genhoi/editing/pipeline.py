"""Clip, mask and picture of an object in; edited clip out.

Source: GenHOI, arXiv 2603.06048. A long clip is edited in windows of 81 frames, each of which
begins with the last frame of the one before; the reference's keys and values are computed once for
all windows of one length.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, get_args

import torch
from torch import Tensor

from genhoi.bases.about import CropMode
from genhoi.bases.base import NO_STRENGTHS, Base, Offload
from genhoi.bases.load import base_kind, check_base, load_base
from genhoi.bases.lora import Lora, check_loras
from genhoi.bases.settings import EditSettings, resolve
from genhoi.conditioning.masks import MaskRule
from genhoi.editing.bar import shown
from genhoi.editing.checks import check_inputs, check_seen
from genhoi.editing.parts import Parts, fingerprint
from genhoi.editing.plan import EditPlan, EditWarning, plan_edit
from genhoi.editing.run import EditArguments, EditRun, Progress
from genhoi.editing.windows import windows
from genhoi.media import Clip
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.adapter_config import FlowGateReduction, Schedule
from genhoi.models.attach import attach_pipeline
from genhoi.models.options import UNSET, Preset, Unset
from genhoi.models.sampling import noise_levels

__all__ = ["EditWarning", "GenHOIPipeline", "Progress"]

AdapterLike = str | os.PathLike[str] | GenHOIAdapter


class GenHOIPipeline:
    """A base with an adapter, ready to edit.

    Args:
        base: see `from_pretrained` for a name instead.
        adapter: copied, in the base's place and type; None for a fresh one, which is not trained.
            Of a base with two transformers, one for both, or two, that for high noise levels first.
        untrained_adapter: take a fresh adapter on a trained base, though its weights add nothing.
        preset, mask_gate, flow_gate, schedule: as for `genhoi.attach`.

    Raises:
        TypeError, ValueError: as `genhoi.attach`; a fresh adapter on a trained base.

    Example:
        >>> import genhoi, torch
        >>> clip = genhoi.Clip(torch.zeros(5, 32, 32, 3, dtype=torch.uint8))  # or genhoi.read_clip
        >>> mask = torch.zeros(5, 32, 32, dtype=torch.bool)
        >>> mask[:, 8:24, 8:24] = True
        >>> mug = torch.full((16, 16, 3), 200, dtype=torch.uint8)
        >>> pipeline = genhoi.GenHOIPipeline.from_pretrained("tiny")
        >>> pipeline(clip, mask, mug, steps=2, seed=1, progress_bar=False)
        Clip(5 frames, 32x32, 24 fps)
    """

    def __init__(
        self,
        base: Base,
        adapter: GenHOIAdapter | Sequence[GenHOIAdapter] | None = None,
        *,
        untrained_adapter: bool = False,
        preset: Preset | None = None,
        mask_gate: bool | Unset = UNSET,
        flow_gate: FlowGateReduction | Unset | None = UNSET,
        schedule: Schedule | Unset = UNSET,
    ) -> None:
        adapters = _as_list(adapter)
        _check_number(adapters, two_experts=base.transformer_2 is not None)
        if base.trained and not untrained_adapter:
            _refuse_fresh(adapters, ["adapter"], base.about)
        self.base = base
        self.adapter_trained = bool(adapters) and not any(x.is_fresh for x in adapters)
        if not adapters:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                adapters = [GenHOIAdapter.for_transformer(base.transformer)]
        # A copy each, though two transformers share one: they come and go on their own.
        pairs = zip(base.transformers, cycle(adapters), strict=False)
        self.attachment = attach_pipeline(
            base,
            [x.copy_to(next(t.parameters()).device, t.dtype) for t, x in pairs],
            preset=preset,
            mask_gate=mask_gate,
            flow_gate=flow_gate,
            schedule=schedule,
        )

    @classmethod
    def from_pretrained(
        cls,
        base: str | os.PathLike[str] = "tiny",
        *,
        adapter: AdapterLike | Sequence[AdapterLike] | None = None,
        transformer: str | os.PathLike[str] | None = None,
        video_lora: str | os.PathLike[str] | None = None,
        loras: Sequence[Lora] = (),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        offload: Offload = "none",
        untrained_adapter: bool = False,
        **options: Any,
    ) -> GenHOIPipeline:
        """Load a base, and an adapter on it.

        Args:
            base: "tiny", trained and shipped with the package; "mosaic-untrained"; or the folder of
                a mosaic base or of a diffusers Wan pipeline (image-to-video, VACE or text-to-video,
                of Wan 2.1 or 2.2); or the name of one on the Hugging Face Hub that has been
                downloaded before.
            adapter: folder or name on the Hub, see `GenHOIAdapter.from_pretrained`; an adapter; or
                None for the one that comes with the base, in its folder adapter/, else for a fresh
                one, which is refused unless `untrained_adapter` is
                True or the base is not trained either. Of a base with two transformers one for
                both, or a list of two, that for high noise levels first; they may come with it as
                adapter/ and adapter_2/.
            transformer: folder of one to take instead of the base's own, which is not loaded: of
                the same sizes, as `genhoi convert` or diffusers writes it. The base's adapter does
                not come with it.
            untrained_adapter: see the class.
            video_lora: folder of low-rank weights for the video's own attention, as `genhoi train
                --video-rank` writes them for bases in diffusers' format.
            loras: LoRA files for the base's transformers, such as those for few steps; see
                `genhoi.bases.lora`.
            device: where to compute.
            dtype: of transformer, adapter and text encoder.
            offload: "model" keeps one component at a time on the device, "group" one block of the
                transformer.
            options: preset, mask_gate, flow_gate, schedule; see the class.

        Raises:
            FileNotFoundError: no such base; the message says what to fetch. Or no video_lora.
            ImportError: video_lora and loras need peft.
            TypeError, ValueError: as the class; a base that takes no video_lora; a transformer of
                other sizes.
        """
        device = torch.device(device)
        if offload not in get_args(Offload):
            raise ValueError(f"offload: got {offload!r}, wanted 'none', 'model' or 'group'")
        kind = base_kind(base)
        if offload != "none" and (not kind.can_offload or device.type == "cpu"):
            raise ValueError(
                f"offload: got {offload!r} for base {base} on {device}, wanted 'none': it serves "
                f"large bases on a GPU"
            )
        given: list[Any] = _as_list(adapter)
        if adapter is None and transformer is None:
            given = list(kind.shipped_adapters(base))
        _check_number(given, two_experts=kind.two_experts)
        names = ["adapter" if isinstance(x, GenHOIAdapter) else os.fspath(x) for x in given]
        adapters = [
            x if isinstance(x, GenHOIAdapter) else GenHOIAdapter.from_pretrained(x) for x in given
        ]
        check_loras(loras, takes_lora=kind.takes_lora, two_experts=kind.two_experts)
        check_base(base, transformer=transformer)
        own = base if transformer is None else transformer
        trained = transformer is not None or kind.read_settings(base).trained
        if trained and not untrained_adapter:
            _refuse_fresh(adapters, names, os.fspath(own))  # before the base is loaded
        loaded = load_base(base, device=device, dtype=dtype, transformer=transformer)
        pipeline = cls(loaded, adapters or None, untrained_adapter=untrained_adapter, **options)
        if video_lora is not None:
            loaded.load_video_lora(video_lora)
        if loras:
            loaded.load_loras(loras)
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
        guidance_2: float | None = None,
        shift: float | None = None,
        seed: int = 0,
        window: int | None = None,
        overlap: int | None = None,
        match_colour: bool | None = None,
        mask_rule: MaskRule | None = None,
        crop: CropMode | None = None,
        size: tuple[int, int] | None = None,
        keep_background: bool | None = None,
        parts: str | os.PathLike[str] | None = None,
        discard_parts: bool = False,
        attention_layer: int | None = None,
        callback: Callable[[Progress], object] | None = None,
        progress_bar: bool = True,
    ) -> Clip:
        """Put objects into a clip.

        Args:
            clip: at least 5 frames, of any size. Where they are not 1 + 4 n, the last is repeated
                for the model.
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
            guidance_2: of a base with two transformers, on the second, for low noise levels; None:
                as `guidance`, unless the base has its own.
            shift: of the noise levels towards noise; 5 for Wan.
            seed: of the noise; the same seed gives the same clip.
            window: frames a window, 1 + 4 n; 81 for Wan.
            overlap: frames that each window has in common with the one before, 1 + 4 n; they fade
                from one to the other. 1 for Wan.
            match_colour: give every window the source's colours outside the masks, against drift.
            mask_rule: when a token counts as masked for the gate, see `token_mask`; "release" for
                Wan.
            crop: "auto" edits a box around the masks, at about the base's own size, and pastes it
                back: on the tiny base always, on Wan where the box is less than a third of the
                frame. "none": the whole frame, scaled down to the base's size.
            size: (height, width) that the model works at, multiples of 16, of Wan 2.2 TI2V of 32.
                None: the base's own, or near it, as the box or the frame wants it.
            keep_background: put the source's own pixels back outside the masks, with a soft edge;
                the default. Else everything that the model made is pasted.
            parts: folder for finished windows. An edit that was interrupted goes on after the last
                finished one, with the same result. Removed by you, when the result is safe.
            discard_parts: throw another edit's windows away instead of refusing.
            attention_layer: block whose attention to the objects is measured in each window's last
                step, at the cost of two more attention calls; goes to the callback.
            callback: called after every step; what it raises ends the edit.
            progress_bar: show one on standard error.

        Returns:
            The edited clip, of the same length, size and rate.

        Raises:
            TypeError, ValueError: an argument does not fit, before any long work.
            FileExistsError: `parts` holds something else.

        Warns:
            EditWarning: size, frames or masks are far from what the base was trained on, or a mask
                looks like a mistake.
        """
        masks, objects = _listed(masks), _listed(objects)
        sizes = self.base.model.sizes
        strides = sizes.strides
        check_inputs(clip, masks, objects, first_frame, last_frame, strengths, strides)
        if strengths is not None and not self.base.takes_strengths:
            raise ValueError(f"strengths: got {list(strengths)}, wanted None: {NO_STRENGTHS}")
        settings = self._settings(
            crop=crop,
            guidance=guidance,
            guidance_2=guidance_2,
            keep_background=keep_background,
            mask_rule=mask_rule,
            match_colour=match_colour,
            overlap=overlap,
            shift=shift,
            steps=steps,
            window=window,
        )
        plan = plan_edit(self.base.settings, masks, settings=settings, size=size, strides=strides)
        arguments = EditArguments(
            **vars(settings),
            negative_prompt=negative_prompt,
            prompt=prompt,
            seed=seed,
            strengths=strengths,
        )
        spans = windows(plan.frames, settings.window, settings.overlap)
        last_layer = len(self.base.model.blocks) - 1
        if attention_layer is not None and not 0 <= attention_layer <= last_layer:
            raise ValueError(f"attention_layer: got {attention_layer}, wanted 0 to {last_layer}")
        if self.attachment.options.mask_gate:
            check_seen(plan.masks, settings.mask_rule, first_frame is not None, strides)
        finished = None
        if parts is not None:
            tensors = {"clip": clip.frames, "first": first_frame, "last": last_frame}
            tensors |= {f"mask {i}": x for i, x in enumerate(masks)}
            tensors |= {f"object {i}": x for i, x in enumerate(objects)}
            job = self._fingerprint(arguments, plan, clip, tensors)
            finished = Parts(parts, job, discard=discard_parts)
        for note in plan.notes:
            warnings.warn(note, EditWarning, stacklevel=2)
        with (
            shown(callback, windows=len(spans), steps=settings.steps, bar=progress_bar) as step,
            torch.inference_mode(),
        ):
            made = EditRun(
                self.base,
                self.attachment,
                Clip(plan.cut(clip.frames), clip.fps),
                plan.masks,
                objects,
                arguments,
                spans,
                parts=finished,
                attention_layer=attention_layer,
                callback=step,
            ).run(plan.cut_at(0, first_frame), plan.cut_at(-1, last_frame))
        source = _with_ends(clip.frames, first_frame, last_frame)
        frames = plan.paste(source, made, masks, keep_background=settings.keep_background)
        return Clip(frames, clip.fps)

    def _settings(self, **given: Any) -> EditSettings:
        """Take the base's own values for None.

        Raises:
            ValueError: guidance that the base cannot have.
        """
        resolved = resolve(self.base.settings.defaults, **given)
        noise_levels(resolved.steps, resolved.shift)  # raises
        if resolved.guidance_2 is not None and not self.base.two_experts:
            raise ValueError(
                f"guidance_2: got {resolved.guidance_2}, wanted none: this base has one transformer"
            )
        for name in ("guidance", "guidance_2"):
            guidance = getattr(resolved, name)
            if guidance is not None and not math.isfinite(guidance):
                raise ValueError(f"{name}: got {guidance}, wanted a finite number")
        if resolved.guidance != 1 and not self.base.settings.takes_text:
            raise ValueError(
                f"guidance: got {resolved.guidance}, wanted 1: this base takes no text"
            )
        return resolved

    def _fingerprint(
        self,
        settings: EditArguments,
        plan: EditPlan,
        clip: Clip,
        tensors: dict[str, Tensor | None],
    ) -> str:
        """Tell an edit from all others, for the windows that it left unfinished."""
        values = vars(settings) | {
            "base": self.base.about,
            "options": self.attachment.options,
            "fps": clip.fps,
            "size": plan.crop.size,
        }
        return fingerprint(values, tensors, self.base.transformers)


def _with_ends(frames: Tensor, first: Tensor | None, last: Tensor | None) -> Tensor:
    """Put finished frames in the place of the clip's own; copy only if there are any."""
    if first is None and last is None:
        return frames
    frames = frames.clone()
    for i, finished in ((0, first), (-1, last)):
        if finished is not None:
            frames[i] = finished
    return frames


def _as_list(given: Any) -> list[Any]:
    """Make a list of one adapter or name, of several, or of None."""
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _check_number(adapters: Sequence[object], *, two_experts: bool) -> None:
    """Raise ValueError for more adapters than transformers."""
    most = 2 if two_experts else 1
    if len(adapters) > most:
        raise ValueError(
            f"adapter: got {len(adapters)}, wanted {'one or two' if two_experts else 'one'}: the "
            f"base has {'two transformers' if two_experts else 'one transformer'}"
        )


def _refuse_fresh(adapters: Sequence[GenHOIAdapter], names: Sequence[str], base: str) -> None:
    """Raise ValueError for an adapter that was not trained: it would cost hours and add nothing."""
    fresh = [name for x, name in zip(adapters, cycle(names), strict=False) if x.is_fresh]
    if adapters and not fresh:
        return
    came = f"{fresh[0]}, whose weights add nothing yet" if adapters else "none"
    raise ValueError(
        f"adapter: got {came}, wanted one that was trained on {base}; `genhoi train` makes one. "
        f"untrained_adapter (--untrained-adapter) takes a fresh one all the same"
    )


def _listed(given: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Take one tensor, or several; `check_inputs` refuses what is neither."""
    many = isinstance(given, Sequence) and not isinstance(given, str)
    return list(given) if many else [given]  # type: ignore[list-item]
