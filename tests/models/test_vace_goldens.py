"""The VACE version against the authors' own outputs, at a small size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_wan import shared_folder
from torch import Tensor

import genhoi
from genhoi import Attachment, attach, from_official, to_official
from genhoi.conditioning.vace import with_reference_frames
from genhoi.models.registry import model_of
from genhoi.models.sampling import denoise, noise_levels

pytestmark = pytest.mark.shared
MODEL, CONDITION, LATENTS = 5e-5, 1e-6, 1e-4
NOT_SIZES = ("text_tokens", "video_latent_FHW", "max_refs", "lora_rank")
FAULT = "fp32_noref_token_asreleased"  # the first video frame turned as if it were a reference


def folder() -> Path:
    return shared_folder() / "goldens" / "vace"


def tensors(name: str) -> dict[str, Tensor]:
    return {k: x.float() for k, x in load_file(folder() / f"{name}.safetensors").items()}


class Golden:
    def __init__(self) -> None:
        self.about = json.loads((folder() / "model_V1.json").read_text())
        self.inputs, self.outputs = tensors("model_V1_inputs"), tensors("model_V1_outputs")
        self.weights, self.lora = tensors("model_V1_weights"), tensors("model_V1_lora")
        self.config = {k: v for k, v in self.about["config"].items() if k not in NOT_SIZES}
        self.plain = from_official(self.weights, self.config)
        self.with_lora = from_official(self.weights, self.config, lora=self.lora)

    def run(self, case: str) -> Tensor:
        about = self.about["cases"][case]
        count = about["references"]
        transformer, _ = self.with_lora if "lora" in case else self.plain
        references = self.inputs["ref_latents"][:, :, :count].split(1, dim=2) if count else ()
        context = self.inputs["vace_context_video"]
        context = with_reference_frames(context, references)
        x = torch.cat([self.inputs["x_ref"][:, :, :count], self.inputs["x_video"]], dim=2)
        timestep = torch.tensor([float(about["timestep"])])
        if "second_step" in case:
            x, timestep = x.flip(2), torch.tensor([250.0])
        if "shortctx" in case:
            context = context[:, :, :-1]
        with torch.no_grad():
            (out,) = transformer(
                x,
                timestep,
                self.inputs["context"],
                control_hidden_states=context,
                control_hidden_states_scale=torch.full((2,), about["scale"]),
                return_dict=False,
            )
        assert isinstance(out, Tensor)
        return out

    def attach(self, case: str) -> Attachment:
        about = self.about["cases"][case]
        transformer, adapter = self.with_lora if "lora" in case else self.plain
        return attach(
            transformer, adapter, flow_gate=None if about["gate"] == "bypass" else "token"
        )


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


CASES = [
    "fp32_noref_bypass",
    "fp32_noref_token",
    "fp32_ref1_bypass_plain",
    "fp32_ref1_bypass_slide",
    "fp32_ref1_token_plain",
    "fp32_ref1_token_slide",
    "fp32_ref1_token_slide_lora",
    "fp32_ref1_token_slide_scale0.5",
    "fp32_ref1_token_slide_scale1.7",
    "fp32_ref1_token_slide_second_step",
    "fp32_ref1_token_slide_shortctx",
    "fp32_ref2_token_asreleased",
    "fp32_ref2_token_corrected",
    "fp32_ref2_token_plain",
    FAULT,
]


@pytest.mark.parametrize("case", CASES)
def test_case(golden: Golden, case: str) -> None:
    """Of the fault we make the same output, by asking for what it does."""
    sliding = "none" if "plain" in case else "last" if "asreleased" in case else "all"
    handle: Any = golden.attach(case)
    try:
        count = 1 if case == FAULT else golden.about["cases"][case]["references"]
        handle.set_reference_frames(count, sliding=sliding)
        torch.testing.assert_close(golden.run(case), golden.outputs[case], rtol=0, atol=MODEL)
    finally:
        handle.detach()


def test_every_fp32_case_is_tried(golden: Golden) -> None:
    assert {name for name in golden.about["cases"] if name.startswith("fp32")} == set(CASES)


def test_cases_are_further_apart_than_the_tolerance(golden: Golden) -> None:
    """So that none of them passes for another."""
    handle: Any = golden.attach("fp32_ref2_token_corrected")
    handle.set_reference_frames(2, sliding="last")
    away = golden.run("fp32_ref2_token_corrected") - golden.outputs["fp32_ref2_token_corrected"]
    handle.detach()
    assert float(away.abs().max()) > 0.05


def test_there_and_back_again(golden: Golden) -> None:
    both = {**golden.weights, **golden.lora}
    transformer, adapter = golden.with_lora
    assert adapter.config.rank == golden.about["lora"]["rank"]
    back = to_official(transformer, adapter)
    assert set(back) == set(both)
    assert all(torch.equal(back[name], x) for name, x in both.items())


def test_low_rank_weights_may_lie_among_the_others(golden: Golden) -> None:
    _, adapter = from_official({**golden.weights, **golden.lora}, golden.config)
    assert adapter.config == golden.with_lora[1].config


# ------------------------------------------------------------------------ condition and sampling


def stand_in_vae(frames: Tensor) -> Tensor:
    """The mean of cells and of four frames; channel k is colour k mod 3 times 1 + k / 16."""
    small = torch.nn.functional.avg_pool3d(frames.permute(3, 0, 1, 2)[None], (1, 8, 8))[0]
    rest = small[:, 1:].unflatten(1, (-1, 4)).mean(2) if small.shape[1] > 1 else small[:, 1:]
    k = torch.arange(16)
    scaled = torch.cat([small[:, :1], rest], dim=1)[k % 3]
    return (scaled * (1 + k / 16).view(-1, 1, 1, 1))[None]


@pytest.mark.parametrize("name", ["ref0", "ref1", "ref1_without_mask", "ref2"])
def test_context(name: str) -> None:
    given = load_file(folder() / "pipeline_V1.safetensors")
    pictures = given["references_u8"][: int(name[3])]
    context = genhoi.vace_context(
        given["video_u8"],
        None if "without_mask" in name else given["mask_u8"].float() / 255,
        stand_in_vae,
        references=[stand_in_vae(x[None].float() / 127.5 - 1) for x in pictures],
    )
    wanted = given[f"condition/{name}/vace_context"]
    torch.testing.assert_close(context, wanted, rtol=0, atol=CONDITION)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_sampling(golden: Golden, count: int) -> None:
    """As released: the last reference slides, and without one the first frame of the video."""
    given = load_file(folder() / "pipeline_V1.safetensors")
    about = json.loads((folder() / "pipeline_V1.json").read_text())
    transformer, adapter = golden.plain
    handle: Any = attach(transformer, adapter)
    handle.set_reference_frames(max(count, 1), sliding="last")
    latents = denoise(
        model_of(transformer),
        given[f"sampling/ref{count}/initial_latents"],
        given[f"condition/ref{count}/vace_context"],
        text=given["context"],
        no_text=given["negative_context"],
        image=None,
        guidance=about["guidance"],
        sigmas=noise_levels(about["steps"], about["shift"]),
        after_step=lambda step, latents: None,
    )
    handle.detach()
    wanted = given[f"sampling/ref{count}/final_latents_video"]
    torch.testing.assert_close(latents[:, :, count:], wanted, rtol=0, atol=LATENTS)
