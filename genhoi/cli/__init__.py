"""The `genhoi` command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genhoi.cli.group import main

__all__ = ["main"]


def __getattr__(name: str) -> Any:
    """Import the command when it is asked for: `__main__` runs without click, to say so."""
    if name != "main":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from genhoi.cli.group import main

    return main
