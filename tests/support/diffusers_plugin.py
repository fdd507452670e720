"""A pytest plugin for diffusers' own tests: every Wan transformer that they make has an adapter.

`tests/run_diffusers_tests.py` loads it and sets the three variables that it reads:

- ``GENHOI_ATTACH``: "bare" leaves transformers alone, "attached" puts an adapter on, "reference"
  also gates every token and sets a reference that every token sees;
- ``GENHOI_ON_CPU``: run tests that ask for an accelerator on the CPU;
- ``GENHOI_STAND_INS``: make the tiny text encoder that the tests fetch from the Hub.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
import transformers

import genhoi

MODE = os.environ["GENHOI_ATTACH"]
TINY_T5 = "hf-internal-testing/tiny-random-t5"
CLASSES = (
    diffusers.WanTransformer3DModel,
    diffusers.WanVACETransformer3DModel,
    diffusers.WanAnimateTransformer3DModel,
)
_loading = False


def put_adapter(model: Any) -> None:
    """Attach an adapter whose every weight matters, the same for models of the same sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        adapter = genhoi.GenHOIAdapter.for_transformer(model, rank=4)
        for name, weight in adapter.named_parameters():
            torch.nn.init.normal_(weight, mean=float("norm.weight" in name), std=0.3)
        config = model.config
        channels = getattr(config, "in_channels", None) or config.latent_channels
        reference = torch.randn(1, channels, 1, 4, 4)
    # A bias is neither quantised nor kept in float32, as some of a float16 model's weights are.
    bias = model.blocks[0].attn1.to_out[0].bias
    adapter.to(bias.device, bias.dtype)
    gate = "token" if MODE == "reference" else None
    handle = genhoi.attach(model, adapter, mask_gate=False, flow_gate=gate)
    if MODE != "reference":
        return
    if adapter.config.references == "frames":
        handle.set_reference_frames(1)
    else:
        model.register_forward_pre_hook(SetReference(handle, reference), with_kwargs=True)


class SetReference:
    """Sets a reference, and again where the video is on another device: tests move the model."""

    def __init__(self, handle: genhoi.Attachment, reference: torch.Tensor) -> None:
        self.handle, self.reference = handle, reference
        self._set(handle.transformer.device)

    def _set(self, place: torch.device) -> None:
        self.place = place
        self.handle.set_reference([self.reference.to(place)])

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        video = args[0] if args else kwargs["hidden_states"]
        if not torch.compiler.is_compiling() and video.device != self.place:
            self._set(video.device)


def attach_when_made(cls: type[Any]) -> None:
    """Change a class: an adapter is put on by its constructor, or once its weights are loaded."""
    init = cls.__init__

    @functools.wraps(init)
    def with_adapter(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if not _loading and type(self) is cls:
            put_adapter(self)

    cls.__init__ = with_adapter
    for name in ("from_pretrained", "from_single_file"):
        load = inspect.getattr_static(cls, name).__func__
        setattr(cls, name, classmethod(_loader(load)))


def _loader(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def loaded(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        with _without_constructor():
            result = load(cls, *args, **kwargs)
        put_adapter(result[0] if isinstance(result, tuple) else result)
        return result

    return loaded


@contextmanager
def _without_constructor() -> Iterator[None]:
    """Weights are not there yet where a loader calls the constructor."""
    global _loading
    before, _loading = _loading, True
    try:
        yield
    finally:
        _loading = before


def make_stand_ins() -> None:
    """Answer for the tiny T5 of the Hub, which needs a connection."""
    from support.tiny_base import tiny_tokenizer

    config = transformers.T5Config(
        vocab_size=32, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )

    def text_encoder(cls: type[Any]) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            return cls(config).eval()

    answers: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
        (transformers.AutoConfig, lambda cls: config),
        (transformers.AutoTokenizer, lambda cls: tiny_tokenizer()),
        (transformers.T5EncoderModel, text_encoder),
    )
    for cls, answer in answers:
        load = inspect.getattr_static(cls, "from_pretrained", None) or cls.from_pretrained
        cls.from_pretrained = classmethod(_standing_in(load.__func__, answer))


def _standing_in(load: Callable[..., Any], answer: Callable[[Any], Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def loaded(cls: type[Any], name: Any = None, *args: Any, **kwargs: Any) -> Any:
        return answer(cls) if name == TINY_T5 else load(cls, name, *args, **kwargs)

    return loaded


def _wants_accelerator(mark: pytest.Mark) -> bool:
    reason = str(mark.kwargs.get("reason", ""))
    wanted = ("test requires a hardware accelerator", "test requires accelerator+PyTorch")
    return mark.name == "skipif" and reason in wanted


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what only asks for an accelerator on the CPU too, if wanted."""
    if not os.environ.get("GENHOI_ON_CPU"):
        return
    for item in items:
        for node in item.listchain():
            node.own_markers = [m for m in node.own_markers if not _wants_accelerator(m)]


if MODE != "bare":
    for wan in CLASSES:
        attach_when_made(wan)
if os.environ.get("GENHOI_STAND_INS"):
    make_stand_ins()
