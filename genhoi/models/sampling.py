"""Flow matching: the noise levels, Euler's steps, guidance on the text.

Source: GenHOI, arXiv 2603.06048; sigma = shift s / (1 + (shift - 1) s), s from 1 to 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genhoi.models.protocol import VideoModel

__all__ = [
    "TIMESTEPS",
    "denoise",
    "guidance_by_step",
    "noise",
    "noise_levels",
    "shifted",
    "unshifted",
]

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


def unshifted(sigma: float, shift: float) -> float:
    """Compute the level that `shifted` takes to a sigma."""
    return sigma / (shift - (shift - 1) * sigma)


def guidance_by_step(
    sigmas: Tensor, guidance: float, guidance_2: float | None, boundary: float | None
) -> list[float]:
    """Say how strong guidance is in every step.

    Args:
        sigmas: see `noise_levels`.
        guidance: of the first transformer, or the only one.
        guidance_2: of the one that takes over below the boundary; None: the same.
        boundary: sigma at which it does; None: there is one transformer.
    """
    if boundary is None or guidance_2 is None:
        return [guidance] * (len(sigmas) - 1)
    timesteps = (sigmas[:-1] * TIMESTEPS).tolist()
    return [guidance if t >= boundary * TIMESTEPS else guidance_2 for t in timesteps]


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
    guidance: float | Sequence[float],
    sigmas: Tensor,
    after_step: Callable[[int, Tensor], None],
    clean: Tensor | None = None,
) -> Tensor:
    """Take latents from noise to a clip by Euler's method, in float32 between the model's calls.

    Args:
        model: says what its channels are.
        latents: float32 noise [B, C, f, h, w].
        condition: as the model takes it beside the latents, for a Wan [B, 4 + C, f, h, w].
        text, no_text: [B, tokens, text_dim], of prompt and negative prompt; no_text None: no
            guidance.
        image: image tokens or None.
        guidance: 1 is none; one number for all steps, or one for each.
        sigmas: see `noise_levels`.
        after_step: called with (steps done, latents).
        clean: latents under the noise of the first sigma; None where it is 1.
    """
    steps = len(sigmas) - 1
    guidances = guidance if isinstance(guidance, Sequence) else [guidance] * steps
    condition, start = condition.to(latents.device), latents
    shown = condition.to(model.transformer.dtype)
    if clean is not None:
        latents = torch.lerp(clean, start, sigmas[0].item())
    latents = model.with_given(latents, condition, start, sigmas[0].item())
    for i in range(steps):
        # In float32: bfloat16 is off by up to 2 of the 1000 timesteps.
        timestep = (sigmas[i] * TIMESTEPS).expand(len(latents))
        at_work = model.at(timestep[0].item())
        given = (latents, shown, timestep.to(latents.device))
        v = _velocity(at_work, "cond", *given, text, image)
        if no_text is not None and guidances[i] != 1:
            v_no_text = _velocity(at_work, "uncond", *given, no_text, image)
            v = v_no_text + guidances[i] * (v - v_no_text)
        latents = latents + (sigmas[i + 1] - sigmas[i]).item() * v
        latents = model.with_given(latents, condition, start, sigmas[i + 1].item())
        after_step(i + 1, latents)
    return latents


def _velocity(
    model: VideoModel,
    branch: str,
    latents: Tensor,
    condition: Tensor,
    timestep: Tensor,
    text: Tensor,
    image: Tensor | None,
) -> Tensor:
    transformer = model.transformer
    latents = latents.to(transformer.dtype)
    with transformer.cache_context(branch):
        out: Tensor = transformer(**model.inputs(latents, condition, timestep, text, image))[0]
    return out.float()
