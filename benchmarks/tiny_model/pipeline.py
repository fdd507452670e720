"""Puts the tiny model together: a plain folder of diffusers' `WanImageToVideoPipeline`.

    python -m benchmarks.tiny_model.pipeline --vae DIR --transformer DIR --adapter DIR --out DIR

It takes no texts: its text encoder gives zeros (`benchmarks.tiny_model.no_text`), so that diffusers
loads and runs it as any other. There is no image encoder. genhoi.json says how it is used, and
adapter/ lies beside the transformer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)

from benchmarks.tiny_model.codec import new_codec
from benchmarks.tiny_model.no_text import silent_text_encoder, small_tokenizer
from genhoi.bases.about import SETTINGS_NAME, BaseSettings, EditDefaults, TrainedOn
from genhoi.media import check_target
from genhoi.models.adapter import GenHOIAdapter
from genhoi_kernels.files import whole_folder

__all__ = ["SETTINGS", "TRANSFORMER_CONFIG", "put_together", "random_pipeline"]

TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    # 12 temporal frequencies, so that a fixed frame's voice fades instead of returning.
    "attention_head_dim": 64,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 8,
    "freq_dim": 64,
    "ffn_dim": 960,
    "num_layers": 8,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
}
_SIZE, _FRAMES, _SHIFT = (128, 128), 49, 3.0
SETTINGS = BaseSettings(
    defaults=EditDefaults(
        steps=25,
        guidance=1.0,
        shift=_SHIFT,
        window=_FRAMES,
        mask_rule="any",
        size=_SIZE,
        crop_below=1.0,
    ),
    # Masks: percentiles 1 and 99 of 80 clips of its training, 0.20 and 0.63, widened.
    trained_on=TrainedOn(sizes=(_SIZE,), frames=_FRAMES, mask_shares=(0.1, 0.8)),
    caution=(
        "The tiny base shows how an edit works; it is no tool for real clips. It paints a square "
        "of 128 x 128 pixels and learnt from synthetic clips alone. For more, name a Wan2.1 or "
        "VACE pipeline (--base) and an adapter that was trained on it (--adapter)."
    ),
    about="trained on synthetic clips (128x128, 49 frames)",
    takes_text=False,
)


def put_together(
    *,
    vae: Path,
    transformer: Path,
    adapter: Path | None,
    out: Path,
    settings: BaseSettings = SETTINGS,
) -> None:
    """Write the pipeline's folder, weights in 16 bits.

    Args:
        vae: folder of an `AutoencoderKLWan`.
        transformer: folder of a `WanTransformer3DModel`, weights in any type.
        adapter: folder of an adapter for it; None for none.
        out: the folder to write; it is made if it is not there.
        settings: of the base, for its genhoi.json.

    Raises:
        OSError: one of the folders holds no such model.
        ValueError: the adapter does not fit the transformer.
    """
    codec = AutoencoderKLWan.from_pretrained(vae, local_files_only=True, dtype=torch.float16)
    model = WanTransformer3DModel.from_pretrained(
        transformer, local_files_only=True, dtype=torch.bfloat16
    )
    own = None if adapter is None else GenHOIAdapter.from_pretrained(adapter)
    if own is not None:
        own.check_fits(model)
    if own is not None:
        own.to(torch.bfloat16).save_pretrained(out / "adapter")
    _write(out, codec, model, settings)


def random_pipeline(
    folder: Path,
    *,
    seed: int,
    vae: Path | None = None,
    transformer: Mapping[str, Any] | None = None,
) -> None:
    """Write a pipeline whose transformer has random weights, without an adapter.

    Args:
        folder: to write; it is made if it is not there.
        seed: of the weights.
        vae: folder of a trained one; None: a small random one.
        transformer: what differs from `TRANSFORMER_CONFIG`, for tests.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WanTransformer3DModel(**TRANSFORMER_CONFIG | dict(transformer or {}))
        if vae is None:
            codec = new_codec(seed, base_dim=8)
        else:
            codec = AutoencoderKLWan.from_pretrained(vae, local_files_only=True)
    _write(folder, codec.half(), model, _untrained(f"UNTRAINED: random weights from seed {seed}"))


def _untrained(about: str) -> BaseSettings:
    return replace(SETTINGS, about=about, trained=False)


def _write(folder: Path, vae: Any, transformer: Any, settings: BaseSettings) -> None:
    pipe = WanImageToVideoPipeline(
        tokenizer=small_tokenizer(),
        text_encoder=silent_text_encoder(transformer.config.text_dim),
        image_encoder=None,
        image_processor=None,
        vae=vae,
        transformer=transformer,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=_SHIFT
        ),
    )
    pipe.save_pretrained(folder)
    _write_json(folder / SETTINGS_NAME, asdict(settings))
    for path in folder.rglob("*.safetensors"):
        # safetensors' own files only their owner may read.
        shutil.copymode(folder / SETTINGS_NAME, path)
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # a folder of the machine where it was put together
        _write_json(path, config)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@click.command()
@click.option("--vae", required=True, type=click.Path(path_type=Path), help="Folder of the codec.")
@click.option("--transformer", required=True, type=click.Path(path_type=Path))
@click.option("--adapter", type=click.Path(path_type=Path), help="Folder of its adapter.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Must not be there.")
@click.option("--untrained", is_flag=True, help="Say that the transformer's weights are random.")
def main(vae: Path, transformer: Path, adapter: Path | None, out: Path, untrained: bool) -> None:
    """Put the tiny model's parts together: a Wan image-to-video pipeline with its adapter."""
    settings = _untrained("UNTRAINED: random weights") if untrained else SETTINGS
    try:
        check_target(out, overwrite=False)
        with whole_folder(out.absolute()) as folder:
            put_together(
                vae=vae, transformer=transformer, adapter=adapter, out=folder, settings=settings
            )
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Wrote {out}")


if __name__ == "__main__":
    main()
