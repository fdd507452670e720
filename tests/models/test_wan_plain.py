"""The model layer against a plain float64 forward pass, at sizes the goldens do not have."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.plain_genhoi import PlainGenHOI
from support.tiny_wan import inputs, lively_adapter, reference, shared_folder, tiny_wan

from genhoi import attach, to_official
from genhoi.models.wan.convert import infer_config

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Size:
    heads: int
    head_dim: int
    grid: tuple[int, int, int]
    references: tuple[tuple[int, int], ...]
    image: bool = True
    batch: int = 1


SIZES = [
    Size(2, 128, (3, 2, 3), ((6, 4),)),
    Size(7, 16, (4, 3, 2), ((2, 10),)),  # more heads than frames
    Size(4, 24, (2, 3, 4), ((8, 2), (4, 4)), image=False),
    Size(3, 32, (5, 2, 2), ((4, 4), (2, 6), (6, 6)), batch=2),
]


def frames(schedule: Any, size: Size) -> list[float]:
    f, heads = size.grid[0], size.heads
    if schedule == "paper":
        return [float(-(-f * n // heads)) for n in range(heads)]
    if schedule == "release":
        return [float(x) for x in torch.linspace(0, f, heads + 2, dtype=torch.int64)[1:-1]]
    return [float(schedule)] * heads


@pytest.mark.parametrize(
    ("mask_gate", "flow_gate", "schedule"),
    [(True, "token", "paper"), (False, "sequence", "release"), (True, None, -1.0)],
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_plain(size: Size, mask_gate: bool, flow_gate: Any, schedule: Any) -> None:
    model = tiny_wan(
        image=size.image, num_attention_heads=size.heads, attention_head_dim=size.head_dim
    )
    adapter = lively_adapter(model)
    official = to_official(model, adapter)
    plain = PlainGenHOI(official, infer_config(official) | {"eps": 1e-6})
    arguments = inputs(model, batch=size.batch, grid=size.grid)
    channels = model.config.in_channels
    references = [
        reference(*hw, batch=size.batch, channels=channels, seed=20 + r)
        for r, hw in enumerate(size.references)
    ]
    tokens = size.grid[0] * size.grid[1] * size.grid[2]
    draw = torch.Generator().manual_seed(8)
    seen = torch.rand(size.batch, tokens, len(references), generator=draw) < 0.4
    bits = (seen.int() << torch.arange(len(references))).sum(-1)
    handle = attach(model, adapter, mask_gate=mask_gate, flow_gate=flow_gate, schedule=schedule)
    handle.set_reference(references, bits)
    with torch.no_grad():
        (out,) = model(**arguments)
        for b in range(size.batch):
            clip = arguments["encoder_hidden_states_image"]
            wanted = plain(
                arguments["hidden_states"][b], arguments["timestep"][b].item(),
                arguments["encoder_hidden_states"][b], None if clip is None else clip[b],
                [x[b] for x in references],
                seen[b] if mask_gate else torch.ones_like(seen[b]),
                gate=flow_gate, frames=frames(schedule, size),
            )  # fmt: skip
            torch.testing.assert_close(out[b].double(), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.shared
@pytest.mark.parametrize(("case", "gate"), [("nomask_mean", "sequence"), ("mask_token", "token")])
def test_the_plain_one_is_the_release(case: str, gate: str) -> None:
    folder = shared_folder() / "goldens"
    about = json.loads((folder / "model_A.json").read_text())
    x, wanted, weights = (
        load_file(folder / f"model_A_{part}.safetensors")
        for part in ("inputs", "outputs", "weights")
    )
    seen = x["token_mask_expected"].bool()[0, :, None]
    out = PlainGenHOI(weights, about["config"])(
        torch.cat([x["x"], x["y"]], 1)[0], 731.0, x["context"][0], x["clip_feature"][0],
        [x["latents_ref_img"][0]], seen if case == "mask_token" else torch.ones_like(seen),
        gate=gate, frames=[1, 2, 3, 4],
    )  # fmt: skip
    torch.testing.assert_close(out.float(), wanted[f"fp32_{case}"][0], rtol=0, atol=TOLERANCE)
