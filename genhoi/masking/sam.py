"""Follows a thing through a clip with SAM 2 or SAM 3, whose weights are on this machine.

transformers has the models. Nothing is downloaded: a model is a folder, or a name of the hub whose
files are in its cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genhoi.extras import need, needed_for
from genhoi.masking.cues import Box, Cue, Drawn, Point, Text, frames_with_extent
from genhoi.masking.protocol import Progress, Track
from genhoi.media import Clip

__all__ = ["SAMEngine"]

_FETCH = (  # sizes: parameters times four bytes
    "hf download facebook/sam2.1-hiera-small (about 180 MB), facebook/sam2.1-hiera-large (about "
    "900 MB), or, which also knows words, facebook/sam3 (about 3.4 GB; its licence has to be "
    "accepted on the hub first)"
)
_KINDS = ("sam2_video", "sam3_video", "sam3_tracker_video")
_CORNERS = (2, 3)  # SAM's labels of a box's corners; 1 is a point inside, 0 one outside
_WORDS = 32  # tokens of a text
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SCALES = {  # mean and standard deviation of the colours that each was trained with
    "Sam2Video": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "Sam3Video": _HALF,
    "Sam3TrackerVideo": _HALF,
}


class SAMEngine:
    """Follows a thing with SAM 2 or SAM 3.

    Boxes on the same frame are things of their own (a hand, a mug), tracked beside each other and
    joined: the first box of every frame is of the first thing. A point inside belongs to the thing
    in whose box it lies, else to the first; a point outside is told to all.

    Args:
        model: folder of a transformers model `sam2_video` or `sam3_video`, or its name on the hub
            if its files are in the cache.
        device: where it computes.

    Raises:
        FileNotFoundError: its files are not on this machine.
        ImportError: transformers is not installed.
        ValueError: it is another model, or there is no such device.
    """

    def __init__(self, model: str | Path, *, device: str | torch.device = "cpu") -> None:
        self._model, self.device = str(model), _device(device)
        with needed_for("SAM"), _present(self._model):
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(self._model, local_files_only=True)
        self.kind: str = config.model_type
        if self.kind == "sam2":  # the same weights; the hub's configurations name either
            self.kind = "sam2_video"
        if self.kind not in _KINDS:
            raise ValueError(f"model: {model} is a {self.kind}, want one of {', '.join(_KINDS)}")
        if self.kind != "sam2_video":
            need("torchvision", "SAM 3")

    def check(self, cues: Sequence[Cue]) -> None:
        """Refuse cues that the model cannot take.

        Raises:
            ValueError: a text for another model than SAM 3, or with other cues; frames with
                different numbers of boxes; a drawn mask with other cues on its frame.
        """
        texts = [cue for cue in cues if isinstance(cue, Text)]
        places = [cue for cue in cues if not isinstance(cue, Text)]
        if texts and self.kind != "sam3_video":
            raise ValueError(
                f"text: {self._model} is {self.kind}, which knows no words, want SAM 3"
            )
        if texts and len(texts) < len(cues):
            raise ValueError("text: got other cues beside it, want one or the other")
        boxes = Counter(cue.frame for cue in cues if isinstance(cue, Box))
        if len(set(boxes.values())) > 1:
            raise ValueError(
                f"boxes: got {', '.join(map(str, boxes.values()))} on frames "
                f"{', '.join(map(str, boxes))}, want as many on each: one for each thing"
            )
        for cue in cues:
            if isinstance(cue, Drawn) and any(
                c is not cue and c.frame == cue.frame for c in places
            ):
                raise ValueError(f"{cue}: got other cues of this frame, want it or those")

    @torch.inference_mode()
    def __call__(self, clip: Clip, cues: Sequence[Cue], progress: Progress) -> Track:
        """Follow what the cues point at; see `genhoi.masking.track.track_mask`."""
        follow = self._by_words if isinstance(cues[0], Text) else self._by_places
        mask = torch.zeros(clip.frames.shape[:3], dtype=torch.bool)
        confidence = torch.zeros(clip.num_frames)
        for done, (frame, inside, score) in enumerate(follow(clip, cues), 1):
            mask[frame], confidence[frame] = inside, score
            progress(min(done, clip.num_frames), clip.num_frames, f"frame {frame}")
        empty = ~mask.flatten(1).any(1)
        return Track(mask, confidence.masked_fill(empty, 0), empty)

    def _by_places(self, clip: Clip, cues: Sequence[Cue]) -> Iterator[tuple[int, Tensor, float]]:
        """Track from boxes, points and drawn masks, forwards and then backwards."""
        name = "Sam2Video" if self.kind == "sam2_video" else "Sam3TrackerVideo"
        model = self._load(name)
        session = self._session(name, model, clip)
        frames = {cue.frame for cue in cues if not isinstance(cue, Text)}
        # Those with boxes first: every thing has to be known before others are corrected.
        for frame in sorted(frames, key=lambda f: (f not in frames_with_extent(cues), f)):
            _add_inputs(session, _side(model), frame, cues)
            model(inference_session=session, frame_idx=frame)
        start = frames_with_extent(cues)[0]
        for backwards in (False, True) if start else (False,):
            for out in model.propagate_in_video_iterator(
                session, start_frame_idx=start, reverse=backwards
            ):
                score = out.object_score_logits.float().sigmoid().max()
                yield out.frame_idx, _joined(out.pred_masks.flatten(0, -3), clip), float(score)

    def _by_words(self, clip: Clip, cues: Sequence[Cue]) -> Iterator[tuple[int, Tensor, float]]:
        """Find and track all that the words name."""
        with needed_for("SAM"), _present(self._model):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self._model, local_files_only=True)
        model = self._load("Sam3Video")
        session = self._session("Sam3Video", model, clip)
        words = [w.strip() for cue in cues if isinstance(cue, Text) for w in cue.text.split(",")]
        for word in filter(None, words):
            prompt = session.add_prompt(word)
            tokens = tokenizer(word, return_tensors="pt", padding="max_length", max_length=_WORDS)
            session.prompt_input_ids[prompt] = tokens.input_ids.to(self.device)
            session.prompt_attention_masks[prompt] = tokens.attention_mask.to(self.device)
        for out in model.propagate_in_video_iterator(session):
            hidden = {*(out.suppressed_obj_ids or ()), *session.hotstart_removed_obj_ids}
            shown = [i for i in out.obj_id_to_mask if i not in hidden]
            planes = [out.obj_id_to_mask[i] for i in shown]
            score = max((float(out.obj_id_to_score[i]) for i in shown), default=0.0)
            empty = torch.zeros(clip.height, clip.width, dtype=torch.bool)
            yield out.frame_idx, _joined(torch.cat(planes), clip) if planes else empty, score

    def _load(self, name: str) -> Any:
        with needed_for("SAM"), _present(self._model):
            import transformers

            kind = getattr(transformers, f"{name}Model")
            model = kind.from_pretrained(self._model, local_files_only=True, dtype=torch.float32)
        return model.to(self.device).eval()

    def _session(self, name: str, model: Any, clip: Clip) -> Any:
        """Begin a session; its frames wait on the CPU, where a long clip has room."""
        session = getattr(import_module(type(model).__module__), f"{name}InferenceSession")
        scale = _SCALES[name]
        return session(
            video=_prepared(clip.frames, _side(model), *scale),
            video_height=clip.height,
            video_width=clip.width,
            inference_device=self.device,
            inference_state_device=self.device,
            video_storage_device="cpu",
            dtype=torch.float32,
        )


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: got {name}, want cpu, cuda or the like") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {name}, but torch finds no GPU here; want cpu")
    return device


def _side(model: Any) -> int:
    """Tell the side of the square that frames are stretched to."""
    side = model.config.image_size
    return int(side if isinstance(side, int) else side[0])


def _prepared(frames: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bring frames [F, H, W, 3] into the form that SAM takes, float32 [F, 3, side, side].

    transformers' own processors do the same, but need torchvision.
    """
    scale = torch.tensor([mean, std])[..., None, None]
    ready = [
        (
            functional.interpolate(
                frame.permute(2, 0, 1)[None].float(),
                (side, side),
                mode="bilinear",
                antialias=True,
            )[0]
            / 255
            - scale[0]
        )
        / scale[1]
        for frame in frames
    ]
    return torch.stack(ready)


