"""Overheads."""

import sys, time

sys.path[:0] = [__file__.rsplit("/", 2)[0], __file__.rsplit("/", 1)[0]]
t0 = time.time()
import emugpu

emugpu.install(80)
print("install incl. import torch %.2f" % (time.time() - t0))
import torch, toy, numpy as np, triton
import tri_kernels as K

T = toy.build()


def bench(f, n=20):
    f()
    t = time.perf_counter()
    for _ in range(n):
        f()
    return (time.perf_counter() - t) / n * 1e3


x = torch.randn(1000, device="cuda")
c = x.cpu()
for name, f, g in [
    ("add_", lambda: x.add_(1), lambda: c.add_(1)),
    ("add", lambda: x + 1, lambda: c + 1),
    ("empty", lambda: torch.empty(1000, device="cuda"), lambda: torch.empty(1000)),
    ("sum.item", lambda: x.sum().item(), lambda: c.sum().item()),
    (
        "layer_norm",
        lambda: torch.nn.functional.layer_norm(x, (1000,)),
        lambda: torch.nn.functional.layer_norm(c, (1000,)),
    ),
]:
    print("%-10s cuda %.1f us, cpu %.1f us" % (name, bench(f, 1000) * 1e3, bench(g, 1000) * 1e3))
A = torch.randn(1024, 1024)
B = A.cuda()
print("mm1024 cuda %.2f cpu %.2f ms" % (bench(lambda: B @ B), bench(lambda: A @ A)))
x = torch.randn(4, 300, device="cuda")
w = torch.randn(300, device="cuda")
print(
    "rms_norm op %.2f ms, of which emulator %.2f"
    % (bench(lambda: T.rms_norm(x, w, 1e-6)), emugpu.launches[-1]["report"].seconds * 1e3)
)
for n, h in ((128, 2), (512, 2), (1024, 4)):
    q, k, v = (torch.randn(h, n, 64, device="cuda").bfloat16() for _ in range(3))
    print(
        n,
        h,
        "cuda flash %.1f ms, emulator %.1f"
        % (
            bench(lambda: T.attention(q, k, v, 0.125, False), 3),
            emugpu.launches[-1]["report"].seconds * 1e3,
        ),
        end=" ",
    )
    with emugpu.checks(racecheck="raise", initcheck="raise"):
        print("with race+init checks %.1f" % bench(lambda: T.attention(q, k, v, 0.125, False), 1))
    o = torch.empty_like(q)
    l = torch.empty(h, n, device="cuda")
    f = lambda: K.flash_k[(triton.cdiv(n, 64), h)](
        q, k, v, o, l, 0.125, n, n * 64, 64, CAUSAL=False, D=64, BM=64, BN=64, num_stages=2
    )
    print(
        "   triton flash %.1f ms, emulator %.1f"
        % (bench(f, 3), emugpu.launches[-1]["report"].seconds * 1e3)
    )
y = torch.empty_like(x)
f = lambda: K.softmax_k[(4,)](x, y, 300, 300, BLOCK=512)
print(
    "triton softmax %.2f ms, emulator %.2f"
    % (bench(f), emugpu.launches[-1]["report"].seconds * 1e3)
)
keep = [torch.empty(10, device="cuda") for _ in range(5000)]
print(
    "with 5000 live tensors: rms_norm %.2f ms, softmax %.2f"
    % (bench(lambda: T.rms_norm(x, w, 1e-6)), bench(f)),
    "empty %.1f us" % (bench(lambda: torch.empty(1000, device="cuda"), 1000) * 1e3),
)
