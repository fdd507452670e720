"""What the commands of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

__all__ = ["PATH", "plain_errors"]

PATH = click.Path(path_type=Path)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what bad input raises into one sentence and exit code 1."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
