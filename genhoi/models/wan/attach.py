"""GenHOI on a diffusers Wan transformer, whose own forward stays as it is (docs/model_layer.md).

A processor in every attention layer holds the layer's adapter weights and cached keys and values;
a hook on ``transformer.rope``, which runs early in every forward pass, keeps them up to date.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from genhoi.conditioning.masks import token_mask
from genhoi.models.adapter import (
    AdapterLayer,
    FlowGateReduction,
    GenHOIAdapter,
    Schedule,
    check_flow_gate,
    check_has_data,
)
from genhoi.models.wan.processors import CrossAttention, SelfAttention, VideoPass
from genhoi.models.wan.reference_stream import (
    CacheKey,
    Grid,
    complete_channels,
    reference_keys_values,
)
from genhoi_kernels import MaskGate, VideoRope, backends, head_frames

__all__ = ["Attachment", "Preset", "attach"]

Preset = Literal["paper", "release"]


class _Unset:
    def __repr__(self) -> str:
        return "the preset's"


_UNSET = _Unset()


@dataclass(frozen=True)
class Options:
    """How an adapter is put to work; see ``attach``."""

    mask_gate: bool
    flow_gate: FlowGateReduction | None
    schedule: Schedule


_PRESETS = {
    "paper": Options(mask_gate=True, flow_gate="token", schedule="paper"),
    "release": Options(mask_gate=False, flow_gate="sequence", schedule="release"),
}


def attach(
    transformer: WanTransformer3DModel,
    adapter: GenHOIAdapter,
    *,
    preset: Preset | None = None,
    mask_gate: bool | _Unset = _UNSET,
    flow_gate: FlowGateReduction | _Unset | None = _UNSET,
    schedule: Schedule | Sequence[float] | _Unset = _UNSET,
    backend: str | None = None,
) -> Attachment:
    """Turn a Wan transformer into GenHOI, in place, until ``detach``.

    Source: GenHOI, arXiv 2603.06048. The transformer's own forward, and its state_dict, stay as
    they are. Its ``parameters()`` include the adapter's, and ``to`` moves both.

    Args:
        transformer: in any dtype; pipelines, offloading, PEFT adapters and caches work as before.
        adapter: on the same device; float32 or the transformer's dtype. It is used, not copied.
        preset: "paper" (mask gate on, a gate per token, the paper's schedule) or "release" (mask
            gate off, a gate per sequence, the release's schedule). None: the adapter's own config.
        mask_gate: whether only tokens inside the mask see the reference.
        flow_gate: "token", "sequence", or None for no gate.
        schedule: frame of each head; see ``genhoi_kernels.head_frames``.
            Each of these three wins over the preset.
        backend: of the op in every layer, see ``genhoi_kernels.backends``; None takes the first
            that supports the call.

    Raises:
        TypeError: another kind of transformer or adapter.
        ValueError: an adapter for another base or on another device, an unknown option, or a
            transformer that has an adapter or foreign processors already.
    """
    if not isinstance(transformer, WanTransformer3DModel):
        raise TypeError(
            f"transformer: got {type(transformer).__name__}, wanted a diffusers "
            f"WanTransformer3DModel"
        )
    if not isinstance(adapter, GenHOIAdapter):
        raise TypeError(f"adapter: got {type(adapter).__name__}, wanted a GenHOIAdapter")
    given = {"mask_gate": mask_gate, "flow_gate": flow_gate, "schedule": schedule}
    options = _options(adapter, preset, {k: v for k, v in given.items() if v is not _UNSET})
    adapter.check_fits(transformer)
    _check_ready(transformer, adapter)
    head_frames(options.schedule, 1, adapter.config.num_heads)  # raises for an unknown schedule
    if backend is not None and backend not in (names := [known.name for known in backends()]):
        raise ValueError(f"backend: got {backend!r}, wanted one of {', '.join(names)} or None")
    return Attachment(transformer, adapter, options, backend)


class Attachment:
    """A transformer with an adapter on it; made by ``attach``.

    Attributes:
        transformer, adapter: as given.
        options: mask_gate, flow_gate and schedule in force.
        reference_passes: how often the reference stream has run.
        skip_unseen: leave references out where no token of the batch sees them. Training turns it
            off, so that every weight is reached in every pass, which DistributedDataParallel and
            FSDP rely on; the result is the same.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        adapter: GenHOIAdapter,
        options: Options,
        backend: str | None = None,
    ) -> None:
        self.transformer = transformer
        self.adapter = adapter
        self.options = options
        self.reference_passes = 0
        self.skip_unseen = True
        self._references: list[Tensor] = []
        self._mask: MaskGate | None = None
        self._mask_grid: Grid | None = None
        self._bias: Tensor | None = None
        self._seen = False
        self._key: CacheKey | None = None
        self._passes: list[VideoPass] = []
        self._processors: list[SelfAttention] = []
        self._attached = True

        for block, layer in zip(transformer.blocks, adapter.layers, strict=True):
            layer = cast(AdapterLayer, layer)
            processor = SelfAttention(block.attn1.processor, layer, options.flow_gate, backend)
            self._processors.append(processor)
            block.attn1.set_processor(processor)
            block.attn2.set_processor(
                CrossAttention(block.attn2.processor, layer, options.flow_gate, backend)
            )
        # Layerwise casting would otherwise store the gates in 8 bits.
        patterns = list(transformer._skip_layerwise_casting_patterns or ())
        transformer._skip_layerwise_casting_patterns = [*patterns, "processor"]
        # After rope, within forward: wrappers that bring weights along have run, and its result
        # tells this forward pass from all others.
        self._hook = transformer.rope.register_forward_hook(self._before_blocks)

    def set_reference(
        self,
        references: Sequence[Tensor] | None,
        mask: Tensor | None = None,
        *,
        ref_bias: Sequence[float] | None = None,
    ) -> None:
        """Choose what the video refers to, for all forward passes until the next call.

        Nothing is computed until the first of them; then keys and values are, once, and kept for
        all steps and guidance branches. Synchronises with the host once.

        Args:
            references: latents ``[1 or B, C, 1, h, w]`` of each reference, of any size that the
                patches divide; C is the latent's channels, completed as the model's input asks, or
                the model's in_channels. Cast to the video's dtype when used. None: no reference;
                flow gates stay on.
            mask: which video tokens see them: a latent mask ``[1 or B, 4 or 1, F, H, W]`` (see
                ``token_mask``), or tokens ``[1 or B, f*h*w]``, bool, or integer with bit r for
                reference r. For a mask over pixels call ``token_mask(..., kind="pixel")`` first.
                Not used with the mask gate off.
            ref_bias: one number a reference, added to its logits: log(2) doubles the weight of its
                tokens before softmax, log(1/2) halves it. None: 0 for all.

        Raises:
            TypeError: not tensors, or a mask of floating-point tokens.
            ValueError: shapes or devices that do not fit, or no mask with the mask gate on. A mask
                for another grid than the video's is found out in the next forward pass.
            RuntimeError: after ``detach``.
        """
        if not self._attached:
            raise RuntimeError("set_reference: the adapter is detached; attach it again first")
        references = self._checked_references([] if references is None else references)
        bias = _bias(ref_bias, references)
        gate = grid = None
        seen = bool(references)
        if references and self.options.mask_gate:
            gate, grid, seen = self._mask_gate(mask, references)
        self._references, self._mask, self._mask_grid = references, gate, grid
        self._seen, self._bias = seen, bias
        self._forget()

    def set_mask(self, mask: Tensor) -> None:
        """Change which video tokens see the references, and keep the references' keys and values.

        For the windows of a long clip, which share references and grid.

        Args:
            mask: as for ``set_reference``.

        Raises:
            TypeError, ValueError, RuntimeError: as ``set_reference``; ValueError too where no
                reference is set or the mask gate is off.
        """
        if not self._attached:
            raise RuntimeError("set_mask: the adapter is detached; attach it again first")
        if not self._references or not self.options.mask_gate:
            why = "the mask gate is off" if self._references else "no reference is set"
            raise ValueError(f"mask: got one while {why}, wanted none, for it would not be used")
        self._mask, self._mask_grid, self._seen = self._mask_gate(mask, self._references)
        self._passes = [replace(current, mask=self._mask) for current in self._passes]

    def detach(self) -> None:
        """Leave the transformer as it was before ``attach``; the adapter keeps its weights."""
        if not self._attached:
            return
        self._attached = False
        self._hook.remove()
        for block in self.transformer.blocks:
            for attention in (block.attn1, block.attn2):
                if isinstance(attention.processor, (SelfAttention, CrossAttention)):
                    attention.set_processor(attention.processor.base)
        del self.transformer._skip_layerwise_casting_patterns  # uncovers the class's own
        self._references, self._processors, self._mask = [], [], None
        self._forget()

    # ------------------------------------------------------------------------------ set_reference

    def _checked_references(self, references: Sequence[Tensor]) -> list[Tensor]:
        if not isinstance(references, (list, tuple)):
            raise TypeError(
                f"references: got {type(references).__name__}, wanted a list of tensors or None"
            )
        config = self.transformer.config
        _, patch_h, patch_w = config.patch_size
        device = _device(self.transformer)
        for x in references:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                came = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise TypeError(f"references: got {came}, wanted floating-point tensors")
            if x.dim() != 5 or x.shape[2] != 1 or x.shape[3] % patch_h or x.shape[4] % patch_w:
                raise ValueError(
                    f"references: got shape {tuple(x.shape)}, wanted [1 or B, C, 1, h, w], h a "
                    f"multiple of {patch_h} and w of {patch_w}"
                )
            _check_device("references", x, device, "the transformer")
            complete_channels(x, config.in_channels, config.out_channels)  # raises
        if len(batches := {len(x) for x in references} - {1}) > 1:
            raise ValueError(f"references: got batches of {sorted(batches)}, wanted 1 or one B")
        return list(references)

    def _mask_gate(
        self, mask: Tensor | None, references: list[Tensor]
    ) -> tuple[MaskGate, Grid | None, bool]:
        """The gate, the grid it was made for if the mask tells, and whether any token sees."""
        if not isinstance(mask, Tensor):
            raise TypeError(
                f"mask: got {type(mask).__name__}, wanted a tensor, for the mask gate is on "
                f"(attach with mask_gate=False to do without)"
            )
        _check_device("mask", mask, references[0].device, "references")
        if mask.dim() not in (2, 4, 5):
            raise ValueError(
                f"mask: got shape {tuple(mask.shape)}, wanted latents [1 or B, 4 or 1, F, H, W] or "
                f"tokens [1 or B, f*h*w]"
            )
        if mask.dtype == torch.uint8 and mask.dim() == 2 and len(references) > 8:
            raise ValueError(
                f"mask: got uint8 tokens, whose bits tell 8 references apart, wanted int32 for "
                f"{len(references)}"
            )
        if mask.dim() == 2:
            gate = MaskGate.build(mask)
            grid = None
        else:
            patch = self.transformer.config.patch_size
            sizes = zip(mask.shape[-3:], patch, strict=True)
            f, h, w = (size // p for size, p in sizes)
            grid = (f, h, w)
            gate = MaskGate.build(token_mask(mask, grid))
        # The bits of the references there are; int32 holds 32 with its sign.
        visible = (1 << len(references)) - 1 if len(references) < 32 else -1
        return gate, grid, bool((gate.bits & visible).any())

    # ------------------------------------------------------------------------------- forward pass

    @torch.compiler.disable
    def _before_blocks(self, rope: Any, args: tuple[Tensor], rotary: tuple[Tensor, Tensor]) -> None:
        """Give every processor what this forward pass needs."""
        latents = args[0]
        check_has_data(self._processors[0].lora_k.down, latents)
        patch = self.transformer.config.patch_size
        f, h, w = (size // p for size, p in zip(latents.shape[-3:], patch, strict=True))
        grid = (f, h, w)
        if self._references:
            self._check_forward(latents, grid)
        if not self._references or (self.skip_unseen and not self._seen):
            passes = self._without_reference(grid)
        else:
            passes = self._with_reference(latents, grid)
        for processor, current in zip(self._processors, passes, strict=True):
            processor.set_pass(current, rotary[0])

    def _without_reference(self, grid: Grid) -> Sequence[VideoPass | None]:
        layers = len(self._processors)
        if self.options.flow_gate is None:
            return [None] * layers
        return [VideoPass(self._rope(grid))] * layers

    def _with_reference(self, latents: Tensor, grid: Grid) -> Sequence[VideoPass]:
        transformer, references = self.transformer, self._references
        casts = sum(processor.casts for processor in self._processors)
        key = CacheKey(transformer, references, grid, latents, casts)
        # With gradients the graph behind keys and values lasts one backward pass.
        grads = torch.is_grad_enabled() and any(
            x.requires_grad for x in (*references, *transformer.parameters())
        )
        if grads or key != self._key:
            self._forget()
            found = reference_keys_values(
                transformer, references, grid, self.options.schedule, latents.dtype
            )
            self.reference_passes += 1
            _, patch_h, patch_w = transformer.config.patch_size
            lengths = tuple((x.shape[3] // patch_h) * (x.shape[4] // patch_w) for x in references)
            rope = self._rope(grid)
            bias = None if self._bias is None else self._bias.to(latents.device)
            self._passes = [VideoPass(rope, k, v, lengths, self._mask, bias) for k, v in found]
            self._key = None if grads else key
        return self._passes

    def _rope(self, grid: Grid) -> VideoRope:
        return VideoRope(grid, head_dim=self.transformer.config.attention_head_dim)

    def _check_forward(self, latents: Tensor, grid: Grid) -> None:
        device, batch = self._references[0].device, len(latents)
        if device != latents.device:
            raise ValueError(
                f"references: got device {device}, wanted {latents.device} as the video latents; "
                f"call set_reference with tensors there"
            )
        for x in self._references:
            if len(x) not in (1, batch):
                raise ValueError(f"references: got a batch of {len(x)}, wanted 1 or {batch}")
        if self._mask is None:
            return
        if self._mask_grid not in (None, grid):
            raise ValueError(
                f"mask: got one for grid {self._mask_grid}, wanted {grid} as the video's tokens"
            )
        shape, tokens = tuple(self._mask.bits.shape), grid[0] * grid[1] * grid[2]
        if shape[1] != tokens or shape[0] not in (1, batch):
            raise ValueError(
                f"mask: got tokens of shape {shape}, wanted [1 or {batch}, {tokens}] for grid "
                f"{grid}"
            )

    def _forget(self) -> None:
        self._key, self._passes = None, []
        for processor in self._processors:
            processor.current = None


def _options(adapter: GenHOIAdapter, preset: str | None, given: dict[str, Any]) -> Options:
    config = adapter.config
    if preset is None:
        options = Options(config.mask_gate, config.flow_gate, config.schedule)
    elif preset in _PRESETS:
        options = _PRESETS[preset]
    else:
        raise ValueError(f"preset: got {preset!r}, wanted one of {', '.join(_PRESETS)} or None")
    options = replace(options, **given)
    check_flow_gate(options.flow_gate)
    if not isinstance(options.mask_gate, bool):
        raise TypeError(f"mask_gate: got {options.mask_gate!r}, wanted True or False")
    return options


def _bias(ref_bias: Sequence[float] | None, references: list[Tensor]) -> Tensor | None:
    """``[R]`` float32."""
    if ref_bias is None:
        return None
    if not isinstance(ref_bias, (list, tuple)) or not all(
        isinstance(x, (int, float)) for x in ref_bias
    ):
        raise TypeError(f"ref_bias: got {ref_bias!r}, wanted a list of numbers or None")
    if len(ref_bias) != len(references) or not all(math.isfinite(x) for x in ref_bias):
        raise ValueError(
            f"ref_bias: got {list(ref_bias)}, wanted {len(references)} finite numbers, one a "
            f"reference"
        )
    return torch.tensor(ref_bias, dtype=torch.float32) if references else None


def _check_ready(transformer: Any, adapter: GenHOIAdapter) -> None:
    """No adapter is attached yet, processors are Wan's, and devices agree."""
    for block in transformer.blocks:
        for attention in (block.attn1, block.attn2):
            processor = attention.processor
            if isinstance(processor, (SelfAttention, CrossAttention)):
                raise ValueError(
                    "transformer: got one with an adapter attached, wanted one without; call "
                    "detach() on what attach() returned first"
                )
            if type(processor) is not WanAttnProcessor:
                raise ValueError(
                    f"transformer: got attention processor {type(processor).__name__}, wanted "
                    f"WanAttnProcessor, whose place the adapter's take"
                )
    weight, lies = next(adapter.parameters()), next(transformer.parameters()).device
    if weight.device != lies:  # under offloading, either place is right
        _check_device("adapter", weight, _device(transformer), "the transformer")


def _device(transformer: Any) -> torch.device:
    """Where the transformer computes: under offloading its weights may lie elsewhere."""
    hook = getattr(transformer, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(transformer.device if device is None else device)


def _check_device(name: str, x: Tensor, wanted: torch.device, as_what: str) -> None:
    # "cuda" and "cuda:0" may be the same device; the op's own check is exact.
    same_index = None in (x.device.index, wanted.index) or x.device.index == wanted.index
    if x.device.type != wanted.type or not same_index:
        raise ValueError(f"{name}: got device {x.device}, wanted {wanted} as {as_what}")
