"""How weights that were distilled to few steps are run: steps, guidance, and noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genhoi.extras import needed_for

__all__ = ["FEW_STEPS", "FewSteps", "few_steps"]


@dataclass(frozen=True)
class FewSteps:
    """Settings for weights that were distilled to few steps; see `few_steps`.

    Args:
        steps: of Euler's method.
        guidance: on the text; 1 is none.
        shift: of the noise levels towards noise.
    """

    steps: int
    guidance: float
    shift: float

    @property
    def arguments(self) -> dict[str, Any]:
        """Return steps and guidance as arguments of a diffusers pipeline."""
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance}

    def scheduler(self) -> Any:
        """Make a scheduler of diffusers for a pipeline's ``scheduler``.

        Euler's method at the levels that the weights were distilled at: 1, 3/4, 1/2 and 1/4 of the
        way for 4 steps, shifted. ``FlowMatchEulerDiscreteScheduler`` takes others, of which the
        last, 1/1000 of the way, spends a step on next to nothing.
        """
        with needed_for("genhoi.few_steps"):
            from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=self.shift,
            solver_order=1,  # on a flow, that is Euler's method
        )


# The values of lightx2v's configurations for its 4-step LoRA of Wan 2.1 and 2.2 14B.
FEW_STEPS = {"lightx2v": FewSteps(steps=4, guidance=1.0, shift=5.0)}
"""By the name of who published such weights."""


def few_steps(name: str = "lightx2v") -> FewSteps:
    """Return how somebody's weights for few steps are run.

    Args:
        name: "lightx2v": 4 steps, no guidance, shift 5.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> import genhoi
        >>> preset = genhoi.few_steps("lightx2v")
        >>> preset.arguments
        {'num_inference_steps': 4, 'guidance_scale': 1.0}
        >>> scheduler = preset.scheduler()  # pipe.scheduler = ..., after pipe.load_lora_weights
        >>> scheduler.set_timesteps(preset.steps)
        >>> scheduler.timesteps.tolist()
        [999, 937, 833, 624]
    """
    if name not in FEW_STEPS:
        raise ValueError(f"name: got {name!r}, wanted one of {', '.join(FEW_STEPS)}")
    return FEW_STEPS[name]
