"""Metrics that need somebody's trained weights, from local files only: nothing is downloaded.

LPIPS compares frames, CLIP the object with its picture, and the Fréchet video distance (FVD) a set
of results with the set of their ground truths. Without weights a metric is not measured, and
`REASONS` says what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genhoi.extras import needed_for
from genhoi.media import fit_image
from genhoi.media.image import BACKGROUND

__all__ = [
    "REASONS",
    "Clip2Vector",
    "Lpips",
    "Models",
    "Video2Vector",
    "load_models",
    "on_grey",
]

REASONS = {
    "lpips": "not measured: needs LPIPS weights (--lpips-weights) and the package lpips",
    "clip": "not measured: needs a CLIP model (--clip-model) and the objects' pictures",
    "fvd": "not measured: needs an I3D feature extractor (--fvd-weights) and at least 2 cases",
}

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_I3D_SIDE = 224
_BATCH = 16


class Lpips:
    """Learned perceptual distance (Zhang et al. 2018) of every pixel, through the package lpips.

    Args:
        weights: the state dict of a complete `lpips.LPIPS`, backbone and linear layers, as
            `torch.save(lpips.LPIPS(net="alex").state_dict(), FILE)` writes it. Which of its three
            networks it is, the weights tell.
        device: where to compute.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the package lpips is not installed.
        ValueError: other weights.
    """

    def __init__(self, weights: Path, *, device: str | torch.device = "cpu") -> None:
        _existing_file(weights, "LPIPS weights")
        try:
            import lpips
        except ImportError as error:
            raise ImportError(
                f"LPIPS needs the package lpips: pip install lpips ({error})"
            ) from error
        state = _state_dict(weights)
        self.net = _lpips_net(state)
        self.device = torch.device(device)
        # pnet_rand and pretrained=False: otherwise torchvision downloads a backbone.
        self.model = lpips.LPIPS(
            pretrained=False, net=self.net, pnet_rand=True, spatial=True, verbose=False
        )
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(_not_lpips(weights)) from error
        self.model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, result: Tensor, truth: Tensor) -> Tensor:
        """Measure the distance around every pixel, float32 [F, H, W], of uint8 [F, H, W, 3].

        Its mean over a frame is the usual LPIPS but for the interpolation of the layers' maps to
        the frame's size.

        Raises:
            ValueError: the frames are too small for the network.
        """
        a, b = (_planes(frames, self.device) for frames in (result, truth))
        try:
            distance: Tensor = self.model(a, b)
        except RuntimeError as error:
            height, width = a.shape[2:]
            raise ValueError(
                f"LPIPS: its network ({self.net}) does not take frames of {width}x{height}: {error}"
            ) from error
        return distance[:, 0].cpu()


class Clip2Vector:
    """Image embeddings of a CLIP model in transformers' format, of length 1.

    Args:
        folder: with config.json and weights, as `CLIPModel.save_pretrained` writes them.
        device: where to compute.

    Raises:
        ImportError: transformers is not installed.
        NotADirectoryError: there is no such folder.
        ValueError: it holds no CLIP model.
    """

    def __init__(self, folder: Path, *, device: str | torch.device = "cpu") -> None:
        if not folder.is_dir():
            raise NotADirectoryError(f"CLIP model: there is no folder {folder}")
        with needed_for("CLIP"):
            import transformers
        kind: Any = transformers.CLIPModel
        try:
            self.model = kind.from_pretrained(folder, local_files_only=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"CLIP model: {folder} holds none that loads: {error}") from error
        self.device = torch.device(device)
        self.model.to(self.device).eval()
        self.side = int(self.model.config.vision_config.image_size)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Embed N pictures uint8 [h, w, 3], each fitted onto a grey square; float32 [N, D].

        Grey 128, as the model that is measured takes its pictures; mean and deviation of the
        colours are those of OpenAI's CLIP.
        """
        square = torch.stack([fit_image(image, (self.side, self.side)) for image in images])
        mean, std = torch.tensor(_CLIP_MEAN), torch.tensor(_CLIP_STD)
        pixels = ((square / 255 - mean) / std).permute(0, 3, 1, 2)
        parts = [self._embed(part.to(self.device)) for part in pixels.split(_BATCH)]
        return F.normalize(torch.cat(parts).float(), dim=1).cpu()

    def _embed(self, pixels: Tensor) -> Tensor:
        output = self.model.get_image_features(pixel_values=pixels)
        # A tensor up to transformers 4, afterwards an output that holds it.
        embedded: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return embedded


