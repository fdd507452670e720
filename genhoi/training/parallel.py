"""How a training's processes share the work, and how they stop together."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from genhoi.extras import needed_for
from genhoi.models.registry import model_of
from genhoi.training.config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Interrupts", "ShardedModel", "make_accelerator"]

_SAME_SIGNAL = 2.0  # seconds


def make_accelerator(config: TrainConfig, *, cpu: bool = False) -> Accelerator:
    """Make the accelerator; `accelerate launch`'s or torchrun's environment has the processes.

    Args:
        config: its precision is used.
        cpu: compute there, whatever else there is.

    Raises:
        ImportError: accelerate is not installed.
        ValueError: the launcher has a way of its own to share the work.
    """
    with needed_for("training"):
        from accelerate import Accelerator
        from accelerate.utils import DistributedType
    accelerator = Accelerator(mixed_precision=config.precision, cpu=cpu)
    own = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if accelerator.distributed_type in own:
        raise ValueError(
            f"parallel: got {accelerator.distributed_type.value} from the launcher's settings, "
            f"wanted none there; --parallel says how the processes share the work"
        )
    return accelerator


class ShardedModel:
    """Shares out a model's weights, perhaps with an adapter's, through FSDP2; or leaves them whole.

    Not through accelerate's FSDP: that does not run on CPUs, where it silently takes DDP, so it
    could not be tested there.

    Args:
        transformer: with everything attached; on any device.
        accelerator: says which processes there are, and the precision.
        shard: whether to shard it, if there are several processes.
    """

    def __init__(self, transformer: Any, accelerator: Accelerator, *, shard: bool) -> None:
        self._accelerator = accelerator
        self._parts: list[Any] = []
        if not shard or accelerator.num_processes == 1:
            return
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        # No mixed-precision policy: the few trained weights are gathered in float32 and the frozen
        # ones in their own type, and autocast does the same as under DDP.
        self._parts = [fully_shard(block, mesh=mesh) for block in model_of(transformer).all_blocks]
        self._last = self._parts[-1]
        # Its reference pass has no output, only keys and values, so nothing would gather the
        # weights again for the backward of that pass, which comes after the video's.
        self._last.set_reshard_after_backward(False)
        self._parts.append(fully_shard(transformer, mesh=mesh))

    @property
    def is_sharded(self) -> bool:
        """Tell whether each process has a part of the weights only."""
        return bool(self._parts)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Run the model's forward in autocast, which accelerate builds into a whole one."""
        if not self._parts:
            yield
            return
        with warnings.catch_warnings(), self._accelerator.autocast():
            # It would be wrong to write into the output, and nobody does.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module.*view tensor")
            yield

    def after_backward(self) -> None:
        """Free gathered weights; to be called after the last backward pass of a step."""
        if self._parts:
            self._last.reshard()

    def forget_gathered(self) -> None:
        """Drop gathered weights, to be called after a change: a forward leaves the root so."""
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
        """Count a KeyboardInterrupt out of the block as Ctrl-C."""
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
