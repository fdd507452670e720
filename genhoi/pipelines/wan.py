"""GenHOI on Wan image-to-video as a pipeline of diffusers' kind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image
from torch import Tensor

from genhoi.bases.wan_codec import encode_reference
from genhoi.bases.wan_condition import edit_condition
from genhoi.conditioning.condition import paint_grey, reference_tokens, with_finished_frames
from genhoi.conditioning.grid import STRIDES
from genhoi.conditioning.masks import MaskRule
from genhoi.media import Clip, resize_clip, resize_image, resize_mask
from genhoi.models.attachment import ATTACHMENT, Attachment
from genhoi.models.experts import join
from genhoi.models.pipelines import experts_of
from genhoi.pipelines.pixels import frames_of, masks_of, picture_of

__all__ = ["WanGenHOIPipeline"]


@dataclass(frozen=True)
class _Edit:
    """What one call edits; tensors on the CPU.

    Args:
        frames: uint8 [F, H, W, 3], at the size of the model.
        masks: bool [F, H, W] for each object, or one.
        objects: uint8 [h, w, 3] each; None leaves the references as they are.
        first, last: finished frames, uint8 [H, W, 3].
        strengths, mask_rule: as given.
        videos: for each prompt.
    """

    frames: Tensor
    masks: list[Tensor]
    objects: list[Tensor] | None
    first: Tensor | None
    last: Tensor | None
    strengths: Sequence[float] | None
    mask_rule: MaskRule
    videos: int

    @property
    def mask(self) -> Tensor:
        """Return what is generated for any object."""
        return torch.stack(self.masks).any(0)

    def ends(self) -> tuple[Image.Image, Image.Image]:
        """Return the first and the last frame as the model sees them."""
        frames, mask = with_finished_frames(self.frames, self.mask, self.first, self.last)
        first, last = paint_grey(frames[[0, -1]], mask[[0, -1]]).numpy()
        return Image.fromarray(first), Image.fromarray(last)

    def tokens(self) -> Tensor:
        """Say of every token which objects it sees.

        Raises:
            ValueError: no token sees one of them.
        """
        masks = self.masks * (len(self.objects or ()) if len(self.masks) == 1 else 1)
        bits = reference_tokens(
            masks,
            STRIDES.grid(*masks[0].shape),
            rule=self.mask_rule,
            first_frame_given=self.first is not None,
        )
        for i in range(len(masks)):
            if not (bits >> i & 1).any():
                raise ValueError(
                    f"mask: got one of object {i + 1} without a single token of {STRIDES.token} x "
                    f"{STRIDES.token} pixels in it, a finished frame not counted; wanted a larger "
                    f'one, or mask_rule="any", which counts every pixel'
                )
        return bits


class WanGenHOIPipeline(WanImageToVideoPipeline):  # type: ignore[misc]
    """Objects into a clip: diffusers' `WanImageToVideoPipeline` with GenHOI's condition.

    ``from_pretrained``, ``from_pipe``, offloading, LoRA, schedulers, callbacks and the loop over
    the steps are diffusers' own; `genhoi.attach_pipeline` brings the adapter. What stands beside
    the noise is `genhoi.edit_condition`. It edits the whole frame of one clip, as long as the model
    takes; `genhoi.GenHOIPipeline` crops, pastes back, and edits long clips in windows.

    Example:
        >>> import genhoi
        >>> parts = dict.fromkeys(["tokenizer", "text_encoder", "vae", "scheduler"])
        >>> pipe = genhoi.WanGenHOIPipeline(**parts)  # or from_pretrained, or from_pipe(pipe)
        >>> # handle = genhoi.attach_pipeline(pipe, adapter)
        >>> # frames = pipe(video=frames, mask=masks, objects=[mug], prompt="...").frames[0]
    """

    _edit: _Edit | None = None

    def to_json_string(self) -> str:
        """Write model_index.json as diffusers' own class does: the folder is an ordinary one."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = WanImageToVideoPipeline.__name__
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @property
    def attachment(self) -> Attachment | None:
        """Return what is attached to all transformers; None where one has no adapter."""
        found = [getattr(expert, ATTACHMENT, None) for expert in experts_of(self).values()]
        attached = [each for each in found if isinstance(each, Attachment)]
        return join(attached) if len(attached) == len(found) else None

    @torch.no_grad()
    def __call__(
        self,
        video: Any,
        mask: Any,
        objects: Sequence[Any] | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        image: Any = None,
        last_image: Any = None,
        strengths: Sequence[float] | None = None,
        mask_rule: MaskRule = "release",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        guidance_scale_2: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 512,
    ) -> Any:
        """Generate what is masked.

        Args:
            video: the clip, 1 + 4 n frames: a list of PIL images, a `genhoi.Clip`, uint8
                [F, H, W, 3], or what diffusers' pipelines return.
            mask: where to generate, white or 1: bool [F, H, W], or in the forms of `video`; or a
                list of these, one for each object.
            objects: pictures of the objects, PIL images or uint8 [h, w, 3]; fitted into the frame
                on grey. None: what the attachment was told before (``set_reference``).
            prompt, negative_prompt: texts.
            image: frame 0, finished: nothing is generated there. None: it is a frame like any
                other.
            last_image: the same for the last frame.
            strengths: of each object, default 1: factor on the weight of its tokens before softmax.
            mask_rule: when a token counts as masked for the gate, see `genhoi.token_mask`.
            height, width: that the model works at, multiples of 16; frames and masks are stretched
                to it. None: the clip's own.
            num_inference_steps, guidance_scale, guidance_scale_2, num_videos_per_prompt, generator,
                latents, prompt_embeds, negative_prompt_embeds, output_type, return_dict,
                attention_kwargs, callback_on_step_end, callback_on_step_end_tensor_inputs,
                max_sequence_length: as for diffusers' `WanImageToVideoPipeline`.

        Returns:
            diffusers' `WanPipelineOutput`, or a tuple.

        Raises:
            TypeError, ValueError: an argument or a transformer does not fit.
            RuntimeError: objects, and a transformer without an adapter.
        """
        sees_last = self._check_transformers()
        edit = _edit_of(
            video,
            mask,
            objects,
            (image, last_image),
            size=(height, width),
            strengths=strengths,
            mask_rule=mask_rule,
            videos=num_videos_per_prompt,
        )
        self._check_attached(edit)
        first, last = edit.ends()
        frames, rows, columns = edit.frames.shape[:3]
        self._edit = edit
        try:
            return super().__call__(
                image=first,
                last_image=last if sees_last else None,
                prompt=prompt,
                negative_prompt=negative_prompt,
                height=rows,
                width=columns,
                num_frames=frames,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                guidance_scale_2=guidance_scale_2,
                num_videos_per_prompt=num_videos_per_prompt,
                generator=generator,
                latents=latents,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                output_type=output_type,
                return_dict=return_dict,
                attention_kwargs=attention_kwargs,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=list(callback_on_step_end_tensor_inputs),
                max_sequence_length=max_sequence_length,
            )
        finally:
            self._edit = None

    def encode_image(self, image: Any, device: torch.device | None = None) -> Any:
        """Encode an image for all videos of a prompt, which the base's loop leaves out."""
        embeds = super().encode_image(image, device)
        return embeds.repeat(1 if self._edit is None else self._edit.videos, 1, 1)

    def prepare_latents(
        self,
        image: Any,
        batch_size: int,
        num_channels_latents: int = 16,
        height: int = 480,
        width: int = 832,
        num_frames: int = 81,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        last_image: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw noise, set the references, and build the condition, after the texts are encoded."""
        edit = self._edit
        assert edit is not None  # __call__ sets it
        noise = WanPipeline.prepare_latents(
            self,
            batch_size,
            num_channels_latents,
            height,
            width,
            num_frames,
            dtype,
            device,
            generator,
            latents,
        )
        self._set_references(edit, device)
        condition = edit_condition(
            self.vae, edit.frames, edit.mask, first_frame=edit.first, last_frame=edit.last
        )
        return noise, condition.to(device, dtype).expand(batch_size, -1, -1, -1, -1)

    def _set_references(self, edit: _Edit, device: torch.device | None) -> None:
        attachment = self.attachment
        if edit.objects is None or attachment is None:
            return
        size = edit.frames.shape[1], edit.frames.shape[2]
        references = [encode_reference(self.vae, x, size=size).to(device) for x in edit.objects]
        gated = references and attachment.options.mask_gate
        attachment.set_reference(
            references,
            edit.tokens().to(device) if gated else None,
            ref_bias=None if edit.strengths is None else [math.log(x) for x in edit.strengths],
        )

    def _check_transformers(self) -> bool:
        """Refuse transformers without room for a mask; tell whether they look at a last frame."""
        for name, transformer in experts_of(self).items():
            config = transformer.config
            wanted = 2 * config.out_channels + STRIDES.time
            if config.in_channels != wanted:
                raise ValueError(
                    f"{name}: got {config.in_channels} input channels for {config.out_channels} of "
                    f"latents, wanted {wanted}: noise, mask and clip, as of Wan image-to-video"
                )
        return config.pos_embed_seq_len is not None

    def _check_attached(self, edit: _Edit) -> None:
        """Refuse objects that nothing would look at, before any work."""
        if edit.objects is None:
            return
        attachment = self.attachment
        if attachment is None:
            raise RuntimeError(
                f"objects: got {len(edit.objects)}, while not every transformer of the pipeline "
                f"has an adapter; call genhoi.attach_pipeline(pipe, adapter) first"
            )
        if edit.objects and attachment.options.mask_gate:
            edit.tokens()  # raises where an object would be seen by nothing


def _edit_of(
    video: Any,
    mask: Any,
    objects: Sequence[Any] | None,
    ends: tuple[Any, Any],
    *,
    size: tuple[int | None, int | None],
    strengths: Sequence[float] | None,
    mask_rule: MaskRule,
    videos: int,
) -> _Edit:
    """Check what a call is given, and bring it to the size of the model."""
    clip = Clip(frames_of(video))
    if not STRIDES.is_clip(clip.num_frames):
        whole = STRIDES.longest(clip.num_frames)
        raise ValueError(
            f"video: got {clip.num_frames} frames, wanted 1 + {STRIDES.time} n, such as {whole} or "
            f"{whole + STRIDES.time}"
        )
    scaled = size[0] or clip.height, size[1] or clip.width
    if any(side % STRIDES.token for side in scaled):
        raise ValueError(
            f"height, width: got {scaled}, wanted multiples of {STRIDES.token}; without them the "
            f"clip's own size counts"
        )
    masks = [_resized_mask(x, clip, scaled) for x in masks_of(mask)]
    pictures = None
    if objects is not None:
        pictures = [picture_of(x, "objects") for x in objects]
        if len(masks) not in (1, len(pictures)):
            raise ValueError(
                f"mask: got {len(masks)} masks for {len(pictures)} objects, wanted one, or one each"
            )
    _check_strengths(strengths, pictures)

    def finished(x: Any, name: str) -> Tensor | None:
        return None if x is None else resize_image(picture_of(x, name), scaled)

    return _Edit(
        resize_clip(clip, scaled, mode="exact").frames,
        masks,
        pictures,
        finished(ends[0], "image"),
        finished(ends[1], "last_image"),
        strengths,
        mask_rule,
        videos,
    )


def _resized_mask(mask: Tensor, clip: Clip, size: tuple[int, int]) -> Tensor:
    if tuple(mask.shape) != (clip.num_frames, clip.height, clip.width):
        raise ValueError(
            f"mask: got shape {tuple(mask.shape)}, wanted "
            f"{(clip.num_frames, clip.height, clip.width)} as the video"
        )
    return resize_mask(mask, size, mode="exact")


def _check_strengths(strengths: Sequence[float] | None, objects: list[Tensor] | None) -> None:
    count = len(objects or ())
    if strengths is not None and (len(strengths) != count or not all(x > 0 for x in strengths)):
        raise ValueError(
            f"strengths: got {list(strengths)}, wanted {count} positive numbers, one an object"
        )
