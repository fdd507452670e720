"""The whole model against the authors' release, at a small size."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_wan import shared_folder
from torch import Tensor

from genhoi import attach, from_official

pytestmark = pytest.mark.shared
TOLERANCE = 1e-4
REDUCTIONS = {"mean": "sequence", "token": "token", "bypass": None}


class Golden:
    def __init__(self, name: str) -> None:
        folder = shared_folder() / "goldens"
        self.about = json.loads((folder / f"model_{name}.json").read_text())
        self.inputs, self.outputs, self.weights = (
            {
                k: x.float()
                for k, x in load_file(folder / f"model_{name}_{part}.safetensors").items()
            }
            for part in ("inputs", "outputs", "weights")
        )
        self.transformer, self.adapter = from_official(self.weights, self.about["config"])

    def run(self, *, step: int = 1) -> Tensor:
        x, timestep = self.inputs["x"], self.inputs["timestep"]
        if step == 2:
            x, timestep = x.flip(2), torch.tensor([250.0])
        with torch.no_grad():
            (out,) = self.transformer(
                torch.cat([x, self.inputs["y"]], 1), timestep, self.inputs["context"],
                self.inputs["clip_feature"], return_dict=False,
            )  # fmt: skip
        assert isinstance(out, Tensor)
        return out

    def assert_same(self, out: Tensor, case: str) -> None:
        torch.testing.assert_close(out, self.outputs[case], rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("A")


CASES = [
    *(f"fp32_{m}_{g}" for m in ("nomask", "mask", "noref") for g in REDUCTIONS),
    "fp32_maskallzero_token",
    "fp32_maskallone_token",
    "fp32_nomask_mean_ceilrope",
    "second_step_mean_nomask",
    "second_step_token_mask",
]


@pytest.mark.parametrize("case", CASES)
def test_case(golden: Golden, case: str) -> None:
    about = golden.about["cases"][case]
    mask = golden.inputs["mask_input_for_v2v"]
    if "maskall" in case:
        mask = torch.full_like(mask, float("allone" in case))
    options: dict[str, Any] = {
        "mask_gate": about["mask_gate"], "flow_gate": REDUCTIONS[about["gate"]],
    }  # fmt: skip
    if "positions" in about:
        options["schedule"] = about["positions"]
    handle = attach(golden.transformer, golden.adapter, **options)
    try:
        if about.get("reference", True):
            handle.set_reference([golden.inputs["latents_ref_img"]], mask)
        second = case.startswith("second_step")
        if second:
            golden.run()
        golden.assert_same(golden.run(step=2 if second else 1), case)
        assert handle.reference_passes == (about.get("reference", True) and "allzero" not in case)
    finally:
        handle.detach()


def test_every_fp32_case_is_tried(golden: Golden) -> None:
    fp32 = {n for n, about in golden.about["cases"].items() if about["precision"] == "fp32"}
    assert fp32 == set(CASES)


def test_presets(golden: Golden) -> None:
    """Release: from the preset, from the converted adapter's config, and with 16 channels."""
    latents = golden.inputs["latents_ref_img"]
    for preset, given in (("release", latents), (None, latents), ("release", latents[:, :16])):
        handle = attach(golden.transformer, golden.adapter, preset=preset)
        handle.set_reference([given])
        golden.assert_same(golden.run(), "fp32_nomask_mean")
        handle.detach()


def test_token_mask(golden: Golden) -> None:
    handle = attach(golden.transformer, golden.adapter, mask_gate=True)
    tokens = golden.inputs["token_mask_expected"].bool()
    handle.set_reference([golden.inputs["latents_ref_img"]], tokens)
    golden.assert_same(golden.run(), "fp32_mask_mean")
    handle.detach()
