"""GenHOI's whole forward pass in plain float64 PyTorch, on the release's weights by name: one
sample, dense attention, the reference recomputed. Shares no code with the packages."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Positions = Tensor  # [H, N, 3]: frame, row, column of every token in every head


class PlainGenHOI:
    """Weights under the release's names; ``config`` as there."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.w = {name: x.detach().double() for name, x in weights.items()}
        self.config = config
        self.heads = config["num_heads"]
        self.head_dim = config["dim"] // self.heads

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def layer_norm(self, x: Tensor, name: str = "", eps: float | None = None) -> Tensor:
        eps = self.config["eps"] if eps is None else eps
        weight, bias = self.w.get(f"{name}.weight"), self.w.get(f"{name}.bias")
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.config["eps"]).rsqrt()
        return x * scale * self.w[f"{name}.weight"]

    # ---------------------------------------------------------------------------------- embeddings

    def time(self, t: float) -> tuple[Tensor, Tensor]:
        half = self.config["freq_dim"] // 2
        angle = t * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        x = self.linear("time_embedding.0", torch.cat([angle.cos(), angle.sin()]))
        x = self.linear("time_embedding.2", F.silu(x))
        return x, self.linear("time_projection.1", F.silu(x)).unflatten(0, (6, -1))

    def text(self, x: Tensor) -> Tensor:
        x = F.gelu(self.linear("text_embedding.0", x), approximate="tanh")
        return self.linear("text_embedding.2", x)

    def image(self, x: Tensor) -> Tensor:
        x = self.linear("img_emb.proj.1", self.layer_norm(x, "img_emb.proj.0", 1e-5))
        x = self.linear("img_emb.proj.3", F.gelu(x))
        return self.layer_norm(x, "img_emb.proj.4", 1e-5)

    def patches(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """[C, F, H, W] -> tokens [N, dim] and their grid."""
        size = tuple(self.config["patch_size"])
        weight, bias = self.w["patch_embedding.weight"], self.w["patch_embedding.bias"]
        x = F.conv3d(x[None], weight, bias, stride=size)[0]
        return x.flatten(1).T, tuple(x.shape[1:])

    # ----------------------------------------------------------------------------------- attention

    def rotate(self, x: Tensor, positions: Positions) -> Tensor:
        """x [H, N, D]."""
        spatial = self.head_dim // 3 // 2 * 2
        parts = []
        for axis, size in enumerate((self.head_dim - 2 * spatial, spatial, spatial)):
            pair = torch.arange(size // 2, dtype=torch.float64)
            parts.append(positions[..., axis, None] * 10000.0 ** (-2 * pair / size))
        angle = torch.cat(parts, -1)
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(turned * torch.polar(torch.ones_like(angle), angle)).flatten(-2)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(0, 1)

    def gated(self, name: str, o: Tensor, kind: str | None) -> Tensor:
        """o [H, N, D]; returns [N, H*D]."""
        at = f"{name}.gate.mlp"
        logit = self.linear(f"{at}.1", self.layer_norm(o, f"{at}.0", 1e-5))
        logit = self.linear(f"{at}.3", F.gelu(logit))
        if kind == "sequence":
            logit = logit.mean(1, keepdim=True)
        if kind is not None:
            o = o * torch.sigmoid(logit)
        return o.transpose(0, 1).flatten(1)

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        if seen is not None:
            logits = logits.masked_fill(~seen, -math.inf)
        return logits.softmax(-1) @ v

    def qkv(self, at: str, x: Tensor, places: Positions, lora: bool) -> tuple[Tensor, ...]:
        made = []
        for n in "qkv":
            y = self.linear(f"{at}.{n}", x)
            if lora:
                y = y + self.linear(f"{at}.{n}_loras.up", self.linear(f"{at}.{n}_loras.down", x))
            made.append(y if n == "v" else self.rms_norm(f"{at}.norm_{n}", y))
        q, k, v = (self.split(y) for y in made)
        return self.rotate(q, places), self.rotate(k, places), v

    def cross(self, at: str, x: Tensor, text: Tensor, image: Tensor | None, kind: Any) -> Tensor:
        q = self.split(self.rms_norm(f"{at}.norm_q", self.linear(f"{at}.q", x)))
        k = self.split(self.rms_norm(f"{at}.norm_k", self.linear(f"{at}.k", text)))
        v = self.split(self.linear(f"{at}.v", text))
        out = self.gated(f"{at}.attn", self.attend(q, k, v), kind)
        if image is not None:
            k = self.split(self.rms_norm(f"{at}.norm_k_img", self.linear(f"{at}.k_img", image)))
            v = self.split(self.linear(f"{at}.v_img", image))
            out = out + self.gated(f"{at}.attn_img", self.attend(q, k, v), kind)
        return self.linear(f"{at}.o", out)

    # ---------------------------------------------------------------------------------------- model

    def block(
        self, at: str, x: Tensor, modulation: Tensor, self_attention: Callable[[Tensor], Tensor],
        cross_attention: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:  # fmt: skip
        e = self.w[f"{at}.modulation"][0] + modulation
        y = self_attention(self.layer_norm(x) * (1 + e[1]) + e[0])
        x = x + self.linear(f"{at}.self_attn.o", y) * e[2]
        if cross_attention is not None:
            x = x + cross_attention(self.layer_norm(x, f"{at}.norm3"))
        y = self.linear(f"{at}.ffn.0", self.layer_norm(x) * (1 + e[4]) + e[3])
        return x + self.linear(f"{at}.ffn.2", F.gelu(y, approximate="tanh")) * e[5]

    def __call__(
        self, x: Tensor, t: float, context: Tensor, clip: Tensor | None,
        references: Sequence[Tensor], seen: Tensor, *, gate: str | None, frames: Sequence[float],
    ) -> Tensor:  # fmt: skip
        """Output [C, F, H, W].

        Args:
            x: [in_dim, F, H, W]. context, clip: [tokens, width].
            references: each [in_dim, 1, h, w]. seen: bool [N, references].
            gate: "token", "sequence" or None. frames: of the reference in every head.
        """
        video, grid = self.patches(x.double())
        embedding, modulation = self.time(t)
        _, still = self.time(0.0)
        text = self.text(context.double())
        image = None if clip is None else self.image(clip.double())
        here = self.places([float("nan")] * self.heads, grid, (0, 0))
        streams, theirs = [], []
        for reference in references:
            tokens, size = self.patches(reference.double())
            streams.append(tokens)
            theirs.append(self.places(frames, size, grid[1:]))
        sees = [seen.new_ones(len(video), len(video))]
        sees += [seen[:, r, None].expand(-1, len(s)) for r, s in enumerate(streams)]

        for n in range(self.config["num_layers"]):
            at, keys, values = f"blocks.{n}", [], []

            def on_reference(y: Tensor, at: str = at, keys: Any = keys, values: Any = values,
                             places: Any = None) -> Tensor:  # fmt: skip
                q, k, v = self.qkv(f"{at}.self_attn", y, places, lora=True)
                keys.append(k)
                values.append(v)
                return self.gated(f"{at}.self_attn.attn", self.attend(q, k, v), gate)

            def on_video(y: Tensor, at: str = at, keys: Any = keys, values: Any = values) -> Tensor:
                q, k, v = self.qkv(f"{at}.self_attn", y, here, lora=False)
                k, v = torch.cat([k, *keys], 1), torch.cat([v, *values], 1)
                out = self.attend(q, k, v, torch.cat(sees, 1))
                return self.gated(f"{at}.self_attn.attn", out, gate)

            streams = [
                self.block(
                    at, s, still, lambda y, p=p, f=on_reference: f(y, places=p), None  # type: ignore[misc]
                )
                for s, p in zip(streams, theirs, strict=True)
            ]  # fmt: skip
            video = self.block(
                at, video, modulation, on_video,
                lambda y, at=at: self.cross(f"{at}.cross_attn", y, text, image, gate),  # type: ignore[misc]
            )  # fmt: skip
        e = self.w["head.modulation"][0] + embedding
        out = self.linear("head.head", self.layer_norm(video) * (1 + e[1]) + e[0])
        out = out.unflatten(0, grid).unflatten(-1, (*self.config["patch_size"], -1))
        return out.permute(6, 0, 3, 1, 4, 2, 5).flatten(5, 6).flatten(3, 4).flatten(1, 2)

    @staticmethod
    def places(
        frames: Sequence[float], grid: tuple[int, ...], offset: tuple[int, ...]
    ) -> Positions:
        """Where the tokens of a grid are; a frame of NaN leaves each token's own."""
        every = []
        for frame in frames:
            every.append([
                (t if math.isnan(frame) else frame, offset[0] + y, offset[1] + x)
                for t in range(grid[0]) for y in range(grid[1]) for x in range(grid[2])
            ])  # fmt: skip
        return torch.tensor(every, dtype=torch.float64)
