"""diffusers' hooks around the forward of a model's modules, of two kinds.

Some are on weights: they bring them (group offload), cast them (layerwise casting), or keep PEFT
from casting. Others are on what a module computes from step to step, or for one guidance branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["is_whole_on_disk", "remove_step_hooks", "weights_at_hand", "without_step_hooks"]

_PACKAGE = "diffusers.hooks."
_ON_WEIGHTS = ("group_offloading", "layerwise_casting", "context_parallel", "tensor_parallel")


@contextmanager
def weights_at_hand(*modules: nn.Module) -> Iterator[None]:
    """Run what hooks on weights do around the modules' forward, where none of them is called.

    The op reads weights of norms and gates itself. An offloaded weight may lie on another device,
    and one that was offloaded to disk holds anything.
    """
    hooked = [
        (module, hook)
        for module in modules
        for hook in reversed(_hooks(module))  # the last one is the outermost
        if not _over_steps(hook)
    ]
    for module, hook in hooked:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for module, hook in reversed(hooked):
            hook.post_forward(module, None)


@contextmanager
def without_step_hooks(block: nn.Module) -> Iterator[None]:
    """Keep a block's run from all hooks but those on weights.

    Caches would compare it with the last step's, and guidance by skipped or smoothed attention is
    of one branch, while keys and values of references serve all.
    """
    links = [
        hook.fn_ref for module in block.modules() for hook in _hooks(module) if _over_steps(hook)
    ]
    replaced = [(link, dict(vars(link))) for link in links]
    for link in links:
        link.pre_forward, link.post_forward = _same_arguments, _same_output
        link.forward = link.forward if link.original_forward is None else link.original_forward
    try:
        yield
    finally:
        for link, before in replaced:
            vars(link).update(before)


def remove_step_hooks(modules: Iterable[nn.Module]) -> None:
    """Take all hooks but those on weights off modules of an adapter.

    Caches that choose modules by patterns on their names hook the adapter's as well, which are no
    part of the base's attention that such a pattern means.
    """
    for module in modules:
        registry: Any = vars(module).get("_diffusers_hook")  # a lookup, for they are hundreds
        if registry is not None:
            for name, hook in list(registry.hooks.items()):
                if _over_steps(hook):
                    registry.remove_hook(name, recurse=False)


def is_whole_on_disk(module: nn.Module) -> bool:
    """Tell whether group offload keeps a module on the disk with all that is in it: by block."""
    groups: list[Any] = [getattr(hook, "group", None) for hook in _hooks(module)]
    on_disk = [group for group in groups if getattr(group, "offload_to_disk_path", None)]
    return any(whole is module for group in on_disk for whole in group.modules)


def _hooks(module: nn.Module) -> list[Any]:
    """List a module's hooks in the order they came."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    return [] if registry is None else [registry.hooks[name] for name in registry._hook_order]


def _over_steps(hook: Any) -> bool:
    """Tell whether a hook is not on weights; of those that are not diffusers' own, by its state."""
    source = type(hook).__module__
    if hook._is_stateful or not source.startswith(_PACKAGE):
        return bool(hook._is_stateful)
    return not source.removeprefix(_PACKAGE).startswith(_ON_WEIGHTS)


def _same_arguments(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


def _same_output(module: nn.Module, output: Any) -> Any:
    return output
