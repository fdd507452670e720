"""The command `genhoi`: the group of all its commands, each in a module of its own."""

from __future__ import annotations

import click

import genhoi_kernels
from genhoi.cli.bench import bench
from genhoi.cli.convert import convert
from genhoi.cli.doctor import doctor
from genhoi.cli.edit import edit
from genhoi.cli.eval import eval_command
from genhoi.cli.inspect import inspect
from genhoi.cli.mask import mask
from genhoi.cli.object import object_command
from genhoi.cli.train import train
from genhoi.cli.tune import tune

__all__ = ["main"]


@click.group()
@click.version_option(genhoi_kernels.__version__, prog_name="genhoi")
def main() -> None:
    """Video editing with hand-object interaction (GenHOI): tools around the kernels."""


main.add_command(bench)
main.add_command(convert)
main.add_command(doctor)
main.add_command(edit)
main.add_command(eval_command)
main.add_command(inspect)
main.add_command(mask)
main.add_command(object_command)
main.add_command(train)
main.add_command(tune)
