"""Bases in diffusers' format: any folder of a Wan image-to-video pipeline with one transformer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from genhoi.bases.base import TEXT_TOKENS, Base, Offload
from genhoi.extras import need, needed_for

__all__ = ["WanBase", "locate_base", "read_config"]

_WEIGHTS = ("*.safetensors", "*.bin")
_SUGGESTED = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
_SUGGESTED_SIZE = (
    f"for example {_SUGGESTED}: 16.4 billion parameters in the transformer, 5.7 in the text "
    "encoder, 0.8 in the rest, so about 46 GB in bfloat16 and 91 GB in float32"
)


class WanBase(Base):
    """The components of a diffusers `WanImageToVideoPipeline`.

    Args:
        folder: of the pipeline, with a model_index.json.
        device: where to compute.
        dtype: of transformer and text encoder; VAE and image encoder stay in float32.

    Raises:
        FileNotFoundError: components are missing.
        ValueError: a pipeline of another kind.
    """

    trained = True

    def __init__(self, folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> None:
        read_config(folder)  # raises
        self.device = torch.device(device)
        self.about = f"{folder}"
        self.pipe = WanImageToVideoPipeline.from_pretrained(
            folder,
            local_files_only=True,
            dtype={"transformer": dtype, "text_encoder": dtype, "default": torch.float32},
        )
        self.transformer = self.pipe.transformer.eval()

    @classmethod
    def takes(cls, name: str | os.PathLike[str]) -> bool:
        """Take every name: what is missing, and what to fetch, is said when it is read."""
        return True

    @classmethod
    def read_config(cls, name: str | os.PathLike[str]) -> dict[str, Any]:
        """Check that the whole pipeline is there, and read its configuration."""
        return read_config(locate_base(name))

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        seed: int,
    ) -> WanBase:
        """Load the pipeline; no weight is random, so the seed has no say."""
        return cls(locate_base(name), device=device, dtype=dtype)

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
                if getattr(self.pipe, name) is not None:
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
        """Take the mode of the VAE's distribution, normalised by its statistics."""
        vae = self.pipe.vae
        pixels = frames.to(self.device).permute(3, 0, 1, 2)[None].to(vae.dtype) / 127.5 - 1
        latents = vae.encode(pixels).latent_dist.mode().float()
        mean, std = self._statistics()
        return (latents - mean) / std

    def decode(self, latents: Tensor) -> Tensor:
        """Undo the normalisation and run the VAE."""
        vae = self.pipe.vae
        mean, std = self._statistics()
        pixels = vae.decode((latents.float() * std + mean).to(vae.dtype), return_dict=False)[0]
        pixels = (pixels[0].float().clamp(-1, 1) + 1) * 127.5
        return pixels.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()

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

    def encode_image(self, first: Tensor, last: Tensor) -> Tensor | None:
        """Run the image encoder on the first image, and the last where the model takes both."""
        config = self.transformer.config
        if config.image_dim is None:
            return None
        images = [first] if config.pos_embed_seq_len is None else [first, last]
        pictures = [Image.fromarray(image.cpu().numpy()) for image in images]
        embeds = self.pipe.encode_image(pictures, self.device).to(self.transformer.dtype)
        assert isinstance(embeds, Tensor)
        return embeds

    def _statistics(self) -> tuple[Tensor, Tensor]:
        config = self.pipe.vae.config
        mean, std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, std


def locate_base(base: str | os.PathLike[str]) -> Path:
    """Find a pipeline's folder: the path itself, or one downloaded from the Hugging Face Hub.

    Nothing is downloaded: it may be 90 GB.

    Raises:
        FileNotFoundError: there is none; the message says what to fetch and how large it is.
    """
    path = Path(base)
    if path.is_dir():
        return path
    name = str(base)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or path.exists():
        raise FileNotFoundError(
            f"base: there is no folder {name}; wanted one of a diffusers Wan image-to-video "
            f"pipeline ({_SUGGESTED_SIZE}), or the name of one on the Hugging Face Hub"
        )
    with needed_for("a base of the Hugging Face Hub"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"base: there is no folder {name}, and nothing of that name has been downloaded. Fetch "
            f"it with `hf download {name}`: {_hub_size(name)}"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Check that a folder holds a whole pipeline of the right kind; nothing is loaded.

    Returns:
        The transformer's configuration.

    Raises:
        FileNotFoundError: files are missing; the message lists them.
        ValueError: a pipeline of another kind.
    """
    index = _json(folder / "model_index.json")
    if index.get("_class_name") != "WanImageToVideoPipeline":
        raise ValueError(
            f"base: {folder} holds a {index.get('_class_name')}, wanted a WanImageToVideoPipeline"
        )
    if (index.get("transformer_2") or [None])[0] is not None or index.get("expand_timesteps"):
        raise ValueError(
            f"base: {folder} holds a Wan 2.2 pipeline, wanted Wan 2.1 image-to-video: one "
            f"transformer, all tokens at one timestep"
        )
    config = _json(folder / "transformer" / "config.json")
    wanted = ["transformer", "vae", "text_encoder"]
    if config.get("image_dim") is not None:
        wanted.append("image_encoder")
        wanted_configs = [folder / "image_processor" / "preprocessor_config.json"]
    else:
        wanted_configs = []
    wanted_configs.append(folder / "tokenizer" / "tokenizer_config.json")
    missing = [f"{name}/ (weights)" for name in wanted if not _has_weights(folder / name)]
    missing += [str(path.relative_to(folder)) for path in wanted_configs if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"base: {folder} lacks {', '.join(missing)}; fetch the whole pipeline "
            f"({_SUGGESTED_SIZE})"
        )
    channels = (config.get("in_channels"), config.get("out_channels"))
    if channels != (36, 16):
        raise ValueError(
            f"base: {folder} has a transformer from {channels[0]} to {channels[1]} channels, "
            f"wanted 36 to 16 as for image-to-video"
        )
    return config


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"base: there is no {path}; wanted the folder of a diffusers Wan image-to-video "
            f"pipeline ({_SUGGESTED_SIZE})"
        )
    values = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)


def _hub_size(name: str) -> str:
    """Say how large a repository is, or what is known of it without a connection."""
    try:
        from huggingface_hub import HfApi

        info = HfApi().model_info(name, files_metadata=True, timeout=5)
        size = sum(file.size or 0 for file in info.siblings or [])
        return f"{size / 1e9:.0f} GB"
    except Exception:
        # No connection, no such repository, no permission: `hf download` will tell.
        return f"its size could not be looked up ({_SUGGESTED_SIZE})"
