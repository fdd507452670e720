"""Measures the mosaic that ships as "tiny" on held-out clips, and takes a newly trained one.

python -m benchmarks.tiny_model.mosaic                         # what ships: metrics.json
python -m benchmarks.tiny_model.mosaic --take results/tiny-3   # first take a training's result
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.ablation.measure import GIVEN, Arrays, edited_latents, measure
from benchmarks.ablation.results import mean_error, thirds
from benchmarks.ablation.test_set import TestSet
from genhoi.bases.base import Base
from genhoi.bases.load import load_base
from genhoi.bases.mosaic import MosaicBase
from genhoi.bases.wan_files import SHIPPED
from genhoi.evaluation.metrics import region_psnr, squared_error
from genhoi.models.adapter import WEIGHTS_NAME, GenHOIAdapter
from genhoi.models.attach import attach
from genhoi_kernels.files import whole_file

_FOLDER = SHIPPED["tiny"]
_SIDE = 96
_LENGTHS = {"49 frames, as in training": 49, "97 frames, in one window": 97}
_MEANS = (
    "hand_psnr",
    "background_psnr",
    "background_change",
    "swap_object",
    "swap_background",
    "colour",
    "texture",
)


@click.command()
@click.option("--take", type=click.Path(path_type=Path), help="Folder of a training's result.")
@click.option("--clips", default=24, show_default=True, help="Held-out clips.")
@click.option("--steps", default=15, show_default=True, help="Of Euler's method.")
@click.option(
    "--latents",
    default="results/tiny-test",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the encoded clips.",
)
@click.option("--out", default=_FOLDER, type=click.Path(path_type=Path))
def main(take: Path | None, clips: int, steps: int, latents: Path, out: Path) -> None:
    """Measure the tiny model that ships; with --take, a newly trained one that shall."""
    if take is not None:
        _take(take)
    base = load_base("tiny")
    attachment = attach(
        base.transformer, GenHOIAdapter.from_pretrained(_FOLDER / "adapter").float()
    )
    results: dict[str, Any] = {}
    for name, frames in _LENGTHS.items():
        click.echo(f"measuring: {name}")
        test = TestSet(
            base, latents / str(frames), clips=clips, frames=frames, pose=False, side=_SIDE
        )
        codec = torch.stack([test.codec_psnr(i) for i in range(clips)])
        results[name] = {"codec_object_psnr": _shown(codec.numpy())}
        for given in GIVEN:
            attachment.set_reference(None)
            without = edited_latents(base, None, test, clips, given=given, steps=steps)
            arrays = measure(
                base,
                attachment,
                test,
                clips,
                given=given,
                steps=steps,
                mask_gate=True,
                without=without,
                swap=True,
            )
            label = "first frame given" if given == "first" else "no frame given"
            results[name][label] = _summary(arrays) | {
                "object_psnr_without_reference": _shown(_object_psnr(base, test, without)),
            }
    record = {
        "command": f"python -m benchmarks.tiny_model.mosaic --clips {clips} --steps {steps}",
        "torch": torch.__version__,
        "clips": clips,
        "results": results,
    }
    with whole_file(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    click.echo(json.dumps(record, indent=2))


def _object_psnr(base: Base, test: TestSet, latents: Tensor) -> np.ndarray:
    """Return the object's PSNR, [clips, F]."""
    rows = []
    for i in range(len(latents)):
        error = squared_error(base.decode(latents[i : i + 1]), test[i].truth)
        rows.append(region_psnr(error, test[i].object))
    return torch.stack(rows).numpy()


def _take(folder: Path) -> None:
    """Copy a training's result into the package, with weights in bfloat16."""
    MosaicBase(folder / "base")  # raises
    adapter = GenHOIAdapter.from_pretrained(folder / "adapter").to(torch.bfloat16)
    adapter.save_pretrained(_FOLDER / "adapter")
    for path in (folder / "base").iterdir():
        with whole_file(_FOLDER / path.name) as temporary:
            temporary.write_bytes(path.read_bytes())
    weights = load_file(_FOLDER / "adapter" / WEIGHTS_NAME)
    assert all(weight.isfinite().all() for weight in weights.values())


def _summary(arrays: Arrays) -> dict[str, Any]:
    summary: dict[str, Any] = {"object_psnr": _shown(arrays["object_psnr"])}
    worst = [float(np.nanmin(x)) for x in arrays["object_psnr"] if not np.isnan(x).all()]
    summary["object_psnr"]["worst_frame"] = round(mean_error(worst)[0], 2)
    summary["object_ssim"] = _shown(arrays["object_ssim"])
    for name in _MEANS:
        summary[name] = round(mean_error(thirds(arrays[name])["all"])[0], 3)
    return summary


def _shown(values: np.ndarray) -> dict[str, float]:
    """Round means by thirds and over all frames, with their standard errors over clips."""
    parts = thirds(values)
    means = {name: round(mean_error(value)[0], 2) for name, value in parts.items()}
    return means | {"error": round(mean_error(parts["all"])[1], 2)}


if __name__ == "__main__":
    main()
