"""Turn a pretrained video model into GenHOI: `genhoi.attach`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.adapter_config import FlowGateReduction, Schedule
from genhoi.models.attachment import ATTACHMENT, Attachment
from genhoi.models.options import UNSET, Preset, Unset, resolve_options
from genhoi.models.registry import model_of
from genhoi_kernels import backends, head_frames

__all__ = ["attach", "attachment_of"]


def attach(
    transformer: Any,
    adapter: GenHOIAdapter,
    *,
    preset: Preset | None = None,
    mask_gate: bool | Unset = UNSET,
    flow_gate: FlowGateReduction | Unset | None = UNSET,
    schedule: Schedule | Sequence[float] | Unset = UNSET,
    backend: str | None = None,
) -> Attachment:
    """Turn a Wan or Wan VACE transformer into GenHOI, in place, until ``detach``.

    Source: GenHOI, arXiv 2603.06048. The transformer's own forward, and its state_dict, stay as
    they are. Its ``parameters()`` include the adapter's, and ``to`` moves both. What is kept of
    references notices that weights have changed, but for changes through ``.data`` (as diffusers'
    ``EMAModel.copy_to`` makes them): call ``Attachment.refresh`` after those.

    Args:
        transformer: a diffusers ``WanTransformer3DModel`` or ``WanVACETransformer3DModel`` in any
            dtype; pipelines, offloading, PEFT adapters and caches work as before.
        adapter: on the same device; float32 or the transformer's dtype. It is used, not copied.
        preset: "paper" (mask gate on, a gate per token, the paper's schedule) or "release" (mask
            gate off, a gate per sequence, the release's schedule); on a VACE model both with a gate
            per token and no mask gate. None: the adapter's own config.
        mask_gate: whether only tokens inside the mask see the reference; off on a VACE model.
        flow_gate: "token", "sequence", or None for no gate.
        schedule: frame of each head; see ``genhoi_kernels.head_frames``.
            Each of these three wins over the preset.
        backend: of the op in every layer, see ``genhoi_kernels.backends``; None takes the first
            that supports the call.

    Raises:
        TypeError: another kind of transformer or adapter.
        ValueError: an adapter for another base or on another device, an unknown option, or a
            transformer that has an adapter or foreign processors already.

    Example:
        >>> import genhoi
        >>> from genhoi.bases.load import load_base
        >>> transformer = load_base("tiny-untrained").transformer  # or a diffusers pipeline's
        >>> adapter = genhoi.GenHOIAdapter.for_transformer(transformer, rank=8)
        >>> handle = genhoi.attach(transformer, adapter, preset="paper")
        >>> # handle.set_reference([object_latent], mask), on a VACE model
        >>> # handle.set_reference_frames(1); then use the transformer as ever
        >>> handle.detach()
    """
    model = model_of(transformer)
    if not isinstance(adapter, GenHOIAdapter):
        raise TypeError(f"adapter: got {type(adapter).__name__}, wanted a GenHOIAdapter")
    options = resolve_options(
        adapter.config,
        preset,
        mask_gate=mask_gate,
        flow_gate=flow_gate,
        schedule=schedule,
    )
    adapter.check_fits(transformer)
    head_frames(options.schedule, 1, adapter.config.num_heads)  # raises for an unknown schedule
    if backend is not None and backend not in (names := [known.name for known in backends()]):
        raise ValueError(f"backend: got {backend!r}, wanted one of {', '.join(names)} or None")
    return model.attach(adapter, options, backend)


def attachment_of(transformer: Any) -> Attachment:
    """Find the attachment of a transformer that has an adapter: what ``attach`` returned.

    A copy of the transformer (``copy.deepcopy``, or saved and loaded as a whole by ``torch.save``)
    comes with a copy of the adapter and of the references; this is how to reach its attachment.

    Raises:
        ValueError: no adapter is attached.

    Example:
        >>> import copy, genhoi
        >>> pipeline = genhoi.GenHOIPipeline.from_pretrained("tiny-untrained")
        >>> other = copy.deepcopy(pipeline.attachment.transformer)
        >>> genhoi.attachment_of(other).detach()  # the copy alone
    """
    attachment = getattr(transformer, ATTACHMENT, None)
    if not isinstance(attachment, Attachment):
        raise ValueError(
            f"transformer: got {type(transformer).__name__} without an adapter, wanted one that "
            f"attach() was called on"
        )
    return attachment
