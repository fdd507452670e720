"""The op against tensors of the authors' release: rotation, attention, mask and flow gate."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cases import GPU_BACKENDS, backend_params
from torch import Tensor

from genhoi_kernels import GateWeights, HeadSlidingRope, VideoRope, apply_rope, reference_attention

pytestmark = pytest.mark.shared
TOLERANCE = 1e-5
BACKENDS = ["eager", *(p for p in backend_params() if p.values[0] not in GPU_BACKENDS)]
every_backend = pytest.mark.parametrize("name", BACKENDS)


class Release:
    """Block 0 of the release at a small size."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.model = json.loads((folder / "model_A.json").read_text())
        self.tensors = load_file(folder / "op_A_layer0.safetensors")
        self.weights = load_file(folder / "model_A_weights.safetensors")
        self.heads = self.model["config"]["num_heads"]
        self.head_dim = self.model["config"]["head_dim"]
        grid = tuple(self.model["token_grid_fhw"])
        height, width = self.model["ref_latent_HW"]
        _, patch_h, patch_w = self.model["config"]["patch_size"]
        self.rope = VideoRope(grid, head_dim=self.head_dim)
        self.ref_rope = HeadSlidingRope(
            grid,
            ((height // patch_h, width // patch_w),),
            head_dim=self.head_dim,
            num_heads=self.heads,
            schedule="release",
        )

    def heads_of(self, name: str) -> Tensor:
        """A tensor [1, S, dim] as [1, S, H, D]."""
        return self.tensors[name].unflatten(-1, (self.heads, self.head_dim))

    def gate(self, name: str) -> GateWeights:
        """A flow gate of block 0, from the model's weights."""
        at = f"blocks.0.{name}.gate.mlp"
        return GateWeights(
            *(
                self.weights[f"{at}.{layer}.{kind}"].float()
                for layer in (0, 1, 3)
                for kind in ("weight", "bias")
            )
        )

    def attention(self, mask: bool, **options: Any) -> Tensor:
        """Video attention over video and reference."""
        out = reference_attention(
            self.heads_of("self.q_prerope"),
            self.heads_of("self.k_prerope"),
            self.heads_of("self.v"),
            self.heads_of("self.k_ref_prerope"),
            self.heads_of("self.v_ref"),
            rope=self.rope,
            ref_rope=self.ref_rope,
            mask=self.tensors["token_mask"] if mask else None,
            **options,
        )
        assert isinstance(out, Tensor)
        return out

    def reference_stream(self, **options: Any) -> Tensor:
        """The reference over itself: plain attention of keys rotated beforehand."""
        q, k = (
            apply_rope(
                self.heads_of(f"self.{n}_ref_prerope"), self.ref_rope, backend=options["backend"]
            )
            for n in "qk"
        )
        out = reference_attention(q, k, self.heads_of("self.v_ref"), **options)
        assert isinstance(out, Tensor)
        return out


@pytest.fixture(scope="module")
def release(shared: Path) -> Release:
    return Release(shared / "goldens")


def assert_same(x: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(x, wanted, rtol=0, atol=TOLERANCE)


@every_backend
def test_rotation(release: Release, name: str) -> None:
    for x, rope in (
        ("q", release.rope),
        ("k", release.rope),
        ("q_ref", release.ref_rope),
        ("k_ref", release.ref_rope),
    ):
        turned = apply_rope(release.heads_of(f"self.{x}_prerope"), rope, backend=name)
        assert_same(turned, release.heads_of(f"self.{x}_postrope"))
    frames = release.model["ref_temporal_positions_release"]
    assert list(release.ref_rope.frames) == frames


@every_backend
@pytest.mark.parametrize("mask", ["nomask", "mask"])
def test_attention(release: Release, name: str, mask: str) -> None:
    out = release.attention(mask == "mask", backend=name)
    assert_same(out.flatten(-2), release.tensors[f"{mask}/self.attn_main_pregate"])
    other = {"mask": "nomask", "nomask": "mask"}[mask]
    wrong = release.tensors[f"{other}/self.attn_main_pregate"]
    assert (out.flatten(-2) - wrong).abs().max() > 100 * TOLERANCE


@every_backend
@pytest.mark.parametrize(("case", "reduction"), [("token", "token"), ("mean", "sequence")])
@pytest.mark.parametrize("mask", ["nomask", "mask"])
def test_gated_attention(release: Release, name: str, mask: str, case: str, reduction: str) -> None:
    gate = release.gate("self_attn.attn")
    out = release.attention(mask == "mask", gate=gate, gate_reduction=reduction, backend=name)
    assert_same(out.flatten(-2), release.tensors[f"{mask}_{case}/self.attn_main_gated"])


@every_backend
def test_reference_stream(release: Release, name: str) -> None:
    out = release.reference_stream(backend=name)
    assert_same(out.flatten(-2), release.tensors["self.attn_ref_pregate"])
    gate = release.gate("self_attn.attn")
    for case, reduction in (("token", "token"), ("mean", "sequence")):
        out = release.reference_stream(gate=gate, gate_reduction=reduction, backend=name)
        assert_same(out.flatten(-2), release.tensors[f"nomask_{case}/self.attn_ref_gated"])


@every_backend
@pytest.mark.parametrize(("case", "reduction"), [("token", "token"), ("mean", "sequence")])
def test_image_cross_attention(release: Release, name: str, case: str, reduction: str) -> None:
    """Nk != N, no rotation, another gate."""
    at = f"nomask_{case}/cross"
    q, k, v = (release.heads_of(n) for n in (f"{at}.q", "cross.img.k", "cross.img.v"))
    plain = reference_attention(q, k, v, backend=name)
    assert isinstance(plain, Tensor)
    assert_same(plain.flatten(-2), release.tensors[f"{at}.img.pregate"])
    gate = release.gate("cross_attn.attn_img")
    out = reference_attention(q, k, v, gate=gate, gate_reduction=reduction, backend=name)
    assert isinstance(out, Tensor)
    assert_same(out.flatten(-2), release.tensors[f"{at}.img.gated"])
