"""The command `genhoi train`."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from genhoi.cli.common import PATH, plain_errors
from genhoi.cli.device import chosen_device, dry_run_target
from genhoi.cli.train_dry_run import show_dry_run
from genhoi.cli.train_flags import setting_flags
from genhoi.cli.train_screen import Screen, StepsShown
from genhoi.editing.gpus import GPU_NAMES
from genhoi.extras import how_to_install, is_installed, need

if TYPE_CHECKING:
    from accelerate import Accelerator

    from genhoi.bases.base import Base
    from genhoi.data.encoded import EncodedClips
    from genhoi.data.sample import HOIDataset
    from genhoi.training.config import TrainConfig

__all__ = ["train"]

_OF_A_RUN = ("checkpoints", "metrics.csv", "tensorboard", "samples", "finished.json")
_OF_A_FRESH_ADAPTER = ("rank", "gate_init", "mask_gate", "flow_gate", "schedule")


@cloup.command()
@cloup.option_group(
    "The run",
    cloup.option("--config", type=PATH, help="YAML file of these settings; flags win over it."),
    cloup.option(
        "--out", default="genhoi-train", show_default=True, type=PATH, help="Folder of the run."
    ),
    cloup.option(
        "--latents", type=PATH, help="Folder of the encoded clips.  [default: OUT/latents]"
    ),
    cloup.option(
        "--device",
        type=click.Choice(["cpu", "cuda", *GPU_NAMES]),
        metavar="[cpu|cuda]",
        help="Where to train; with --dry-run also a GPU that is not here, by the name that genhoi "
        "edit --device has for it, such as h100-80gb.  [default: cuda if there is one, else cpu]",
    ),
    cloup.option(
        "--fresh",
        is_flag=True,
        help="Start anew: remove checkpoints, metrics and samples of the run in OUT.",
    ),
    cloup.option(
        "--dry-run",
        is_flag=True,
        help="Only say what it would take: time, memory, and what makes it fit.",
    ),
)
@setting_flags
def train(
    config: Path | None,
    out: Path,
    latents: Path | None,
    device: str | None,
    fresh: bool,
    dry_run: bool,
    **flags: Any,
) -> None:
    """Train an adapter on your clips, or on made ones.

    It learns to rebuild clips whose hand and object are hidden, on a frozen base. Clips are encoded
    once. A run that was interrupted goes on when the command is repeated, or with `genhoi train
    --out OUT` alone. Writes OUT/adapter (or OUT/base with --stage base), and while it runs
    checkpoints/, metrics.csv, tensorboard/ and samples/. On several GPUs: `accelerate launch -m
    genhoi.cli train ...`, or torchrun in its place.
    """
    with plain_errors(path="data"):
        changes = {name: value for name, value in flags.items() if value is not None}
        settings = _read_settings(config, changes, out, fresh)
        _check_early(settings, changes, device, dry_run)
        if dry_run:
            show_dry_run(settings, dry_run_target(device))
            return
        from genhoi.training.parallel import make_accelerator

        accelerator = make_accelerator(settings, cpu=device == "cpu")
        try:
            _run(settings, accelerator, out, latents or out / "latents", fresh)
        except FloatingPointError as error:
            raise ValueError(str(error)) from error
        # Not after an error: it would wait for the other processes, and they for this one.
        accelerator.end_training()


# ------------------------------------------------------------------------------------ before a run


def _read_settings(
    config: Path | None, changes: dict[str, Any], out: Path, fresh: bool
) -> TrainConfig:
    """Take settings from the file, else from the run to go on, else the defaults; flags win."""
    from genhoi.training.config import read_config

    earlier = out / "config.yaml"
    if config is None and not fresh and earlier.is_file():
        return read_config(earlier, changes)
    return read_config(config, changes)


def _check_early(
    config: TrainConfig, changes: dict[str, Any], device: str | None, dry_run: bool
) -> None:
    """Refuse what can be known to fail before anything is loaded, encoded or started."""
    from genhoi.bases.load import base_config, base_kind, check_base
    from genhoi.models.options import NO_MASK_GATE
    from genhoi.models.registry import family_of
    from genhoi.training.config import TrainConfig
    from genhoi.training.objective import reference_dropout
    from genhoi.training.trained_weights import check_expert, load_adapter
    from genhoi_kernels import backends

    if not dry_run:
        check_base(config.base)
    kind = base_kind(config.base)
    check_expert(config.expert, kind)
    if not (strides := kind.strides(config.base)).fits(config.height, config.width):
        raise ValueError(
            f"height, width: got {config.height} and {config.width}, wanted multiples of "
            f"{strides.token} for this base"
        )
    if config.video_rank and kind.two_experts:
        raise ValueError(
            f"video_rank: got {config.video_rank}, wanted 0 for a base of two transformers, whose "
            f"edits take no video_lora"
        )
    family = family_of(base_config(config.base))
    reference_dropout(config, family)  # raises
    if config.mask_gate and family.references_in_sequence:
        raise ValueError(f"mask_gate: got it, wanted none: {NO_MASK_GATE}")
    apart = sorted({"near", "mixed"} & set(config.given))
    if apart and not kind.frames_apart:
        raise ValueError(
            f"given: got {apart}, wanted none, first or first_last, for {config.base} does not "
            f"encode every latent frame by itself"
        )
    if config.adapter is not None and (lost := sorted(set(changes) & set(_OF_A_FRESH_ADAPTER))):
        raise ValueError(
            f"{', '.join(lost)}: got it beside an adapter to go on from, wanted one or the other, "
            f"for such an adapter has its own"
        )
    if config.adapter is not None:
        load_adapter(config.adapter)
    names = [known.name for known in backends()]
    if config.backend is not None and config.backend not in names:
        raise ValueError(f"backend: got {config.backend!r}, wanted one of {', '.join(names)}")
    (dry_run_target if dry_run else chosen_device)(device)
    if config.data != "synthetic" and config.clips != TrainConfig().clips:
        raise ValueError(
            f"clips: got {config.clips} with data {config.data}, wanted it for synthetic clips only"
        )
    _check_packages(config)


def _check_packages(config: TrainConfig) -> None:
    need("accelerate", "training")
    if config.video_rank:
        need("peft", "video_rank")
    if config.data == "synthetic":
        need("skimage", "data synthetic")


# ------------------------------------------------------------------------------------------- a run


def _run(
    config: TrainConfig, accelerator: Accelerator, out: Path, latents: Path, fresh: bool
) -> None:
    import torch

    from genhoi.bases.load import load_base
    from genhoi.training.checkpoint import latest_checkpoint
    from genhoi.training.clips import open_clips
    from genhoi.training.result import finished_steps
    from genhoi.training.same_run import check_same_run, note_on_steps
    from genhoi.training.trainer import Trainer

    screen = Screen(accelerator)
    if fresh and accelerator.is_main_process:
        _remove_run(out)
    accelerator.wait_for_everyone()
    step = check_same_run(config, out)
    if (note := note_on_steps(config, out)) is not None:
        screen.line(note)
    if step == config.steps == finished_steps(out) and _results(config, out):
        screen.line(f"{out} holds the finished run, {step} steps; --fresh starts anew.")
        _say_how_to_use(screen, config, out)
        return
    dataset = open_clips(config)
    for note in getattr(dataset, "notes", ()):
        screen.line(note)
    base = load_base(
        config.base,
        device=accelerator.device,
        dtype=getattr(torch, config.base_dtype),
        seed=config.seed,
        expert=config.expert,
    )
    screen.line(f"Base: {base.about}.")
    if not is_installed("tensorboard"):
        how = how_to_install("tensorboard")
        screen.line(f"TensorBoard's files are not written ({how}); metrics.csv is.")
    with screen.stopping("Interrupted while encoding; nothing of it is kept."):
        base.encoders_to(accelerator.device)
        clips = _encode(screen, config, base, dataset, latents)
        samples = _encode_samples(screen, config, base, out)
    trainer = Trainer(config, out, clips, base=base, accelerator=accelerator, samples=samples)
    begin = "from the start" if not step else f"on from step {step}"
    screen.line(f"Training {begin} of {config.steps} on {len(clips)} clips: {accelerator.device}.")
    with screen.stopping(""):
        try:
            with screen.bar() as bar:
                trainer.run(StepsShown(bar, screen, config, trainer.step), stopping=screen.notice)
        except KeyboardInterrupt:
            path = latest_checkpoint(out / "checkpoints")
            screen.line(f"Stopped after step {trainer.step}. The same command goes on from {path}.")
            raise
    _say_how_to_use(screen, config, out)


def _remove_run(out: Path) -> None:
    """Remove what an earlier run wrote while it ran; where there was none, nothing."""
    from genhoi.training.checkpoint import latest_checkpoint

    if latest_checkpoint(out / "checkpoints") is None and not (out / "config.yaml").is_file():
        return
    for name in _OF_A_RUN:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _results(config: TrainConfig, out: Path) -> dict[str, Path] | None:
    """Name the folders of the result, if all of them exist."""
    from genhoi.bases.load import base_kind
    from genhoi.training.result import result_folders

    folders = result_folders(out, config, base_kind(config.base))
    return folders if all(path.is_dir() for path in folders.values()) else None


def _encode(
    screen: Screen, config: TrainConfig, base: Base, dataset: HOIDataset, folder: Path
) -> EncodedClips:
    """Encode in the main process; the others wait as long as it takes, which no barrier does."""
    from genhoi.data.encoded import EncodedClips
    from genhoi.training.clips import encode_clips

    if not screen.accelerator.is_main_process:
        while not folder.exists():
            time.sleep(1)
        return EncodedClips(folder)
    if not folder.exists():
        screen.line(f"Encoding {len(dataset)} clips into {folder}")
    with screen.bar() as bar:
        task = bar.add_task("", total=len(dataset))

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, description=f"encoding clip {done} of {total}")
            if done % max(1, total // 10) == 0:
                screen.log(f"encoded {done} of {total}")

        return encode_clips(base, config, dataset, folder, progress=show)


def _encode_samples(
    screen: Screen, config: TrainConfig, base: Base, out: Path
) -> EncodedClips | None:
    """Encode clips that are not trained on, in the main process; None where there are no others."""
    from genhoi.data.encoded import EncodedClips
    from genhoi.training.clips import encode_samples, has_samples

    if not has_samples(config):
        return None
    folder = out / "sample_latents"
    if screen.accelerator.is_main_process:
        encode_samples(base, config, folder)
    screen.accelerator.wait_for_everyone()
    return EncodedClips(folder)


def _say_how_to_use(screen: Screen, config: TrainConfig, out: Path) -> None:
    folders = _results(config, out) or {}
    for name, path in folders.items():
        screen.line(f"{name.replace('_', ' ').capitalize()}: {path}")
    command = ["genhoi", "edit", "--base", str(folders.get("base", config.base))]
    if "adapter" in folders:
        command += ["--adapter", str(folders["adapter"])]
    if "video_lora" in folders:
        command += ["--video-lora", str(folders["video_lora"])]
    screen.line(f"To use it: {shlex.join(command)} --video V --mask M --object O")
    if config.expert is not None:
        screen.line(
            f"It was trained for {config.expert} noise; for both transformers train on the other "
            f"too, and give --adapter twice, that for high noise first."
        )
