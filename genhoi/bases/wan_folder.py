"""What the bases in diffusers' format share: a folder of any Wan pipeline with one transformer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from genhoi.bases.base import TEXT_TOKENS, Base, Offload
from genhoi.bases.needs import BaseNeeds
from genhoi.bases.wan_codec import decode_latents, encode_frames
from genhoi.bases.wan_files import (
    INDEX,
    PIPELINES,
    SUGGESTED,
    find_base,
    locate_base,
    missing_files,
    pipeline_name,
    read_json,
)
from genhoi.bases.wan_needs import wan_needs
from genhoi.extras import need
from genhoi.models.adapter_config import CONFIG_NAME

__all__ = ["WanFolderBase"]


class WanFolderBase(Base):
    """The components of a diffusers Wan pipeline.

    A subclass says which pipeline: it sets the attributes below, and may want more components
    (`wanted_weights`, `wanted_configs`). `genhoi.bases.wan_files.PIPELINES` lists it too.

    Args:
        folder: of the pipeline, with a model_index.json.
        device: where to compute.
        dtype: of transformer and text encoder; VAE and image encoder stay in float32.
        transformer: to be used instead of the folder's own, which is not loaded then.

    Attributes:
        pipeline_class: of diffusers; its name is what model_index.json says.
        channels: that the transformer takes and gives.
        suggested: a pipeline of this kind, with its size, for people who have none.

    Raises:
        FileNotFoundError: components are missing.
        ValueError: a pipeline of another kind.
    """

    trained = True
    pipeline_class: ClassVar[Any]
    channels: ClassVar[tuple[int, int]]
    suggested: ClassVar[str] = SUGGESTED

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        transformer: Any = None,
    ) -> None:
        self.check_complete(folder, own_transformer=transformer is None)  # raises
        self.device = torch.device(device)
        self.about = f"{folder}"
        self.pipe = self.pipeline_class.from_pretrained(
            folder,
            local_files_only=True,
            dtype={"transformer": dtype, "text_encoder": dtype, "default": torch.float32},
            **({} if transformer is None else {"transformer": transformer}),
        )
        self.transformer = self.pipe.transformer.eval()

    # ------------------------------------------------------- by name, before weights are loaded

    @classmethod
    def takes(cls, name: str | os.PathLike[str]) -> bool:
        """Take folders, and names on the Hub, whose model_index.json names this pipeline."""
        return pipeline_name(name) == cls.pipeline_class.__name__

    @classmethod
    def read_config(cls, name: str | os.PathLike[str]) -> dict[str, Any]:
        """Read model_index.json and the transformer's configuration; no weights are wanted."""
        folder = locate_base(name)
        index = read_json(folder / INDEX)
        if index.get("_class_name") != cls.pipeline_class.__name__:
            raise ValueError(
                f"base: {folder} holds a {index.get('_class_name')}, wanted a "
                f"{' or a '.join(PIPELINES)}"
            )
        if (index.get("transformer_2") or [None])[0] is not None or index.get("expand_timesteps"):
            raise ValueError(
                f"base: {folder} holds a Wan 2.2 pipeline, wanted Wan 2.1 {cls._task()}: one "
                f"transformer, all tokens at one timestep"
            )
        config = read_json(folder / "transformer" / "config.json")
        channels = (config.get("in_channels"), config.get("out_channels"))
        if channels != cls.channels:
            raise ValueError(
                f"base: {folder} has a transformer from {channels[0]} to {channels[1]} channels, "
                f"wanted {cls.channels[0]} to {cls.channels[1]} as for {cls._task()}"
            )
        return config

    @classmethod
    def check_complete(cls, name: str | os.PathLike[str], *, own_transformer: bool = True) -> None:
        """Check that weights of every component are there, and what else it needs."""
        config = cls.read_config(name)
        folder = locate_base(name)
        weights = cls.wanted_weights(config)
        if not own_transformer:
            weights.remove("transformer")
        missing = missing_files(folder, weights=weights, configs=cls.wanted_configs(config))
        if missing:
            raise FileNotFoundError(
                f"base: {folder} lacks {', '.join(missing)}; fetch the whole pipeline "
                f"({cls.suggested})"
            )

    @classmethod
    def wanted_weights(cls, config: Mapping[str, Any]) -> list[str]:
        """List the components whose weights have to be there, for a transformer's `config`."""
        return ["transformer", "vae", "text_encoder"]

    @classmethod
    def wanted_configs(cls, config: Mapping[str, Any]) -> list[str]:
        """List the files beside them that have to be there, for a transformer's `config`."""
        return ["tokenizer/tokenizer_config.json"]

    @classmethod
    def needs(
        cls,
        name: str | os.PathLike[str],
        *,
        dtype: torch.dtype,
        frames: int,
        size: tuple[int, int],
    ) -> BaseNeeds:
        """Build VAE and encoders without weights, and let them work."""
        return wan_needs(
            locate_base(name),
            cls.read_config(name),
            dtype=dtype,
            frames=frames,
            size=size,
            text_tokens=TEXT_TOKENS,
            offload_order=tuple(cls.pipeline_class.model_cpu_offload_seq.split("->")),
        )

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        seed: int,
        transformer: Any = None,
    ) -> Self:
        """Load the pipeline; no weight is random, so the seed has no say."""
        return cls(locate_base(name), device=device, dtype=dtype, transformer=transformer)

    @classmethod
    def shipped_adapter(cls, name: str | os.PathLike[str]) -> Path | None:
        """Name the folder adapter/, which `genhoi convert --pipeline` writes beside the rest."""
        folder = find_base(name)
        if folder is None or not (folder / "adapter" / CONFIG_NAME).is_file():
            return None
        return folder / "adapter"

    @classmethod
    def _task(cls) -> str:
        return PIPELINES[cls.pipeline_class.__name__]

    # ---------------------------------------------------------------------------------- loaded

    def load_video_lora(self, folder: str | os.PathLike[str]) -> None:
        """Load them into the pipeline through peft."""
        need("peft", "video_lora")
        if not any(Path(folder).glob("*.safetensors")):
            raise FileNotFoundError(
                f"video_lora: there is no .safetensors file in {os.fspath(folder)}; wanted the "
                f"folder video_lora of a training run"
            )
        self.pipe.load_lora_weights(folder)

    def place(self, offload: Offload) -> None:
        """Move the components to the device, or let them come as they are needed.

        Call it after the adapter is attached, which some ways of offloading want.
        """
        if offload == "none":
            self.pipe.to(self.device)
        elif offload == "model":
            self.pipe.enable_model_cpu_offload(device=self.device)
        else:
            for name in ("vae", "image_encoder"):
                if getattr(self.pipe, name, None) is not None:
                    getattr(self.pipe, name).to(self.device)
            # The text encoder runs once; blocks of the transformer come and go.
            self.pipe.text_encoder.to(self.device)
            self.transformer.enable_group_offload(
                onload_device=self.device,
                offload_device=torch.device("cpu"),
                offload_type="block_level",
                num_blocks_per_group=1,
            )

    def encoders_to(self, device: torch.device | str) -> None:
        """Move the VAE and the encoders of text and images."""
        for name in ("vae", "text_encoder", "image_encoder"):
            if getattr(self.pipe, name, None) is not None:
                getattr(self.pipe, name).to(device)

    def encode(self, frames: Tensor) -> Tensor:
        """Run the VAE."""
        return encode_frames(self.pipe.vae, frames.to(self.device))

    def decode(self, latents: Tensor) -> Tensor:
        """Run the VAE."""
        return decode_latents(self.pipe.vae, latents.to(self.device))

    def encode_text(self, text: str) -> Tensor:
        """Run the text encoder on the text, padded as in training."""
        # Not `pipe.encode_prompt`: it needs the package ftfy, and cuts long texts.
        tokenized = self.pipe.tokenizer(" ".join(text.split()), return_tensors="pt")
        tokens = tokenized.input_ids.shape[1]
        if tokens > TEXT_TOKENS:
            raise ValueError(f"prompt: got {tokens} tokens, wanted at most {TEXT_TOKENS}")
        encoder = self.pipe.text_encoder
        # Padded as in training: the encoder's positions are relative, and padding is masked.
        padding = (0, TEXT_TOKENS - tokens)
        ids = F.pad(tokenized.input_ids, padding, value=encoder.config.pad_token_id)
        seen = F.pad(tokenized.attention_mask, padding)
        states = encoder(ids.to(self.device), seen.to(self.device)).last_hidden_state
        states = states.to(self.device, self.transformer.dtype)
        return F.pad(states[:, :tokens], (0, 0, 0, TEXT_TOKENS - tokens))
