"""Flow matching: the noise levels, Euler's steps, guidance on the text, the windows of a long clip.

Source: GenHOI, arXiv 2603.06048; sigma = shift s / (1 + (shift - 1) s), s from 1 to 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["denoise", "noise", "noise_levels", "shifted", "windows"]

_TIMESTEPS = 1000


def noise_levels(steps: int, shift: float) -> Tensor:
    """Sigmas of all steps and the final 0: float32 [steps + 1], falling from 1.

    Raises:
        ValueError: steps below 1, or a shift that is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, wanted at least 1")
    if not shift > 0:
        raise ValueError(f"shift: got {shift}, wanted a positive number")
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def shifted(s: Tensor, shift: float) -> Tensor:
    """Sigmas of levels s from 0 to 1: shift s / (1 + (shift - 1) s)."""
    return shift * s / (1 + (shift - 1) * s)


def noise(shape: tuple[int, ...], seed: int, window: int) -> Tensor:
    """Standard normal float32 noise, made on the CPU: the same on every device, for each window its
    own."""
    digest = hashlib.sha256(f"{seed}/{window}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)


def windows(frames: int, window: int) -> list[tuple[int, int]]:
    """First and one-past-last frame of every window; each begins with the last frame of the one
    before.

    All are of one length, except the last, which may be shorter.

    Raises:
        ValueError: a length that is not 1 + 4 n with n at least 1.
    """
    for name, length in (("frames", frames), ("window", window)):
        if length < 5 or (length - 1) % 4:
            raise ValueError(f"{name}: got {length}, wanted 1 + 4 n: 5, 9, ..., 81, ...")
    step = window - 1
    return [(start, min(start + window, frames)) for start in range(0, frames - 1, step)]


@torch.inference_mode()
def denoise(
    transformer: Any,
    latents: Tensor,
    condition: Tensor,
    *,
    text: Tensor,
    no_text: Tensor | None,
    image: Tensor | None,
    guidance: float,
    sigmas: Tensor,
    after_step: Callable[[int, Tensor], None],
) -> Tensor:
    """Take latents from noise to a clip by Euler's method, in float32 between the model's calls.

    Args:
        transformer: a Wan.
        latents: float32 noise [1, C, f, h, w].
        condition: [1, 4 + C, f, h, w].
        text, no_text: [1, 512, text_dim], of prompt and negative prompt; no_text None: no guidance.
        image: image tokens or None.
        guidance: 1 is none.
        sigmas: see `noise_levels`.
        after_step: called with (steps done, latents).
    """
    condition = condition.to(latents)
    for i in range(len(sigmas) - 1):
        hidden = torch.cat([latents, condition], dim=1).to(transformer.dtype)
        # In float32: bfloat16 is off by up to 2 of the 1000 timesteps.
        timestep = (sigmas[i] * _TIMESTEPS).to(latents.device).expand(len(latents))

        def velocity(
            context: str, words: Tensor, hidden: Tensor = hidden, timestep: Tensor = timestep
        ) -> Tensor:
            with transformer.cache_context(context):
                out: Tensor = transformer(
                    hidden_states=hidden,
                    timestep=timestep,
                    encoder_hidden_states=words,
                    encoder_hidden_states_image=image,
                    return_dict=False,
                )[0]
            return out.float()

        v = velocity("cond", text)
        if no_text is not None:
            v_no_text = velocity("uncond", no_text)
            v = v_no_text + guidance * (v - v_no_text)
        latents = latents + (sigmas[i + 1] - sigmas[i]).item() * v
        after_step(i + 1, latents)
    return latents
