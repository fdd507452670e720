"""What GenHOI adds to a pretrained Wan: low-rank weights for the reference stream, and flow gates.

The adapter holds weights and says how they were trained; ``genhoi.attach`` puts it to work.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genhoi_kernels import FlowGate

__all__ = ["AdapterConfig", "AdapterLayer", "GenHOIAdapter", "LowRank", "local_weight"]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter.safetensors"

FlowGateReduction = Literal["token", "sequence"]
GateInit = Literal["open", "neutral"]
Schedule = str | float | list[float]

_FORMAT, _VERSION = "genhoi-adapter", 1


@dataclass(frozen=True)
class AdapterConfig:
    """The base an adapter fits, and the settings it was trained with.

    Args:
        num_heads, head_dim: of the base's attention; its width is their product.
        num_layers: blocks of the base.
        image_attention: the base has cross-attention over an image (Wan2.1 image-to-video).
        rank: of the low-rank weights.
        gate_init: gates start at 0.99 ("open", near the pretrained model) or at 0.5 ("neutral", as
            in the release, which halves every attention output of the pretrained model).
        mask_gate, flow_gate, schedule: what ``attach`` uses unless told otherwise; see there.

    Raises:
        ValueError: a size below 1 or an unknown option.
    """

    num_heads: int
    head_dim: int
    num_layers: int
    image_attention: bool
    rank: int = 128
    gate_init: GateInit = "open"
    mask_gate: bool = True
    flow_gate: FlowGateReduction | None = "token"
    schedule: Schedule = "paper"

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim", "num_layers", "rank"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: got {size!r}, wanted an integer of at least 1")
        _check_choice("gate_init", self.gate_init, get_args(GateInit))
        check_flow_gate(self.flow_gate)

    @property
    def dim(self) -> int:
        """Width of the base."""
        return self.num_heads * self.head_dim

    def to_json(self) -> str:
        """The file ``adapter_config.json``."""
        return json.dumps({"format": _FORMAT, "version": _VERSION} | asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> AdapterConfig:
        """Inverse of ``to_json``.

        Raises:
            ValueError: not such a file, a later version of it, or keys missing or unknown.
        """
        values = json.loads(text)
        kind = values.pop("format", None) if isinstance(values, dict) else None
        if kind != _FORMAT:
            raise ValueError(f"{CONFIG_NAME}: got format {kind!r}, wanted {_FORMAT!r}")
        version = values.pop("version", None)
        if version != _VERSION:
            raise ValueError(
                f"{CONFIG_NAME}: got version {version!r}, wanted {_VERSION}; a later version needs "
                f"a later genhoi"
            )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{CONFIG_NAME}: got unknown keys {unknown}, wanted {sorted(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{CONFIG_NAME}: {error}") from error


def check_flow_gate(flow_gate: object) -> None:
    """Raises ValueError unless it is a reduction or None."""
    _check_choice("flow_gate", flow_gate, (*get_args(FlowGateReduction), None))


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(map(repr, choices))}")


def local_weight(weight: Tensor, x: Tensor) -> Tensor:
    """A weight that no module's forward brings along, on x's device.

    The same tensor, unless the model is offloaded piece by piece: the hooks that bring weights back
    run on the forward of the layer that owns them, and these are read without one.

    Raises:
        RuntimeError: the weight has no data (accelerate's sequential offload).
    """
    check_has_data(weight, x)
    return weight.to(x.device)


def check_has_data(weight: Tensor, x: Tensor) -> None:
    """Raises RuntimeError if x has data and the weight has none."""
    if weight.is_meta and not x.is_meta:
        raise RuntimeError(
            "transformer: its weights are on the meta device, as accelerate's sequential offload "
            "leaves them; wanted weights with data: use enable_group_offload or "
            "enable_model_cpu_offload"
        )


class LowRank(nn.Module):
    """x -> up(down(x)), added to a projection's output: no bias, no scale.

    Plain parameters, not two ``nn.Linear``: what other tools do to every Linear of a model
    (casting to 8 bits, PEFT's "all-linear") leaves these alone.

    Args:
        dim: width of input and output.
        rank: of the product. down ~ N(0, (1/rank)^2), up = 0, so that it starts as nothing.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, dim))
        self.up = nn.Parameter(torch.empty(dim, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise."""
        nn.init.normal_(self.down, std=1 / len(self.down))
        nn.init.zeros_(self.up)

    def forward(self, x: Tensor) -> Tensor:
        """x ``[..., dim]`` in any dtype; computed in the weights', returned in x's."""
        down, up = local_weight(self.down, x), local_weight(self.up, x)
        return F.linear(F.linear(x.to(down.dtype), down), up).to(x.dtype)


class AdapterLayer(nn.Module):
    """The weights that one block of the base gets."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.lora_q = LowRank(config.dim, config.rank)
        self.lora_k = LowRank(config.dim, config.rank)
        self.lora_v = LowRank(config.dim, config.rank)

        def gate() -> FlowGate:
            # How a gate reduces is an option of attach, not of the weights.
            return FlowGate(config.head_dim, init=config.gate_init)

        self.self_gate = gate()
        self.text_gate = gate()
        self.image_gate = gate() if config.image_attention else None


class GenHOIAdapter(nn.Module):
    """GenHOI's own weights: rank-128 LoRA on the reference stream's q, k, v, and the flow gates.

    Source: GenHOI, arXiv 2603.06048. 158,315,640 parameters on Wan 14B. state_dict:
    layers.N.lora_{q,k,v}.{down,up}, layers.N.{self,text,image}_gate.{norm,fc1,fc2}.{weight,bias}.

    The last block's reference tokens go nowhere once their keys and values are made, so its
    ``lora_q`` can never get a gradient: it does not require one, for DistributedDataParallel
    refuses parameters that are never reached.

    Args:
        config: which base it fits, rank, and how it was trained.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(AdapterLayer(config) for _ in range(config.num_layers))
        self.requires_grad_(True)

    @classmethod
    def for_transformer(cls, transformer: nn.Module, **options: Any) -> GenHOIAdapter:
        """A fresh adapter for a diffusers Wan transformer, float32, on the CPU.

        Args:
            transformer: a ``WanTransformer3DModel``; only its configuration is read.
            options: ``rank``, ``gate_init``, ``mask_gate``, ``flow_gate``, ``schedule`` of
                ``AdapterConfig``.

        Raises:
            TypeError, ValueError: an option unknown or out of range.
        """
        return cls(AdapterConfig(**base_sizes(transformer), **options))

    def requires_grad_(self, requires_grad: bool = True) -> GenHOIAdapter:
        """As for any module; the last block's ``lora_q`` stays without (see the class)."""
        super().requires_grad_(requires_grad)
        self.layers[-1].lora_q.requires_grad_(False)
        return self

    def check_fits(self, transformer: nn.Module) -> None:
        """Raises ValueError, naming what differs, unless the adapter fits this base."""
        for name, wanted in base_sizes(transformer).items():
            got = getattr(self.config, name)
            if got != wanted:
                raise ValueError(
                    f"adapter: got one for a base with {name} {got}, wanted {wanted} as in the "
                    f"transformer"
                )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``adapter.safetensors`` and ``adapter_config.json`` into a folder.

        Each file appears whole or not at all; the configuration comes last.

        Raises:
            OSError: the folder cannot be written.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: x.detach().contiguous() for name, x in self.state_dict().items()}
        _write_whole(
            folder / WEIGHTS_NAME, lambda path: save_file(weights, path, metadata={"format": "pt"})
        )
        _write_whole(
            folder / CONFIG_NAME,
            lambda path: path.write_text(self.config.to_json(), encoding="utf-8"),
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> GenHOIAdapter:
        """Load an adapter, on the CPU, in the dtypes it was saved in.

        Args:
            name_or_folder: a folder that ``save_pretrained`` wrote, else a repository of the
                Hugging Face Hub.
            revision, token, cache_dir, local_files_only: as for ``hf_hub_download``.

        Raises:
            OSError: no such folder, file or repository.
            ValueError: files of another format or version, or weights that do not fit the
                configuration.
        """
        from safetensors.torch import load_file

        def locate(name: str) -> Path:
            if Path(name_or_folder).is_dir():
                return Path(name_or_folder, name)
            from huggingface_hub import hf_hub_download

            return Path(
                hf_hub_download(
                    str(name_or_folder), name, revision=revision, token=token,
                    cache_dir=cache_dir, local_files_only=local_files_only,
                )
            )  # fmt: skip

        config = AdapterConfig.from_json(locate(CONFIG_NAME).read_text(encoding="utf-8"))
        return cls.from_state_dict(config, load_file(locate(WEIGHTS_NAME)))

    @classmethod
    def from_state_dict(cls, config: AdapterConfig, weights: dict[str, Tensor]) -> GenHOIAdapter:
        """An adapter around given tensors, without copying them.

        Raises:
            ValueError: weights missing, unknown, or of another shape.
        """
        with torch.device("meta"):
            adapter = cls(config)
        assign(adapter, weights, "adapter")
        return adapter

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload GenHOI adapter",
    ) -> str:
        """Save to a repository of the Hugging Face Hub, made if it isn't there.

        Args:
            repo_id: "owner/name".
            token, private, revision: as for ``HfApi.create_repo`` and ``HfApi.upload_folder``.
            commit_message: of the one commit.

        Returns:
            The commit's address.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
            )
        return str(commit.commit_url)


def base_sizes(transformer: nn.Module) -> dict[str, Any]:
    """The part of an ``AdapterConfig`` that the base dictates."""
    config: Any = transformer.config
    return {
        "num_heads": config.num_attention_heads,
        "head_dim": config.attention_head_dim,
        "num_layers": config.num_layers,
        "image_attention": config.added_kv_proj_dim is not None,
    }


def assign(module: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Make given tensors a module's parameters, without a copy.

    Raises:
        ValueError: weights missing, unknown, or of another shape; the message lists some.
    """
    wanted = module.state_dict()
    problems = [f"{key}: missing" for key in wanted if key not in weights]
    problems += [f"{key}: unknown" for key in weights if key not in wanted]
    problems += [
        f"{key}: got shape {tuple(x.shape)}, wanted {tuple(wanted[key].shape)}"
        for key, x in weights.items()
        if key in wanted and x.shape != wanted[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{name}: weights do not fit: {'; '.join(problems[:5])}{more}")
    module.load_state_dict(weights, strict=True, assign=True)


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside ``path`` and put it in its place in one step."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        part.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner only
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
