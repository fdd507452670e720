"""The flags of `genhoi train` that `TrainConfig` has: one for every field, with its help."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args, get_origin, get_type_hints

import cloup

__all__ = ["setting_flags", "setting_text"]


# Every field of TrainConfig, under the headings of the help.
_GROUPS = {
    "Base": "stage base expert",
    "Clips": "data clips frames height width mask data_seed object_from_mask",
    "Optimiser": "steps batch optimizer learning_rate warmup decay weight_decay clip_norm ema seed",
    "Task": "given reference_dropout mask_weight mask_rule shift",
    "Adapter": (
        "adapter rank queries_keys gate_init mask_gate flow_gate schedule video_rank train_base"
    ),
    "Memory and speed": (
        "micro_batch checkpointing compile base_dtype precision parallel workers backend"
    ),
    "While it runs": "log_every checkpoint_every keep sample_every samples",
}


def setting_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a flag for every field of `TrainConfig`, with the help its docstring has."""
    from genhoi.training.config import TrainConfig

    hints, helps = get_type_hints(TrainConfig), _field_help(TrainConfig.__doc__ or "")
    defaults = TrainConfig().to_dict()
    for title, names in reversed(_GROUPS.items()):
        flags = [_flag(name, hints[name], defaults[name], helps[name]) for name in names.split()]
        command = cloup.option_group(title, *flags)(command)
    return command


def _flag(name: str, hint: Any, default: Any, about: str) -> Callable[[Any], Any]:
    flag = name.replace("_", "-")
    shown = setting_text(default)
    if bool in (hint, *get_args(hint)):
        shown = flag if default else shown if default is None else f"no-{flag}"
        flag = f"{flag}/--no-{flag}"
    return cloup.option(
        f"--{flag}",
        name,
        default=None,
        metavar=_metavar(hint),
        help=f"{about}  [default: {shown}]",
    )


def _field_help(docstring: str) -> dict[str, str]:
    """Read the sentences of a docstring's Args, by name."""
    arguments = docstring.partition("Args:")[2].partition("Raises:")[0]
    helps: dict[str, str] = {}
    for names, lines in re.findall(r"^ {8}([a-z_, ]+): ((?:.|\n {12})+)", arguments, re.MULTILINE):
        sentence = " ".join(lines.split())
        helps |= {name: sentence[0].upper() + sentence[1:] for name in names.split(", ")}
    return helps


def _metavar(hint: Any) -> str | None:
    kinds = get_args(hint) if get_origin(hint) is not None else (hint,)
    if bool in kinds:
        return None
    if get_origin(hint) is dict:
        return "SHARES"
    choices = [x for kind in kinds for x in (get_args(kind) or (kind,)) if isinstance(x, str)]
    if str in kinds and float in kinds:
        choices = ["paper", "release", "NUMBER"]
    elif int in kinds or float in kinds:
        choices = ["INTEGER" if int in kinds else "NUMBER"]
    if type(None) in kinds:
        choices = [*(choices or ["TEXT"]), "none"]
    return "|".join(choices) or "TEXT"


def setting_text(value: Any) -> str:
    """Write a setting's value as `parse_setting` reads it."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ",".join(f"{key}={share:g}" for key, share in value.items())
    if isinstance(value, list):
        return ",".join(f"{item:g}" for item in value)
    return str(value)