class Video2Vector:
    """Features of whole clips for the Fréchet video distance (Unterthiner et al. 2018).

    Args:
        weights: a TorchScript file: [1, 3, T, 224, 224], -1 to 1, to [1, D]. Arguments named
            rescale, resize and return_features, which the usual I3D file has, are set to False,
            False and True.
        device: where to compute.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not TorchScript.
    """

    def __init__(self, weights: Path, *, device: str | torch.device = "cpu") -> None:
        _existing_file(weights, "FVD weights")
        self.device = torch.device(device)
        try:
            self.model = torch.jit.load(str(weights), map_location=self.device).eval()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"FVD weights: {weights} is no TorchScript file ({error})") from error
        settings = {"rescale": False, "resize": False, "return_features": True}
        known = {argument.name for argument in self.model.forward.schema.arguments}
        self.settings = {name: value for name, value in settings.items() if name in known}

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """Compute a clip's features, float32 [D], from uint8 [F, H, W, 3] stretched to 224 x 224.

        Raises:
            ValueError: the network does not take so few frames, or gives no [1, D].
        """
        size = (_I3D_SIDE, _I3D_SIDE)
        small = [
            F.interpolate(part, size=size, mode="bilinear", antialias=True)
            for part in (_planes(some, self.device) for some in frames.split(_BATCH))
        ]
        video = torch.cat(small).permute(1, 0, 2, 3)[None]
        try:
            features = self.model(video, **self.settings)
        except RuntimeError as error:
            raise ValueError(
                f"FVD: its network does not take a clip of {len(frames)} frames: {error}"
            ) from error
        if features.ndim != 2 or features.shape[0] != 1:
            raise ValueError(f"FVD: its network gave {tuple(features.shape)}, want [1, D]")
        return features[0].float().cpu()


@dataclass(frozen=True)
class Models:
    """The learned metrics there are weights for; None: not measured.

    Args:
        lpips: uint8 [F, H, W, 3] twice -> [F, H, W].
        clip: pictures uint8 [h, w, 3] -> [N, D].
        video: uint8 [F, H, W, 3] -> [D].
    """

    lpips: Lpips | None = None
    clip: Clip2Vector | None = None
    video: Video2Vector | None = None


def load_models(
    *,
    lpips_weights: Path | None = None,
    clip_model: Path | None = None,
    fvd_weights: Path | None = None,
    device: str | torch.device = "cpu",
) -> Models:
    """Load what is given; raises as `Lpips`, `Clip2Vector` and `Video2Vector` do."""
    return Models(
        lpips=None if lpips_weights is None else Lpips(lpips_weights, device=device),
        clip=None if clip_model is None else Clip2Vector(clip_model, device=device),
        video=None if fvd_weights is None else Video2Vector(fvd_weights, device=device),
    )


def on_grey(image: Tensor, inside: Tensor) -> Tensor:
    """Cut an image to its region's box, grey 128 around the region; uint8 [h, w, 3].

    Args:
        image: uint8 [H, W, 3].
        inside: bool [H, W], True somewhere.
    """
    rows, columns = (inside.any(dim=1 - dim).nonzero()[:, 0] for dim in (0, 1))
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return image[box].masked_fill(~inside[box][..., None], BACKGROUND)


def _planes(frames: Tensor, device: torch.device) -> Tensor:
    """Convert to float32 [F, 3, H, W], -1 to 1."""
    return frames.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _existing_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{what}: there is no file {path}")


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and safetensors raise kinds of their own
        raise ValueError(_not_lpips(path)) from error
    if not isinstance(state, dict):
        raise ValueError(_not_lpips(path))
    return state


def _lpips_net(state: dict[str, Tensor]) -> str:
    if any(name.startswith("lin5.") for name in state):
        return "squeeze"
    first = state.get("net.slice1.0.weight")
    return "alex" if first is not None and first.shape[-1] == 11 else "vgg"


def _not_lpips(path: Path) -> str:
    return (
        f"LPIPS weights: {path} is not the state dict of a complete lpips.LPIPS, backbone and "
        'linear layers, as torch.save(lpips.LPIPS(net="alex").state_dict(), FILE) writes it'
    )
