"""What the bases in diffusers' format share: a folder of any Wan pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from genhoi.bases.about import BaseSettings, read_settings
from genhoi.bases.base import TEXT_TOKENS, Base, Offload
from genhoi.bases.lora import Lora
from genhoi.bases.needs import BaseNeeds
from genhoi.bases.replaced import check_same_sizes
from genhoi.bases.wan_codec import decode_latents, encode_frames
from genhoi.bases.wan_files import (
    INDEX,
    PIPELINES,
    SUGGESTED,
    adapters_in,
    find_base,
    find_index,
    has_component,
    locate_base,
    missing_files,
    read_json,
    variant_of,
)
from genhoi.bases.wan_needs import wan_needs
from genhoi.conditioning.grid import Strides
from genhoi.extras import need
from genhoi.models.experts import Expert
from genhoi.models.wan.family import latent_channels, wan_strides

__all__ = ["WanFolderBase"]

_VIDEO_LORA = "video"  # its name among peft's adapters
_IN_DTYPE = ("transformer", "transformer_2", "text_encoder")
_OF_TEXTS = ("text_encoder", "tokenizer")


class WanFolderBase(Base):
    """The components of a diffusers Wan pipeline.

    A subclass says which pipeline: it sets the attributes below, and may want more components
    (`wanted_weights`, `wanted_configs`). `genhoi.bases.wan_files.PIPELINES` lists it too. With
    `two_experts` (`genhoi.bases.wan_experts`) it has a second transformer for low noise levels.

    Args:
        folder: of the pipeline, with a model_index.json.
        device: where to compute.
        dtype: of transformer and text encoder; VAE and image encoder stay in float32.
        transformer: to be used instead of the folder's own, which is not loaded then.
        expert: which of two transformers to load; None: both.

    Attributes:
        pipeline_class: of diffusers; its name is what model_index.json says.
        channels: that the transformer takes and gives.
        task: what people call it.
        timestep_by_token: whether given tokens have a timestep of their own (Wan 2.2 TI2V).
        suggested: a pipeline of this kind, with its size, for people who have none.

    Raises:
        FileNotFoundError: components are missing.
        ValueError: a pipeline of another kind.
    """

    takes_lora = True
    pipeline_class: ClassVar[Any]
    channels: ClassVar[tuple[int, int]]
    task: ClassVar[str]
    timestep_by_token: ClassVar[bool] = False
    suggested: ClassVar[str] = SUGGESTED

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        transformer: Any = None,
        expert: Expert | None = None,
    ) -> None:
        self.check_complete(folder, own_transformer=transformer is None)  # raises
        self.device, self.settings = torch.device(device), self.read_settings(folder)
        self.trained = self.settings.trained or transformer is not None
        self.boundary, self.expert = self.read_boundary(folder), expert
        left_out = {"high": "transformer_2", "low": "transformer"}
        given = {} if transformer is None else {"transformer": transformer}
        if not self.settings.takes_text:
            given |= dict.fromkeys(_OF_TEXTS)
        variant = variant_of(folder, self._weights(folder, own_transformer=transformer is None))
        self.about = f"{folder}" + ("" if variant is None else f", weights of variant {variant}")
        if self.settings.about:
            self.about += f": {self.settings.about}"
        self.pipe = self.pipeline_class.from_pretrained(
            folder,
            local_files_only=True,
            dtype=dict.fromkeys(_IN_DTYPE, dtype) | {"default": torch.float32},
            variant=variant,
            **(given if expert is None else {left_out[expert]: None}),
        )
        loaded = (self.pipe.transformer, getattr(self.pipe, "transformer_2", None))
        self.transformer, *others = (x.eval() for x in loaded if x is not None)
        self.transformer_2 = others[0] if others else None

    # ------------------------------------------------------- by name, before weights are loaded

    @classmethod
    def takes(cls, name: str | os.PathLike[str]) -> bool:
        """Take folders, and names on the Hub, whose model_index.json describes this pipeline."""
        index = find_index(name)
        return index is not None and cls.describes(index)

    @classmethod
    def describes(cls, index: Mapping[str, Any]) -> bool:
        """Tell whether a model_index.json is one of this pipeline."""
        return (
            index.get("_class_name") in cls.class_names()
            and has_component(index, "transformer_2") == cls.two_experts
            and bool(index.get("expand_timesteps")) == cls.timestep_by_token
        )

    @classmethod
    def class_names(cls) -> tuple[str, ...]:
        """Name the pipelines of diffusers whose folders it takes."""
        return (cls.pipeline_class.__name__,)

    @classmethod
    def read_config(cls, name: str | os.PathLike[str]) -> dict[str, Any]:
        """Read model_index.json and the transformers' configuration; no weights are wanted."""
        folder = locate_base(name)
        index = read_json(folder / INDEX)
        if not cls.describes(index):
            raise ValueError(
                f"base: {folder} holds a {index.get('_class_name')}"
                f"{_form_of(index)}, wanted a {' or a '.join(PIPELINES)} as Wan2.1 or 2.2 has them"
            )
        config = read_json(folder / "transformer" / "config.json")
        channels = (config.get("in_channels", 16), latent_channels(config))
        if channels != cls.channels:
            raise ValueError(
                f"base: {folder} has a transformer from {channels[0]} to {channels[1]} channels, "
                f"wanted {cls.channels[0]} to {cls.channels[1]} as for {cls.task}"
            )
        _check_vae(folder, config)
        if cls.two_experts:
            cls.read_boundary(name)  # raises
            other = read_json(folder / "transformer_2" / "config.json")
            if other != config:  # most are equal, and comparing sizes makes both transformers
                check_same_sizes(other, config, what=f"the one in {folder / 'transformer_2'}")
        return config

    @classmethod
    def read_settings(cls, name: str | os.PathLike[str]) -> BaseSettings:
        """Read the folder's own; of a pipeline that is not here, the kind's."""
        folder = find_base(name)
        return cls.settings if folder is None else read_settings(folder, cls.settings)

    @classmethod
    def strides(cls, name: str | os.PathLike[str]) -> Strides:
        """Read them from the transformer's configuration."""
        return wan_strides(cls.read_config(name))

    @classmethod
    def read_boundary(cls, name: str | os.PathLike[str]) -> float | None:
        """Read it from model_index.json."""
        if not cls.two_experts:
            return None
        boundary = read_json(locate_base(name) / INDEX).get("boundary_ratio")
        if not isinstance(boundary, (int, float)) or not 0 < boundary < 1:
            raise ValueError(
                f"base: {name} has boundary_ratio {boundary!r} in {INDEX}, wanted a number between "
                f"0 and 1: the noise level at which its second transformer takes over"
            )
        return float(boundary)

    @classmethod
    def check_complete(cls, name: str | os.PathLike[str], *, own_transformer: bool = True) -> None:
        """Check that weights of every component are there, and what else it needs."""
        config = cls.read_config(name)
        folder = locate_base(name)
        weights = cls._weights(folder, own_transformer=own_transformer)
        takes_text = cls.read_settings(folder).takes_text
        configs = cls.wanted_configs(config, takes_text=takes_text)
        missing = missing_files(folder, weights=weights, configs=configs)
        if missing:
            raise FileNotFoundError(
                f"base: {folder} lacks {', '.join(missing)}; fetch the whole pipeline "
                f"({cls.suggested})"
            )
        variant_of(folder, weights)  # raises

    @classmethod
    def _weights(cls, folder: Path, *, own_transformer: bool) -> list[str]:
        """List the components whose weights are loaded."""
        config = read_json(folder / "transformer" / "config.json")
        names = cls.wanted_weights(config, takes_text=cls.read_settings(folder).takes_text)
        if cls.two_experts:
            names = [*names, "transformer_2"]
        return [name for name in names if own_transformer or name != "transformer"]

    @classmethod
    def wanted_weights(cls, config: Mapping[str, Any], *, takes_text: bool) -> list[str]:
        """List the components whose weights have to be there, for a transformer's `config`."""
        return ["transformer", "vae"] + ["text_encoder"] * takes_text

    @classmethod
    def wanted_configs(cls, config: Mapping[str, Any], *, takes_text: bool) -> list[str]:
        """List the files beside them that have to be there, for a transformer's `config`."""
        return ["tokenizer/tokenizer_config.json"] * takes_text

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
            text_tokens=TEXT_TOKENS if cls.read_settings(name).takes_text else 0,
            offload_order=tuple(cls.pipeline_class.model_cpu_offload_seq.split("->")),
            two_experts=cls.two_experts,
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
    def load_expert(
        cls,
        name: str | os.PathLike[str],
        expert: Expert,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> Base:
        """Load the pipeline without the other transformer."""
        if not cls.two_experts:
            return super().load_expert(name, expert, device=device, dtype=dtype)
        return cls(locate_base(name), device=device, dtype=dtype, expert=expert)

    @classmethod
    def shipped_adapters(cls, name: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Name adapter/, as `genhoi convert --pipeline` writes it, and adapter_2/ beside it."""
        folder = find_base(name)
        return () if folder is None else adapters_in(folder, two_experts=cls.two_experts)

    # ---------------------------------------------------------------------------------- loaded

    def load_video_lora(self, folder: str | os.PathLike[str]) -> None:
        """Load them into the pipeline through peft."""
        if self.two_experts:
            raise ValueError(
                "video_lora: got one for a base of two transformers, wanted none: such weights are "
                "trained on one"
            )
        need("peft", "video_lora")
        if not any(Path(folder).glob("*.safetensors")):
            raise FileNotFoundError(
                f"video_lora: there is no .safetensors file in {os.fspath(folder)}; wanted the "
                f"folder video_lora of a training run"
            )
        self.pipe.load_lora_weights(folder, adapter_name=_VIDEO_LORA)

    def load_loras(self, loras: Sequence[Lora]) -> None:
        """Load them through diffusers and peft, which knows several ways to name their weights."""
        super().load_loras(loras)  # raises
        for transformer, expert in zip(self.transformers, get_args(Expert), strict=False):
            second = transformer is self.transformer_2
            factors = dict.fromkeys(getattr(transformer, "peft_config", {}), 1.0)
            for i, lora in enumerate(loras):
                if not lora.is_for(expert):
                    continue
                name = f"lora_{i}"
                self._load_lora(lora.path, name, transformer, second=second)
                factors[name] = lora.weight
            if factors:
                transformer.set_adapters(list(factors), list(factors.values()))
        if loras:
            self.about += f", with LoRA {', '.join(map(str, loras))}"

    def _load_lora(self, path: Path, name: str, transformer: Any, *, second: bool) -> None:
        try:
            self.pipe.load_lora_weights(
                path.parent,
                weight_name=path.name,
                adapter_name=name,
                local_files_only=True,
                load_into_transformer_2=second,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"lora: {path} does not fit this base: {error}") from error
        if name not in getattr(transformer, "peft_config", {}):
            raise ValueError(f"lora: {path} holds no weights for this base's transformer")

    def place(self, offload: Offload) -> None:
        """Move the components to the device, or let them come as they are needed.

        Call it after the adapter is attached, which some ways of offloading want.
        """
        if offload == "none":
            self.pipe.to(self.device)
        elif offload == "model":
            self.pipe.enable_model_cpu_offload(device=self.device)
        else:
            # The text encoder runs once; blocks of the transformers come and go.
            self.encoders_to(self.device)
            for transformer in self.transformers:
                transformer.enable_group_offload(
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
        """Run the text encoder on the text, padded as in training; zeros where there is none."""
        if not self.settings.takes_text:
            return self.encode_no_text(text)
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


def _form_of(index: Mapping[str, Any]) -> str:
    """Say what is particular about a pipeline, by its model_index.json."""
    forms = {
        " with two transformers": has_component(index, "transformer_2"),
        " with timesteps by token": bool(index.get("expand_timesteps")),
    }
    return "".join(text for text, there in forms.items() if there)


def _check_vae(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError where the VAE is not the one that the transformer's latents are of."""
    if not (folder / "vae" / "config.json").is_file():
        return
    vae = read_json(folder / "vae" / "config.json")
    came = (vae.get("z_dim", 16), vae.get("scale_factor_spatial", 8))
    wanted = (latent_channels(config), wan_strides(config).space)
    if came != wanted:
        raise ValueError(
            f"base: {folder} has a VAE of {came[0]} channels at {came[1]} pixels, wanted "
            f"{wanted[0]} at {wanted[1]} as the transformer"
        )
