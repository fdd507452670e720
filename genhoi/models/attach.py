"""Turn a pretrained video model into GenHOI: `genhoi.attach`, `genhoi.attach_pipeline`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.adapter_config import FlowGateReduction, Schedule
from genhoi.models.attachment import ATTACHMENT, Attachment
from genhoi.models.experts import join
from genhoi.models.options import UNSET, Options, Preset, Unset, resolve_options
from genhoi.models.pipelines import experts_of, looks_like_expert, other_expert
from genhoi.models.protocol import VideoModel
from genhoi.models.registry import model_of
from genhoi_kernels import backends, head_frames

__all__ = ["attach", "attach_pipeline", "attachment_of"]


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
    """Turn a Wan, Wan VACE or Wan Animate transformer into GenHOI, in place, until ``detach``.

    Source: GenHOI, arXiv 2603.06048. The transformer's own forward, and its state_dict, stay as
    they are. Its ``parameters()`` include the adapter's, and ``to`` moves both. torch.compile makes
    one program for all references; torch.export makes those that are set constants of its program,
    and warns (docs/model_layer.md, "Compiled"). What is kept of references notices that weights
    have changed, but for changes through ``.data`` (as diffusers' ``EMAModel.copy_to`` makes them):
    call ``Attachment.refresh`` after those.

    Args:
        transformer: a diffusers ``WanTransformer3DModel``, ``WanVACETransformer3DModel`` or
            ``WanAnimateTransformer3DModel`` in any dtype, compiled or not; pipelines, offloading,
            PEFT adapters and caches work as before.
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

    Warns:
        UserWarning: a living pipeline has a second transformer without an adapter, as those of Wan
            2.2 14B do, or none holds it and it has the sizes of Wan 2.2 I2V-A14B; `attach_pipeline`
            covers both.

    Example:
        >>> import genhoi
        >>> from genhoi.bases.load import load_base
        >>> transformer = load_base("mosaic-untrained").transformer  # or a diffusers pipeline's
        >>> adapter = genhoi.GenHOIAdapter.for_transformer(transformer, rank=8)
        >>> handle = genhoi.attach(transformer, adapter, preset="paper")
        >>> # handle.set_reference([object_latent], mask), on a VACE model
        >>> # handle.set_reference_frames(1); then use the transformer as ever
        >>> handle.detach()
    """
    ((model, _, options),) = _checked(
        [transformer], [adapter], preset, mask_gate, flow_gate, schedule, backend
    )
    attachment = model.attach(adapter, options, backend)
    if _is_alone(transformer):
        warnings.warn(
            "transformer: got one of the two experts of a Wan 2.2 pipeline, and the other has no "
            "adapter: the steps that it takes do not see the object; "
            "genhoi.attach_pipeline(pipe, adapter) covers both",
            stacklevel=2,
        )
    return attachment


def attach_pipeline(
    pipe: Any,
    adapter: GenHOIAdapter | Sequence[GenHOIAdapter],
    *,
    preset: Preset | None = None,
    mask_gate: bool | Unset = UNSET,
    flow_gate: FlowGateReduction | Unset | None = UNSET,
    schedule: Schedule | Sequence[float] | Unset = UNSET,
    backend: str | None = None,
) -> Attachment:
    """Turn every transformer of a diffusers pipeline into GenHOI, in place, until ``detach``.

    Pipelines of Wan 2.2 14B have two experts: ``transformer`` takes the noisy steps,
    ``transformer_2`` the rest. What the attachment is told holds for both. Each expert runs the
    references once, and keeps keys and values of its own: twice the memory of one.

    Args:
        pipe: with a ``transformer``, a ``transformer_2``, or both, as `attach` takes them.
        adapter: for all of them, shared; or one each, in that order.
        preset, mask_gate, flow_gate, schedule, backend: as for `attach`.

    Raises:
        TypeError: as `attach`; an object without a transformer.
        ValueError: as `attach`; another number of adapters, or adapters whose own options differ
            while no preset or option settles them. Then nothing is attached.

    Example:
        >>> import genhoi
        >>> from types import SimpleNamespace
        >>> from genhoi.bases.load import load_base
        >>> high, low = (load_base("mosaic-untrained").transformer for _ in range(2))
        >>> pipe = SimpleNamespace(transformer=high, transformer_2=low)  # or a diffusers pipeline
        >>> adapter = genhoi.GenHOIAdapter.for_transformer(high, rank=8)
        >>> handle = genhoi.attach_pipeline(pipe, adapter)
        >>> handle.detach()
    """
    experts = list(experts_of(pipe).values())
    adapters: list[Any] = [adapter] * len(experts)
    if isinstance(adapter, (list, tuple)):
        adapters = list(adapter)
    if len(adapters) != len(experts):
        raise ValueError(
            f"adapter: got {len(adapters)}, wanted one or {len(experts)}, as the pipeline has "
            f"transformers"
        )
    checked = _checked(experts, adapters, preset, mask_gate, flow_gate, schedule, backend)
    attachments: list[Attachment] = []
    try:
        for model, each, options in checked:
            attachments.append(model.attach(each, options, backend))
    except ValueError:
        for attachment in attachments:
            attachment.detach()
        raise
    return join(attachments)


def attachment_of(transformer: Any) -> Attachment:
    """Find the attachment of a transformer that has an adapter: what ``attach`` returned.

    A copy of the transformer (``copy.deepcopy``, or saved and loaded as a whole by ``torch.save``)
    comes with a copy of the adapter and of the references; this is how to reach its attachment.

    Raises:
        ValueError: no adapter is attached.

    Example:
        >>> import copy, genhoi
        >>> pipeline = genhoi.GenHOIPipeline.from_pretrained("mosaic-untrained")
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


def _is_alone(transformer: Any) -> bool:
    """Tell whether there is, or has to be, another expert, without an adapter."""
    other = other_expert(transformer)
    if other is None:
        return looks_like_expert(transformer.config)
    return not hasattr(other, ATTACHMENT)


def _checked(
    transformers: Sequence[Any],
    adapters: Sequence[GenHOIAdapter],
    preset: Preset | None,
    mask_gate: bool | Unset,
    flow_gate: FlowGateReduction | Unset | None,
    schedule: Schedule | Sequence[float] | Unset,
    backend: str | None,
) -> list[tuple[VideoModel, GenHOIAdapter, Options]]:
    """Check everything that can be known before the first is attached."""
    if backend is not None and backend not in (names := [known.name for known in backends()]):
        raise ValueError(f"backend: got {backend!r}, wanted one of {', '.join(names)} or None")
    checked: list[tuple[VideoModel, GenHOIAdapter, Options]] = []
    for transformer, adapter in zip(transformers, adapters, strict=True):
        model = model_of(transformer)
        if not isinstance(adapter, GenHOIAdapter):
            raise TypeError(f"adapter: got {type(adapter).__name__}, wanted a GenHOIAdapter")
        options = resolve_options(
            adapter.config, preset, mask_gate=mask_gate, flow_gate=flow_gate, schedule=schedule
        )
        adapter.check_fits(transformer)
        head_frames(options.schedule, 1, adapter.config.num_heads)  # raises for an unknown one
        if checked and options != checked[0][2]:
            raise ValueError(
                f"adapter: got ones with options {checked[0][2]} and {options}, wanted the same; "
                f"preset, mask_gate, flow_gate and schedule settle them"
            )
        checked.append((model, adapter, options))
    return checked
