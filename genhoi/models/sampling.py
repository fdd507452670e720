"""Flow matching: the noise levels, Euler's steps, guidance on the text.

Source: GenHOI, arXiv 2603.06048; sigma = shift s / (1 + (shift - 1) s), s from 1 to 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from genhoi.models.protocol import VideoModel

__all__ = ["TIMESTEPS", "denoise", "noise", "noise_levels", "shifted"]

TIMESTEPS = 1000  # of a sigma of 1, as the model counts


def noise_levels(steps: int, shift: float) -> Tensor:
    """Compute the sigmas of all steps and the final 0: float32 [steps + 1], falling from 1.

    Raises:
        ValueError: steps below 1, or a shift that is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, wanted at least 1")
    if not shift > 0:
        raise ValueError(f"shift: got {shift}, wanted a positive number")
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def shifted(s: Tensor, shift: float) -> Tensor:
    """Compute the sigmas of levels s from 0 to 1: shift s / (1 + (shift - 1) s)."""
    return shift * s / (1 + (shift - 1) * s)


def noise(shape: tuple[int, ...], seed: int, window: int) -> Tensor:
    """Draw standard normal float32 noise on the CPU: one for all devices, another a window."""
    digest = hashlib.sha256(f"{seed}/{window}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator)


@torch.inference_mode()
def denoise(
    model: VideoModel,
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
        model: says what its channels are.
        latents: float32 noise [B, C, f, h, w].
        condition: as the model takes it beside the latents, for a Wan [B, 4 + C, f, h, w].
        text, no_text: [B, tokens, text_dim], of prompt and negative prompt; no_text None: no
            guidance.
        image: image tokens or None.
        guidance: 1 is none.
        sigmas: see `noise_levels`.
        after_step: called with (steps done, latents).
    """
    transformer = model.transformer
    condition = condition.to(latents.device, transformer.dtype)

    def velocity(branch: str, text: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        with transformer.cache_context(branch):
            out: Tensor = transformer(**model.inputs(latents, condition, timestep, text, image))[0]
        return out.float()

    for i in range(len(sigmas) - 1):
        noisy = latents.to(transformer.dtype)
        # In float32: bfloat16 is off by up to 2 of the 1000 timesteps.
        timestep = (sigmas[i] * TIMESTEPS).to(latents.device).expand(len(latents))
        v = velocity("cond", text, noisy, timestep)
        if no_text is not None:
            v_no_text = velocity("uncond", no_text, noisy, timestep)
            v = v_no_text + guidance * (v - v_no_text)
        latents = latents + (sigmas[i + 1] - sigmas[i]).item() * v
        after_step(i + 1, latents)
    return latents
