"""What GenHOI adds to a pretrained model: low-rank weights for references, and flow gates.

The adapter holds weights and says how they were trained; ``genhoi.attach`` puts it to work.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genhoi.extras import needed_for
from genhoi.models.adapter_config import CONFIG_NAME, AdapterConfig
from genhoi.models.adapter_layers import make_layer
from genhoi.models.registry import model_of
from genhoi_kernels.files import whole_file

__all__ = ["WEIGHTS_NAME", "GenHOIAdapter"]

WEIGHTS_NAME = "adapter.safetensors"


class GenHOIAdapter(nn.Module):
    """GenHOI's own weights: low-rank ones, and the flow gates.

    Source: GenHOI, arXiv 2603.06048. On Wan image-to-video, where references are a stream of their
    own: LoRA of rank 128 on the stream's q, k, v, and a gate after every attention: 158,315,640
    parameters on Wan 14B. state_dict: layers.N.lora_{q,k,v}.{down,up},
    layers.N.{self,text,image}_gate.{norm,fc1,fc2}.{weight,bias}.

    On Wan VACE, where references are frames of the sequence: two gates a VACE block, 137,232
    parameters on 14B, and LoRA on any of its layers, for all rows. state_dict:
    layers.N.lora.{self_q, ..., ffn_out}.{down,up} (``LORA_TARGETS``), layers.N.{self,text}_gate....

    In a stream the last block's reference tokens go nowhere once their keys and values are made, so
    its ``lora_q`` can never get a gradient: it does not require one, for DistributedDataParallel
    refuses parameters that are never reached.

    Args:
        config: which base it fits, rank, and how it was trained.

    Example:
        >>> import genhoi
        >>> config = genhoi.AdapterConfig(
        ...     num_heads=4, head_dim=16, num_layers=2, image_attention=False, rank=8
        ... )
        >>> adapter = genhoi.GenHOIAdapter(config)
        >>> adapter.save_pretrained("my-adapter")
        >>> genhoi.GenHOIAdapter.from_pretrained("my-adapter").config == config
        True
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(make_layer(config) for _ in range(config.num_layers))
        self.requires_grad_(True)

    @classmethod
    def for_transformer(cls, transformer: nn.Module, **options: Any) -> GenHOIAdapter:
        """Make a fresh adapter for a diffusers Wan transformer, float32, on the CPU.

        Args:
            transformer: a ``WanTransformer3DModel``, ``WanVACETransformer3DModel`` or
                ``WanAnimateTransformer3DModel``; only its configuration is read.
            options: ``rank``, ``gate_init``, ``mask_gate``, ``flow_gate``, ``schedule``, for VACE
                ``lora_targets``, of ``AdapterConfig``.

        Raises:
            TypeError, ValueError: an option unknown or out of range.
        """
        model = model_of(transformer)
        return cls(AdapterConfig(**model.adapter_sizes, **(model.adapter_defaults | options)))

    def requires_grad_(self, requires_grad: bool = True) -> GenHOIAdapter:
        """Set it for all weights but a stream's last ``lora_q``, which stays without."""
        super().requires_grad_(requires_grad)
        if self.config.references == "stream":
            self.layers[-1].get_submodule("lora_q").requires_grad_(False)
        return self

    @property
    def is_fresh(self) -> bool:
        """Tell whether no weight has been trained, so that references add nothing of their own."""
        ups = (up for name, up in self.named_parameters() if name.endswith((".up", "fc2.weight")))
        return not any(bool(up.any()) for up in ups)

    def check_fits(self, transformer: nn.Module) -> None:
        """Raise ValueError, naming what differs, unless the adapter fits this base."""
        for name, wanted in model_of(transformer).adapter_sizes.items():
            got = getattr(self.config, name)
            if got != wanted:
                raise ValueError(
                    f"adapter: got one for a base with {name} {got}, wanted {wanted} as in the "
                    f"transformer"
                )

    def copy_to(self, device: torch.device, dtype: torch.dtype) -> GenHOIAdapter:
        """Make a copy with weights of its own, on a device and in a dtype."""
        weights = {name: x.to(device, dtype, copy=True) for name, x in self.state_dict().items()}
        return GenHOIAdapter.from_state_dict(self.config, weights)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``adapter.safetensors`` and ``adapter_config.json`` into a folder.

        Each file appears whole or not at all; the configuration comes last.

        Raises:
            OSError: the folder cannot be written.
        """
        with needed_for("saving an adapter"):
            from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: x.detach().contiguous() for name, x in self.state_dict().items()}
        with whole_file(folder / WEIGHTS_NAME) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
        with whole_file(folder / CONFIG_NAME) as temporary:
            temporary.write_text(self.config.to_json(), encoding="utf-8")

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
        with needed_for("loading an adapter"):
            from safetensors.torch import load_file

        def locate(name: str) -> Path:
            if Path(name_or_folder).is_dir():
                return Path(name_or_folder, name)
            with needed_for("an adapter of the Hugging Face Hub"):
                from huggingface_hub import hf_hub_download

            path = hf_hub_download(
                str(name_or_folder),
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
            return Path(path)

        config = AdapterConfig.from_json(locate(CONFIG_NAME).read_text(encoding="utf-8"))
        return cls.from_state_dict(config, load_file(locate(WEIGHTS_NAME)))

    @classmethod
    def from_state_dict(cls, config: AdapterConfig, weights: dict[str, Tensor]) -> GenHOIAdapter:
        """Make an adapter around given tensors, without copying them.

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
        with needed_for("pushing to the Hugging Face Hub"):
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
