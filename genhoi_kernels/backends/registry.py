"""Chooses a backend for a call, and says why each one can or cannot take it.

In which order several able ones are tried on a GPU is in ``preferences``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from genhoi_kernels import notices
from genhoi_kernels.backends import cpu, cuda, eager, preferences
from genhoi_kernels.backends.flash import backend as flash
from genhoi_kernels.backends.protocol import Backend
from genhoi_kernels.backends.triton import backend as triton
from genhoi_kernels.spec import AttentionCall, RopeCall

# In the order in which backend=None tries them, unless an entry of ``preferences`` fits the call.
_BACKENDS: dict[str, Backend] = {
    "cpu": cpu,
    "triton": triton,
    "flash": flash,
    "cuda": cuda,
    "eager": eager,
}


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run in this installation, and why or why not, in one sentence."""

    name: str
    usable: bool
    reason: str


def backends() -> tuple[BackendStatus, ...]:
    """Return every backend's status, in the order in which they are tried by default.

    Example:
        >>> from genhoi_kernels import backends
        >>> [status.name for status in backends()]
        ['cpu', 'triton', 'flash', 'cuda', 'eager']
        >>> backends()[-1].usable  # plain PyTorch always is
        True
    """
    statuses = []
    for name, backend in _BACKENDS.items():
        problem = backend.unavailable()
        statuses.append(BackendStatus(name, problem is None, problem or _description(backend)))
    return tuple(statuses)


def _description(backend: Backend) -> str:
    """Describe a backend, by ``description()`` where that depends on the installation."""
    describe = getattr(backend, "description", None)
    return backend.DESCRIPTION if describe is None else describe()


def backend_names() -> tuple[str, ...]:
    """Return the names that ``backend=`` takes."""
    return tuple(_BACKENDS)


def supports(name: str, call: AttentionCall | RopeCall) -> str | None:
    """Return None if the backend takes this call, else the reason why it doesn't.

    Raises:
        ValueError: no backend has that name.

    Example:
        >>> import torch
        >>> from genhoi_kernels import RopeCall, supports
        >>> call = RopeCall(torch.device("cpu"), torch.float32, head_dim=16)
        >>> supports("eager", call) is None
        True
    """
    if name not in _BACKENDS:
        raise ValueError(f"backend: got {name!r}, wanted one of {', '.join(_BACKENDS)} or None")
    backend = _BACKENDS[name]
    return backend.unavailable() or backend.supports(call)


def explain(call: AttentionCall | RopeCall) -> dict[str, str | None]:
    """Return what ``supports`` says of every backend, in the order in which they are tried."""
    return {name: supports(name, call) for name in order(call)}


def order(call: AttentionCall | RopeCall) -> tuple[str, ...]:
    """Return every backend's name, in the order in which they are tried for this call."""
    first: tuple[str, ...] = ()
    if isinstance(call, AttentionCall) and call.device.type == "cuda":
        first = tuple(n for n in preferences.first_tried(question(call)) if n in _BACKENDS)
    return (*first, *(name for name in _BACKENDS if name not in first))


def question(call: AttentionCall) -> preferences.Question:
    """Return what the choice for a call on a GPU depends on."""
    return preferences.Question(
        arch=triton.architecture(call.device),
        device=_device_name(call.device),
        dtype=str(call.dtype).removeprefix("torch."),
        head_dim=call.head_dim,
        rows=call.rows,
        training=call.needs_grad,
        flash=flash.generation(call),
    )


@functools.lru_cache(maxsize=16)
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def pick(call: AttentionCall | RopeCall, name: str | None) -> Backend:
    """Return the backend for a call: the named one, or the first in ``order`` that supports it.

    What was picked is kept for calls that are equal; see ``forget``.

    Raises:
        ValueError: the named backend does not exist or refuses the call; the message says why.
    """
    return _picked(call, name, preferences.user_table())


def forget() -> None:
    """Ask the backends anew: after a backend, or an environment variable it reads, has changed."""
    _picked.cache_clear()


@functools.lru_cache(maxsize=1024)
def _picked(
    call: AttentionCall | RopeCall, name: str | None, user_table: tuple[preferences.Choice, ...]
) -> Backend:
    """Pick; the user's table, on which ``order`` depends, is an argument to be part of the key."""
    if name is not None:
        reason = supports(name, call)
        if reason is not None:
            raise ValueError(f"backend: {name!r} cannot take this call: {reason}")
        return _BACKENDS[name]
    taken = next(_able(call))
    if taken == "eager" and isinstance(call, AttentionCall):
        _warn_of_eager(call)
    return _BACKENDS[taken]


class EagerFallbackWarning(UserWarning):
    """No kernel takes a call, and plain PyTorch computes it, with N x (Nk + M) tensors."""


def _warn_of_eager(call: AttentionCall) -> None:
    """Warn, once for each reason, that plain PyTorch computes a call for which nobody asked it."""
    on_cpu = call.device.type == "cpu"  # where no GPU's backend is the reason
    names = [name for name in order(call) if name != "eager" and (name == "cpu") == on_cpu]
    why = "; ".join(f"{name}: {supports(name, call)}" for name in names)
    keys = call.keys + sum(call.ref_lengths)
    notices.warn_once(
        why,
        f"reference_attention: no kernel takes this call, so plain PyTorch computes it and makes "
        f"N x (Nk + M) tensors, here {call.rows} x {keys} for each of {call.heads} heads and each "
        f"sample ({why}). genhoi_kernels.explain(...) says what each backend makes of a call; "
        f"backend='eager' asks for plain PyTorch, without this warning",
        EagerFallbackWarning,
    )


def _able(call: AttentionCall | RopeCall) -> Iterator[str]:
    return (name for name in order(call) if supports(name, call) is None)
