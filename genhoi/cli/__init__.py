"""The `genhoi` command."""

from genhoi.cli.group import main

__all__ = ["main"]
