"""How a training's processes share the work, and how they stop together."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch.distributed.fsdp import FSDPModule

from genhoi.train_config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Interrupts", "ShardedModel", "make_accelerator"]

_SAME_SIGNAL = 2.0  # seconds


def make_accelerator(config: TrainConfig, *, cpu: bool = False) -> Accelerator:
    """For the settings; reads the processes from `accelerate launch`'s or torchrun's environment.

    Args:
        config: precision and parallel are used.
        cpu: compute there, whatever else there is.

    Raises:
        ImportError: accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import FullyShardedDataParallelPlugin
    except ImportError as error:
        raise ImportError("training needs accelerate: pip install accelerate") from error
    options: dict[str, Any] = {}
    if config.parallel == "fsdp":
        # No mixed-precision policy: the few trained weights are gathered in float32 and the frozen
        # ones in their own type, and autocast does the same as under DDP.
        options["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["WanTransformerBlock"],
        )
    return Accelerator(mixed_precision=config.precision, cpu=cpu, **options)


class ShardedModel:
    """What FSDP2 has to be told about a Wan with an adapter; nothing where the model is whole.

    Args:
        transformer: as it was prepared by the accelerator.
        accelerator: its precision is used.
    """

    def __init__(self, transformer: Any, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._parts = [m for m in transformer.modules() if isinstance(m, FSDPModule)]
        self._last: Any = transformer.blocks[-1]
        if self._parts:
            # Its reference pass has no output, only keys and values, so nothing would gather the
            # weights again for the backward of that pass, which comes after the video's.
            self._last.set_reshard_after_backward(False)

    @property
    def is_sharded(self) -> bool:
        """Whether each process has a part of the weights only."""
        return bool(self._parts)

    def autocast(self) -> AbstractContextManager[Any]:
        """Around the model's forward, which accelerate wraps in it under DDP only."""
        return self._accelerator.autocast() if self._parts else nullcontext()

    def after_backward(self) -> None:
        """To be called after the last backward pass of a step."""
        if self._parts:
            self._last.reshard()

    def forget_gathered(self) -> None:
        """To be called after weights were changed: the root stays gathered after a forward."""
        for part in self._parts:
            part.reshard()


class Interrupts:
    """Lets Ctrl-C and SIGTERM wait for the end of a step, so that weights, moments and step belong
    together.

    A second Ctrl-C raises KeyboardInterrupt at once. Launchers send a signal of their own after the
    terminal's, so one that comes within two seconds is the same.

    Args:
        notice: called at the first signal.

    Attributes:
        seen: whether there was one.
    """

    def __init__(self, notice: Callable[[], object] | None = None) -> None:
        self.seen = False
        self._notice = notice
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """A KeyboardInterrupt out of the block counts as Ctrl-C."""
        try:
            yield
        except KeyboardInterrupt:
            self.seen = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.seen:
            self.seen, self._first = True, time.monotonic()
            if self._notice is not None:
                self._notice()
        elif number == signal.SIGINT and time.monotonic() - self._first > _SAME_SIGNAL:
            raise KeyboardInterrupt
