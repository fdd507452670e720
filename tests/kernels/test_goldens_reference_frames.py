"""The op against tensors of the authors' VACE form, whose references are frames of the sequence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cases import GPU_BACKENDS, backend_params
from torch import Tensor

from genhoi_kernels import (
    GateWeights,
    ReferenceFramesRope,
    apply_rope,
    qk_norm_rope,
    reference_attention,
)

pytestmark = pytest.mark.shared
TOLERANCE, GATE_TOLERANCE = 1e-5, 1e-6
BACKENDS = ["eager", *(p for p in backend_params() if p.values[0] not in GPU_BACKENDS)]
every_backend = pytest.mark.parametrize("name", BACKENDS)


class Release:
    """The first VACE block of the release at a small size: one reference, then six frames."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.model = json.loads((folder / "model_V1.json").read_text())
        self.tensors = load_file(folder / "op_V1_vace_block0.safetensors")
        self.weights = load_file(folder / "model_V1_weights.safetensors")
        config = self.model["config"]
        self.heads, self.head_dim = config["num_heads"], config["head_dim"]
        self.frames, *latent = config["video_latent_FHW"]
        self.grid = [n // patch for n, patch in zip(latent, config["patch_size"][1:], strict=True)]

    def rope(self, references: int, sliding: tuple[int, ...]) -> ReferenceFramesRope:
        """The rotation of so many references, of which some turn per head."""
        height, width = self.grid
        return ReferenceFramesRope(
            (references + self.frames, height, width),
            sliding,
            head_dim=self.head_dim,
            num_heads=self.heads,
            schedule="release",
        )

    def heads_of(self, name: str) -> Tensor:
        """A tensor [1, S, dim] as [1, S, H, D]."""
        return self.tensors[name].unflatten(-1, (self.heads, self.head_dim))

    def gate(self, attention: str) -> GateWeights:
        """A flow gate of the block, from the model's weights."""
        at = f"vace_blocks.0.{attention}_attn.attn.gate.mlp"
        names = [f"{at}.{layer}.{kind}" for layer in (0, 1, 3) for kind in ("weight", "bias")]
        return GateWeights(*(self.weights[name].float() for name in names))

    def attention(self, attention: str, **options: Any) -> Tensor:
        """The block's self-attention, rotated by the op, or its attention to the text."""
        kind = "_prerope" if attention == "self" else ""
        q, k = (self.heads_of(f"{attention}.{n}{kind}") for n in "qk")
        rope = self.rope(1, (0,)) if attention == "self" else None
        out = reference_attention(q, k, self.heads_of(f"{attention}.v"), rope=rope, **options)
        assert isinstance(out, Tensor)
        return out


@pytest.fixture(scope="module")
def release(shared: Path) -> Release:
    return Release(shared / "goldens" / "vace")


def assert_same(x: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(x, wanted, rtol=0, atol=tolerance)


@every_backend
def test_rotation(release: Release, name: str) -> None:
    rope, width = release.rope(1, (0,)), release.heads * release.head_dim
    assert list(rope.frames) == release.model["positions"]["1"]["frame_of_head"]
    rotated = {n: release.heads_of(f"self.{n}_postrope") for n in "qk"}
    before = {n: release.tensors[f"self.{n}_prerope"] for n in "qk"}
    for n in "qk":
        assert_same(
            apply_rope(release.heads_of(f"self.{n}_prerope"), rope, backend=name), rotated[n]
        )
    # The norm has happened: rows of mean square 1 pass through another one, without a weight.
    scale = {n: x.square().mean(-1, keepdim=True).sqrt() for n, x in before.items()}
    unit, ones = {n: before[n] / scale[n] for n in "qk"}, torch.ones(width)
    q, k = qk_norm_rope(unit["q"], unit["k"], ones, ones, rope, eps=0.0, backend=name)
    for x, n in ((q, "q"), (k, "k")):
        assert_same(x * scale[n][..., None], rotated[n])
    plain = apply_rope(release.heads_of("self.q_prerope"), release.rope(1, ()), backend=name)
    rows = release.grid[0] * release.grid[1]
    assert (plain - rotated["q"])[:, :rows].abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("table", "references", "sliding", "tolerance"),
    [
        ("", 1, (0,), 1e-9),
        (".ref2_corrected", 2, (0, 1), 1e-7),
        (".ref2_asreleased", 2, (1,), 1e-7),
    ],
)
def test_tables(
    release: Release, table: str, references: int, sliding: tuple[int, ...], tolerance: float
) -> None:
    """Rotated ones are the angles: cosine and sine of every row, head and pair."""
    wanted = release.tensors[f"freqs_vace{table}"].double()
    rows = (references + release.frames) * release.grid[0] * release.grid[1]
    assert wanted.shape[:2] == (rows, release.heads)
    one = torch.tensor([1.0, 0.0], dtype=torch.float64)
    x = one.repeat(1, rows, release.heads, release.head_dim // 2)
    turned = apply_rope(x, release.rope(references, sliding), backend="eager")
    assert_same(turned[0].unflatten(-1, (-1, 2)), wanted, tolerance)


@every_backend
@pytest.mark.parametrize("attention", ["self", "cross"])
def test_attention(release: Release, name: str, attention: str) -> None:
    out = release.attention(attention, backend=name)
    assert_same(out, release.tensors[f"{attention}.attn_pregate"])
    gated = release.attention(attention, gate=release.gate(attention), backend=name)
    assert_same(gated, release.tensors[f"{attention}.attn_gated"])


@every_backend
@pytest.mark.parametrize("attention", ["self", "cross"])
def test_gate(release: Release, name: str, attention: str) -> None:
    """A row that sees one key is that key's value, and a sum over one row is that row's logit."""
    o = release.tensors[f"{attention}.attn_pregate"].transpose(0, 1).contiguous()
    _, logits = reference_attention(
        o,
        o,
        o,
        gate=release.gate(attention),
        gate_reduction="sequence",
        return_gate_sum=True,
        backend=name,
    )
    assert_same(logits.sigmoid()[None], release.tensors[f"{attention}.gate"], GATE_TOLERANCE)
