"""Command lines written as keyword arguments."""

from __future__ import annotations

__all__ = ["command_line", "options_of"]


def command_line(command: str, **options: object) -> list[str]:
    """Write a command and its options."""
    return [command, *options_of(**options)]


def options_of(**options: object) -> list[str]:
    """Write each option as its flag and its value."""
    flags = {f"--{name.replace('_', '-')}": str(value) for name, value in options.items()}
    return [word for flag, value in flags.items() for word in (flag, value)]
