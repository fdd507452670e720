"""The command `genhoi train`."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from genhoi.cli.common import PATH, plain_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator

    from genhoi.bases.base import Base
    from genhoi.data.encoded import EncodedClips
    from genhoi.data.sample import HOIDataset
    from genhoi.training.config import TrainConfig

__all__ = ["train"]

_OF_A_RUN = ("checkpoints", "metrics.csv", "tensorboard", "samples")
_OF_A_FRESH_ADAPTER = ("rank", "gate_init", "mask_gate", "flow_gate", "schedule")
_MAX_WORKERS = 8
_SMOOTHING = 0.95


def _settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a flag for every field of `TrainConfig`, with the help its docstring has."""
    from genhoi.training.config import TrainConfig

    hints, words = get_type_hints(TrainConfig), _field_help(TrainConfig.__doc__ or "")
    for item in reversed(dataclasses.fields(TrainConfig)):
        flag = item.name.replace("_", "-")
        default = TrainConfig().to_dict()[item.name]
        shown = _as_text(default)
        if hints[item.name] is bool:
            shown = ("" if default else "no-") + flag
            flag = f"{flag}/--no-{flag}"
        command = click.option(
            f"--{flag}",
            item.name,
            default=None,
            metavar=_metavar(hints[item.name]),
            help=f"{words.get(item.name, '')}  [default: {shown}]",
        )(command)
    return command


def _field_help(docstring: str) -> dict[str, str]:
    """The sentences of a docstring's Args, by name."""
    arguments = docstring.partition("Args:")[2].partition("Raises:")[0]
    found: dict[str, str] = {}
    for names, words in re.findall(r"^ {8}([a-z_, ]+): ((?:.|\n {12})+)", arguments, re.MULTILINE):
        sentence = " ".join(words.split())
        found |= {name: sentence[0].upper() + sentence[1:] for name in names.split(", ")}
    return found


def _metavar(hint: Any) -> str | None:
    kinds = get_args(hint) if get_origin(hint) is not None else (hint,)
    if hint is bool:
        return None
    if get_origin(hint) is dict:
        return "SHARES"
    words = [w for k in kinds for w in (get_args(k) or (k,)) if isinstance(w, str)]
    if str in kinds and float in kinds:
        words = ["paper", "release", "NUMBER"]
    elif int in kinds or float in kinds:
        words = ["INTEGER" if int in kinds else "NUMBER"]
    if type(None) in kinds:
        words = [*(words or ["TEXT"]), "none"]
    return "|".join(words) or "TEXT"


