"""The command `genhoi`: the group of all its commands, each in a module of its own."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import click
import cloup

__all__ = ["SECTIONS", "main"]

# name: (where it is, first sentence of its help). A command's module is imported when it is called
# for, so that `genhoi --help` has not to wait for torch.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Start here": {
        "mask": (
            "genhoi.cli.mask:mask",
            "Mask a thing in every frame, from a box or points on one.",
        ),
        "object": (
            "genhoi.cli.object:object_command",
            "Cut an object out of a PHOTO, onto the model's grey.",
        ),
        "edit": ("genhoi.cli.edit:edit", "Put objects into a clip, where the masks are."),
        "inspect": ("genhoi.cli.inspect:inspect", "Show where a clip looks at an object."),
    },
    "Train, and measure": {
        "train": ("genhoi.cli.train:train", "Train an adapter on your clips, or on made ones."),
        "eval": ("genhoi.cli.eval:eval_command", "Measure edited clips against the truth."),
    },
    "Tools": {
        "doctor": ("genhoi.cli.doctor:doctor", "Say what is installed, and what runs here."),
        "convert": ("genhoi.cli.convert:convert", "Convert the authors' weights."),
        "tune": ("genhoi.cli.tune:tune", "Time this GPU's backends, and remember the fastest."),
        "bench": ("genhoi.cli.bench:bench", "Time the op beside its peers."),
    },
}

_INTERRUPTED = 130  # the exit code that shells give after Ctrl-C


class _Later(click.Command):
    """A command's place in the list, before its module is imported."""

    def __init__(self, name: str, place: str, about: str) -> None:
        super().__init__(name, short_help=about)
        self._place = place

    def get_short_help_str(self, limit: int = 45) -> str:
        """Give the whole sentence: the list wraps, and cuts nothing off."""
        return self.short_help or ""

    def load(self) -> click.Command:
        """Import the command."""
        module, _, name = self._place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


class _Commands(cloup.Group):
    """Imports a command when it is called for; says errors in JSON to whom asked for JSON."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Give a command, imported; None where there is none of this name."""
        command = super().get_command(ctx, cmd_name)
        return command.load() if isinstance(command, _Later) else command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        if "--json" not in ctx.args:
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            click.echo(json.dumps({"error": "interrupted"}))
            ctx.exit(_INTERRUPTED)
        except click.ClickException as error:
            click.echo(json.dumps({"error": error.format_message()}))
            ctx.exit(1 if isinstance(error, click.UsageError) else error.exit_code)


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from genhoi_kernels import __version__

        click.echo(f"genhoi, version {__version__}")
        ctx.exit()


@cloup.group(
    cls=_Commands,
    sections=[
        cloup.Section(title, [_Later(name, *about) for name, about in commands.items()])
        for title, commands in SECTIONS.items()
    ],
    # Of every command: a context hands them on to those below it.
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Edit videos in which hands hold objects (GenHOI), and the tools around its kernels.

    Try it: `genhoi COMMAND --help` shows a command's options.
    """
