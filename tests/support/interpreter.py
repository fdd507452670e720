"""Triton's interpreter, made right for bfloat16 and a little faster.

The interpreter (numpy) keeps bfloat16 as 16-bit integers, and multiplies and compares those. Here
arithmetic is done in float32 and rounded to nearest even, which is what a GPU does.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def mend() -> None:
    """Replace the arithmetic of the interpreter's builder. Needs TRITON_INTERPRET=1 to matter."""
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def is_bfloat16(x: Any) -> bool:
        return bool(x.dtype.scalar == tl.bfloat16)

    def widened(x: Any) -> np.ndarray:
        if not is_bfloat16(x):
            return x.data
        return (x.data.astype(np.uint32) << 16).view(np.float32)

    def rounded(x: np.ndarray) -> np.ndarray:
        wide = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        return wide.bfloat16().view(torch.uint16).numpy().reshape(np.shape(x))

    def handle(x: np.ndarray) -> Any:
        return TensorHandle(x, tl.float32)

    def as_bfloat16(x: np.ndarray) -> Any:
        return (
            TensorHandle(x, tl.bfloat16)
            if x.dtype == bool
            else TensorHandle(rounded(x), tl.bfloat16)
        )

    builder = InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl
    binary, unary = builder.binary_op, builder.unary_op

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        # float16 too: the same numbers, and numpy multiplies float16 a hundred times slower.
        if a.dtype.scalar in (tl.bfloat16, tl.float16):
            a, b = handle(widened(a).astype(np.float32)), handle(widened(b).astype(np.float32))
        return dot(self, a, b, d, *rest)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        to_bfloat16 = target.scalar == tl.bfloat16
        if is_bfloat16(source) and not to_bfloat16:
            wide = handle(widened(source))
            return wide if target.scalar == tl.float32 else cast(self, wide, target)
        if to_bfloat16 and not is_bfloat16(source):
            return TensorHandle(rounded(source.data.astype(np.float32)), tl.bfloat16)
        return cast(self, source, target)

    def binary_op(self: Any, left: Any, right: Any, op: Callable[..., Any]) -> Any:
        if is_bfloat16(left):
            return as_bfloat16(op(widened(left), widened(right)))
        return binary(self, left, right, op)

    def unary_op(self: Any, x: Any, op: Callable[..., Any]) -> Any:
        return as_bfloat16(op(widened(x))) if is_bfloat16(x) else unary(self, x, op)

    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    builder.binary_op, builder.unary_op = binary_op, unary_op

    patch_lang, patch = interpreter._patch_lang, interpreter._patch_lang_tensor

    def patch_lang_once(fn: Any) -> Any:
        # Triton's language is patched again in every call of one function by another: a fifth of
        # the time. Where ``load`` isn't the original any more, that is done.
        langs = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
        done = not any(tl.core.is_builtin(lang.load) for lang in langs)
        return interpreter._LangPatchScope() if done else patch_lang(fn)

    def patch_tensor(tensor: Any, scope: Any) -> None:
        # Triton 3.6 makes a loop's bound of an array in a way that numpy 2.4 no longer allows.
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang = patch_lang_once
    interpreter._patch_lang_tensor = patch_tensor