def _as_text(value: Any) -> str:
    """As `parse_setting` reads it."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ",".join(f"{key}={share:g}" for key, share in value.items())
    if isinstance(value, list):
        return ",".join(f"{item:g}" for item in value)
    return str(value)


@click.command()
@click.option("--config", type=PATH, help="YAML file of these settings; flags win over it.")
@_settings
@click.option(
    "--out", default="genhoi-train", show_default=True, type=PATH, help="Folder of the run."
)
@click.option("--latents", type=PATH, help="Folder of the encoded clips.  [default: OUT/latents]")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="[default: cuda if there is one, else cpu]"
)
@click.option(
    "--fresh", is_flag=True,
    help="Start anew: remove checkpoints, metrics and samples of the run in OUT.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what it would take.")
def train(
    config: Path | None, out: Path, latents: Path | None, device: str | None, fresh: bool,
    dry_run: bool, **flags: Any,
) -> None:  # fmt: skip
    """Train an adapter on a base, by rebuilding clips whose hand and object are hidden.

    Clips are encoded once. A run that was interrupted goes on when the command is repeated, or with
    `genhoi train --out OUT` alone. Writes OUT/adapter (or OUT/base with --stage base), and while it
    runs checkpoints/, metrics.csv, tensorboard/ and samples/. On several GPUs: `accelerate launch
    -m genhoi.cli train ...`, or torchrun in its place.
    """
    with plain_errors():
        changes = {name: value for name, value in flags.items() if value is not None}
        settings = _read_settings(config, changes, out, fresh)
        _check_early(settings, changes, device)
        if dry_run:
            _dry_run(settings)
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
    """From the file, else from the run that is to go on, else the defaults; flags win."""
    from genhoi.training.config import read_config

    earlier = out / "config.yaml"
    if config is None and not fresh and earlier.is_file():
        return read_config(earlier, changes)
    return read_config(config, changes)


def _check_early(config: TrainConfig, changes: dict[str, Any], device: str | None) -> None:
    """Whatever can be found out before anything is loaded, encoded or started."""
    from genhoi.bases.load import base_config, is_tiny
    from genhoi.training.config import TrainConfig
    from genhoi.training.trainer import load_adapter
    from genhoi_kernels import backends

    base_config(config.base)
    if not is_tiny(config.base) and (apart := sorted({"near", "mixed"} & set(config.given))):
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
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: got cuda, wanted cpu, for torch finds no GPU that it can use")
    if config.data != "synthetic" and config.clips != TrainConfig().clips:
        raise ValueError(
            f"clips: got {config.clips} with data {config.data}, wanted it for synthetic clips only"
        )
    for wanted, package, what in (
        (True, "accelerate", "training"),
        (bool(config.video_rank), "peft", "video_rank"),
        (config.data == "synthetic", "skimage", "data synthetic"),
    ):
        if wanted and find_spec(package) is None:
            name = {"skimage": "scikit-image"}.get(package, package)
            raise ImportError(f"{what} needs {name}: pip install {name}")


def _dry_run(config: TrainConfig) -> None:
    from rich.table import Table

    from genhoi.training.estimate import estimate_training

    found = estimate_training(config)
    f, h, w = found.grid
    share = f"{found.trained / found.parameters:.2%} of the base"
    table = Table(show_header=False, title="Dry run: nothing is computed", title_justify="left")
    for row in (
        *((name, _as_text(value)) for name, value in config.to_dict().items()),
        ("tokens of a clip", f"{f} x {h} x {w} = {f * h * w:,}, and {h * w:,} of the object"),
        ("base", f"{found.parameters:,} parameters, {_bytes(found.weight_bytes)}"),
        ("trained", f"{found.trained:,} parameters, {share}"),
        ("their state", f"{_bytes(found.state_bytes)}: weights, gradients, moments, average"),
        ("activations", f"about {_bytes(found.working_bytes)}, a rough guess, for "
                        f"{found.at_once} clips at once"),
        ("latents on disk", _bytes(found.latent_bytes) + ("" if found.clips else " a clip")),
    ):  # fmt: skip
        table.add_row(*row)
    Console().print(table)


def _bytes(count: float) -> str:
    from genhoi.cli.edit import _bytes as words

    return words(count)


# ------------------------------------------------------------------------------------------- a run


def _run(
    config: TrainConfig, accelerator: Accelerator, out: Path, latents: Path, fresh: bool
) -> None:
    from genhoi.bases.load import load_base
    from genhoi.training.checkpoint import latest_checkpoint
    from genhoi.training.trainer import Trainer, check_same_run

    say = _Screen(accelerator)
    if fresh and accelerator.is_main_process:
        _remove_run(out)
    accelerator.wait_for_everyone()
    step = check_same_run(config, out)
    if step == config.steps and _results(config, out):
        say.line(f"{out} holds the finished run, {step} steps; --fresh starts anew.")
        _last_words(say, config, out)
        return
    dataset = _dataset(config)
    for note in getattr(dataset, "notes", ()):
        say.line(note)
    base = load_base(
        config.base,
        device=accelerator.device,
        dtype=getattr(torch, config.base_dtype),
        seed=config.seed,
    )
    say.line(f"Base: {base.about}.")
    if find_spec("tensorboard") is None:
        say.line("TensorBoard's files are not written; metrics.csv is. pip install tensorboard")
    with say.stopping("Interrupted while encoding; nothing of it is kept."):
        base.encoders_to(accelerator.device)
        clips = _encode(say, config, base, dataset, latents)
        samples = _sample_clips(say, config, base, out)
    trainer = Trainer(config, out, clips, base=base, accelerator=accelerator, samples=samples)
    words = "from the start" if not step else f"on from step {step}"
    say.line(f"Training {words} of {config.steps} on {len(clips)} clips: {accelerator.device}.")
    with say.stopping(""):
        try:
            with say.bar() as bar:
                trainer.run(_Show(bar, say, config, trainer.step), stopping=say.notice)
        except KeyboardInterrupt:
            path = latest_checkpoint(out / "checkpoints")
            say.line(f"Stopped after step {trainer.step}. The same command goes on from {path}.")
            raise
    _last_words(say, config, out)


def _remove_run(out: Path) -> None:
    """What an earlier run wrote while it ran; where there was none, nothing."""
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
    """The folders of the result, if all are there."""
    from genhoi.bases.load import is_tiny
    from genhoi.training.result import result_folders

    folders = result_folders(out, config, tiny=is_tiny(config.base))
    return folders if all(path.is_dir() for path in folders.values()) else None


def _dataset(config: TrainConfig) -> HOIDataset:
    size = (config.height, config.width)
    if config.data == "synthetic":
        from genhoi.data.synthetic import SyntheticHOI

        return SyntheticHOI(
            "train", clips=config.clips, frames=config.frames, size=size,
            mask=config.mask, seed=config.data_seed,
        )  # fmt: skip
    from genhoi.data.clip_dataset import ClipDataset
    from genhoi.data.folders import find_clips

    return ClipDataset(
        find_clips(config.data), frames=config.frames, size=size, windows="all",
        object_from_mask=config.object_from_mask,
    )  # fmt: skip


def _encode(
    say: _Screen, config: TrainConfig, base: Base, dataset: HOIDataset, folder: Path
) -> EncodedClips:
    """By the main process; the others wait as long as it takes, which no barrier does."""
    from genhoi.data.encoded import EncodedClips, conditions_for, encode_dataset

    if not say.accelerator.is_main_process:
        while not folder.exists():
            time.sleep(1)
        return EncodedClips(folder)
    if not folder.exists():
        say.line(f"Encoding {len(dataset)} clips into {folder}")
    with say.bar() as bar:
        task = bar.add_task("", total=len(dataset), words="")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, words=f"encoding clip {done} of {total}")
            if done % max(1, total // 10) == 0:
                say.log(f"encoded {done} of {total}")

        return encode_dataset(
            base, dataset, folder, given=conditions_for(base, config.given),
            workers=_workers(config, len(dataset)), progress=show,
        )  # fmt: skip


def _workers(config: TrainConfig, clips: int) -> int:
    """As told. Else: to start processes takes longer than to draw a few clips; windows of one clip
    are decoded together, by one process, while this one encodes."""
    if config.workers or clips < 32:
        return config.workers
    return min(os.cpu_count() or 1, _MAX_WORKERS) if config.data == "synthetic" else 1


def _sample_clips(say: _Screen, config: TrainConfig, base: Base, out: Path) -> EncodedClips | None:
    """Clips that are not trained on, for the sample sheets; None where there are no others."""
    if config.data != "synthetic" or not (config.sample_every and config.samples):
        return None
    from genhoi.data.encoded import EncodedClips, conditions_for, encode_dataset
    from genhoi.data.synthetic import SyntheticHOI

    folder = out / "sample_latents"
    if say.accelerator.is_main_process:
        held_out = SyntheticHOI(
            "test", clips=config.samples, frames=config.frames,
            size=(config.height, config.width), mask=config.mask, seed=config.data_seed,
        )  # fmt: skip
        given = conditions_for(base, config.given)
        try:
            encode_dataset(base, held_out, folder, given=given)
        except FileExistsError:  # of another number, say; they are few
            shutil.rmtree(folder)
            encode_dataset(base, held_out, folder, given=given)
    say.accelerator.wait_for_everyone()
    return EncodedClips(folder)


# -------------------------------------------------------------------------------------- the screen


class _Screen:
    """Words of the main process; the others are silent."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._main = accelerator.is_main_process
        self._console = Console(quiet=not self._main)
        self._bar: Progress | None = None

    def line(self, words: str) -> None:
        """Not wrapped to the terminal's width, so that paths can be copied."""
        if self._main:
            click.echo(words)

    def log(self, words: str) -> None:
        """For a file or a pipe, where no bar is seen."""
        if not self._console.is_terminal:
            self.line(words)

    def notice(self) -> None:
        """To be called when the run is to stop."""
        words = "Stopping after this step; Ctrl-C once more stops at once, without a checkpoint."
        if self._main and self._bar is not None:
            self._bar.console.print(words)

    @contextmanager
    def bar(self) -> Iterator[Progress]:
        """A progress bar with a field `words`."""
        columns = BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn()
        words = TextColumn("{task.fields[words]}")
        disable = not self._console.is_terminal
        with Progress(
            *columns, words, console=self._console, transient=True, disable=disable
        ) as bar:
            self._bar = bar
            yield bar
        self._bar = None

    @contextmanager
    def stopping(self, words: str) -> Iterator[None]:
        """Ctrl-C in the block ends the program with code 130."""
        try:
            yield
        except KeyboardInterrupt:
            if words:
                self.line(words)
            sys.exit(130)


