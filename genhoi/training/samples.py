"""What a model in training makes of a few clips: a sheet to look at, and a clip to watch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from genhoi.bases.base import Base
from genhoi.data.encoded import EncodedClips, Given
from genhoi.media import Clip, write_clip, write_image
from genhoi.training.config import TrainConfig
from genhoi.training.objective import given_condition
from genhoi.training.reconstruction import rebuild
from genhoi.training.sample_sheet import SheetRow, draw_sheet

__all__ = ["draw_samples"]

_EULER_STEPS = 10


@torch.no_grad()
def draw_samples(
    base: Base,
    attachment: Any | None,
    clips: EncodedClips,
    config: TrainConfig,
    *,
    folder: Path,
    write: bool,
    mask_gate: bool = True,
) -> Tensor:
    """Rebuild the first clips of a set from noise, few steps each, and show them.

    Writes sheet.png (`genhoi.training.sample_sheet`), and clips.mp4, the source beside what it
    made. The source is shown as the base's codec shows it.

    Args:
        base: the model.
        attachment: of an adapter on it; None for no reference.
        clips: at least one; the first `config.samples` are taken.
        config: of the run.
        folder: of the two files.
        write: whether to write them; where the weights are sharded all processes have to compute.
        mask_gate: whether only tokens inside the mask see the reference.

    Returns:
        The sheet, uint8 [H, W, 3].
    """
    given = _given(config)
    rows, beside = [], []
    # Not one batch: clips of a large model are many tokens. The encoders are away while it trains.
    for index in range(min(config.samples, len(clips))):
        latents = rebuild(
            base,
            attachment,
            clips,
            [index],
            given=given,
            mask_gate=mask_gate,
            mask_rule=config.mask_rule,
            steps=_EULER_STEPS,
            shift=config.shift,
            seed=config.seed,
        )
        if not write:
            continue
        base.encoders_to(base.device)
        condition = given_condition(base.model, clips, index, given)[None]
        hidden = base.model.condition_latents(condition)
        source, shown, made = (
            base.decode(x.to(base.device)) for x in (clips.take("clean", [index]), hidden, latents)
        )
        picture = base.decode(clips.take("object", [index]).to(base.device))
        base.encoders_to("cpu")
        rows.append(SheetRow(clips.names[index], picture[0], source, shown, made))
        beside.append(torch.cat([source, made], dim=2))
    if not write:
        return torch.zeros(1, 1, 3, dtype=torch.uint8)
    sheet = draw_sheet(rows)
    write_image(folder / "sheet.png", sheet, overwrite=True)
    write_clip(folder / "clips.mp4", Clip(torch.cat(beside, dim=1)), overwrite=True)
    return sheet


def _given(config: TrainConfig) -> Given:
    """Choose the frames that are given most often, of those that are the same every time."""
    names: tuple[Given, ...] = get_args(Given)
    shares = {name: config.given.get(name, 0.0) for name in names}
    return max(names, key=lambda name: (shares[name], name == "first"))