def _joined(planes: Tensor, clip: Clip) -> Tensor:
    """Join things' masks, logits [n, h, w], into one at the clip's size, bool [H, W]."""
    size = (clip.height, clip.width)
    large = functional.interpolate(planes[None].float(), size, mode="bilinear")[0]
    return (large > 0).any(0).cpu()


def _add_inputs(session: Any, side: int, frame: int, cues: Sequence[Cue]) -> None:
    """Tell a session all cues of one frame.

    Args:
        session: of SAM 2, or of SAM 3's tracker.
        side: of the model's square frames, in pixels.
        frame: its number.
        cues: of all frames.
    """
    here = [cue for cue in cues if not isinstance(cue, Text) and cue.frame == frame]
    boxes = [cue for cue in here if isinstance(cue, Box)]
    points = [cue for cue in here if isinstance(cue, Point)]
    scale = torch.tensor([side / session.video_width, side / session.video_height])
    given = []
    for i in range(max(1, len(boxes))):
        mine = [p for p in points if not p.inside or _owner(p, boxes) == i]
        corners = [boxes[i].corners[:2], boxes[i].corners[2:]] if boxes else []
        places = [*corners, *((p.x, p.y) for p in mine)]
        labels = [*_CORNERS[: len(corners)], *(int(p.inside) for p in mine)]
        thing = session.obj_id_to_idx(i + 1)
        given.append(i + 1)
        drawn = next((cue for cue in here if isinstance(cue, Drawn)), None)
        if drawn is None:
            inputs = {
                "point_coords": torch.tensor([[places]]) * scale,
                "point_labels": torch.tensor([[labels]], dtype=torch.int32),
            }
            session.add_point_inputs(thing, frame, inputs)
        else:
            plane = drawn.mask[None, None].float()
            plane = functional.interpolate(plane, (side, side), mode="bilinear", antialias=True)
            session.add_mask_inputs(thing, frame, (plane >= 0.5).float())
    session.obj_with_new_inputs = given


def _owner(point: Point, boxes: Sequence[Box]) -> int:
    """Number the thing that a point belongs to."""
    for i, box in enumerate(boxes):
        left, top, right, bottom = box.corners
        if left <= point.x < right and top <= point.y < bottom:
            return i
    return 0


@contextmanager
def _present(model: str) -> Iterator[None]:
    """Say how to fetch a model whose files are not there."""
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"model: {model} is no folder with a model, nor in the hub's cache; nothing is "
            f"downloaded unasked. To fetch one: {_FETCH}"
        ) from error