class _Show:
    """A training's steps, on a bar or in lines."""

    def __init__(self, bar: Progress, say: _Screen, config: TrainConfig, step: int) -> None:
        self._bar, self._say, self._config = bar, say, config
        self._task = bar.add_task("", total=config.steps, completed=step, words="")
        self._loss, self._weight = 0.0, 0.0

    def __call__(self, progress: Any) -> None:
        self._loss = _SMOOTHING * self._loss + (1 - _SMOOTHING) * progress.loss
        self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        left = time.strftime("%H:%M:%S", time.gmtime(progress.seconds_left % 86400))
        days = int(progress.seconds_left // 86400)
        words = (
            f"step {progress.step} of {progress.steps}, loss {self._loss / self._weight:.4f}, "
            f"{progress.clips_per_second:.3g} clips/s, {f'{days} d ' if days else ''}{left} left"
        )
        self._bar.update(self._task, completed=progress.step, words=words)
        if progress.step % self._config.log_every == 0:
            self._say.log(words)


def _last_words(say: _Screen, config: TrainConfig, out: Path) -> None:
    folders = _results(config, out) or {}
    for name, path in folders.items():
        say.line(f"{name.replace('_', ' ').capitalize()}: {path}")
    words = ["genhoi", "edit", "--base", str(folders.get("base", config.base))]
    if "adapter" in folders:
        words += ["--adapter", str(folders["adapter"])]
    if "video_lora" in folders:
        words += ["--video-lora", str(folders["video_lora"])]
    say.line(f"To use it: {shlex.join(words)} --video V --mask M --object O")
