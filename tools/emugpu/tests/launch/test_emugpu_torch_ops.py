"""torch's own operators on CUDA tensors: executed by the CPU kernels on the same memory."""

import copy
import io

import emugpu
import pytest
import torch
import torch.nn.functional as F
from toolchain import why_no_emulated_gpu

if (reason := why_no_emulated_gpu()) is not None:
    pytest.skip(reason, allow_module_level=True)

from emugpu import dispatch

close = torch.testing.assert_close


@pytest.fixture(autouse=True)
def no_launch(launches):
    torch.manual_seed(0)
    yield
    assert not launches


def both(f, *shapes, **kw):
    x = [torch.randn(*s) for s in shapes]
    a, b = [t.clone().requires_grad_() for t in x], [t.cuda().requires_grad_() for t in x]
    u, v = f(*a), f(*b)
    assert v.device.type == "cuda" and v.dtype == u.dtype and v.stride() == u.stride()
    close(v.cpu(), u)
    expected = torch.autograd.grad(u.square().sum(), a)
    for p, q in zip(expected, torch.autograd.grad(v.square().sum(), b), strict=True):
        assert q.is_cuda
        close(q.cpu(), p, **kw)


@pytest.mark.parametrize(
    "f,shapes",
    [
        (lambda x: F.layer_norm(x, (8,)), [(4, 8)]),
        (lambda x: F.rms_norm(x, (8,)), [(4, 8)]),
        (lambda x: F.group_norm(x, 2), [(2, 4, 5)]),
        (lambda x, w, b: F.linear(x, w, b), [(3, 4), (5, 4), (5,)]),
        (lambda x, w: F.conv2d(x, w, padding=1), [(1, 2, 6, 6), (3, 2, 3, 3)]),
        (lambda x, w: F.conv3d(x, w), [(1, 2, 4, 5, 5), (3, 2, 1, 2, 2)]),
        (
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            [(1, 2, 7, 8)] * 3,
        ),
        (lambda x: x.transpose(0, 1)[1:].softmax(-1).cumsum(0), [(4, 5)]),
        (lambda x: F.gelu(x[:, ::2]).sort(-1).values, [(4, 6)]),
        (lambda x: x.amax(1) + x.std(1), [(4, 6)]),
        (lambda x, y: torch.einsum("bij,bkj->bik", x, y), [(2, 3, 4), (2, 5, 4)]),
        (lambda x: x.unfold(1, 3, 1).mean(-1), [(2, 9)]),
        (lambda x: x[[2, 0]].masked_fill(x[[2, 0]] > 0, 1.5), [(3, 4)]),
        (lambda x: torch.fft.rfft(x).abs(), [(3, 8)]),
        (lambda x: F.interpolate(x, scale_factor=2), [(1, 1, 3, 3)]),
    ],
)
def test_forward_and_backward(f, shapes):
    both(f, *shapes)


def test_in_place_and_out():
    x = torch.arange(6.0, device="cuda")
    v = x.view(2, 3)[:, 1]
    v.mul_(10)
    assert x.tolist() == [0, 10, 2, 3, 40, 5] and v.add_(1) is v
    o = torch.empty(0, device="cuda")
    assert torch.add(x, 1, out=o) is o and o.tolist() == [1, 12, 3, 4, 42, 6]
    a, b = torch.empty(2, device="cuda"), torch.empty(2, dtype=torch.long, device="cuda")
    torch.max(x.view(2, 3), 1, out=(a, b))
    assert a.tolist() == [11, 41] and b.tolist() == [1, 1]
    x[x > 5] = 0
    assert x.sum().item() == 10
    torch._foreach_add_([x, o], 1.0)
    assert x[0] == 1 and o[0] == 2


def test_devices():
    x = torch.randn(3)
    assert torch.equal(x.cuda().to("cpu"), x) and x.cuda().bfloat16().cpu().dtype == torch.bfloat16
    assert torch.zeros(2, device="cuda").is_cuda and torch.randperm(
        4, device="cuda"
    ).sort().values.tolist() == [0, 1, 2, 3]
    for f in (
        lambda: x.cuda() + x,
        lambda: torch.cat([x, x.cuda()]),
        lambda: F.embedding(torch.tensor([1]), torch.randn(3, 4).cuda()),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            f()
    assert (x.cuda() + torch.tensor(1.0)).is_cuda and x.cuda()[torch.tensor([0])].is_cuda
    y = torch.empty(3).pin_memory()
    assert y.is_pinned() and not x.is_pinned()


def test_serialization():
    net = torch.nn.Linear(3, 4).cuda()
    b = io.BytesIO()
    torch.save(net.state_dict(), b)
    for dev in ("cpu", "cuda"):
        close(
            torch.load(io.BytesIO(b.getvalue()), map_location=dev)["weight"].cpu(),
            net.weight.detach().cpu(),
        )
    assert copy.deepcopy(net).weight.data_ptr() != net.weight.data_ptr()


def test_optimizers_and_amp():
    for kw in (dict(fused=True), dict(foreach=True), dict(foreach=False)):
        net = torch.nn.Linear(3, 3).cuda()
        opt, s = (
            torch.optim.AdamW(net.parameters(), **kw),
            torch.amp.GradScaler("cuda", init_scale=8.0),
        )
        with torch.autocast("cuda", torch.float16):
            loss = net(torch.randn(2, 3, device="cuda")).float().square().sum()
        s.scale(loss).backward()
        before = net.weight.detach().clone()
        s.step(opt), s.update()
        assert not torch.equal(before, net.weight)


def test_cuda_only_operator_named():
    with pytest.raises(
        emugpu.NotEmulatedError, match="_thnn_fused_lstm_cell has only a CUDA kernel"
    ):
        torch.nn.LSTM(4, 5).cuda()(torch.randn(3, 2, 4, device="cuda"))


def test_counts():
    dispatch.stats.clear()
    (torch.ones(2, device="cuda") * 2).sum()
    assert dispatch.stats["mul.Tensor"] == 1 and dispatch.stats["sum"] == 1
