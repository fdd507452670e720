import triton
import triton.language as tl


@triton.jit
def softmax_k(x, y, n, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    v = tl.load(x + row * stride + c, mask=c < n, other=-float("inf")).to(tl.float32)
    v = v - tl.max(v, 0)
    e = tl.exp(v)
    tl.store(y + row * stride + c, e / tl.sum(e, 0), mask=c < n)


@triton.jit
def layernorm_k(x, w, b, y, mean, rstd, n, stride, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    acc = tl.zeros([BLOCK], tl.float32)
    for o in range(0, n, BLOCK):
        c = o + tl.arange(0, BLOCK)
        acc += tl.load(x + row * stride + c, mask=c < n, other=0.0).to(tl.float32)
    mu = tl.sum(acc, 0) / n
    acc = tl.zeros([BLOCK], tl.float32)
    for o in range(0, n, BLOCK):
        c = o + tl.arange(0, BLOCK)
        v = tl.load(x + row * stride + c, mask=c < n, other=0.0).to(tl.float32)
        v = tl.where(c < n, v - mu, 0.0)
        acc += v * v
    rs = 1 / tl.sqrt(tl.sum(acc, 0) / n + eps)
    tl.store(mean + row, mu)
    tl.store(rstd + row, rs)
    for o in range(0, n, BLOCK):
        c = o + tl.arange(0, BLOCK)
        m = c < n
        v = tl.load(x + row * stride + c, mask=m, other=0.0).to(tl.float32)
        ww = tl.load(w + c, mask=m).to(tl.float32)
        bb = tl.load(b + c, mask=m).to(tl.float32)
        tl.store(y + row * stride + c, (v - mu) * rs * ww + bb, mask=m)


@triton.jit
def matmul_k(
    a,
    b,
    c,
    M,
    N,
    K,
    sam,
    sak,
    sbk,
    sbn,
    scm,
    scn,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    pid = tl.program_id(0)
    gn = tl.cdiv(N, BN)
    pm, pn = pid // gn, pid % gn
    rm = pm * BM + tl.arange(0, BM)
    rn = pn * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    pa = a + rm[:, None] * sam + rk[None, :] * sak
    pb = b + rk[:, None] * sbk + rn[None, :] * sbn
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        x = tl.load(pa, mask=(rm[:, None] < M) & (rk[None, :] + k < K), other=0.0)
        y = tl.load(pb, mask=(rk[:, None] + k < K) & (rn[None, :] < N), other=0.0)
        acc = tl.dot(x, y, acc)
        pa += BK * sak
        pb += BK * sbk
    pc = c + rm[:, None] * scm + rn[None, :] * scn
    tl.store(pc, acc.to(c.dtype.element_ty), mask=(rm[:, None] < M) & (rn[None, :] < N))


@triton.jit
def flash_k(
    q,
    k,
    v,
    o,
    lse,
    scale,
    N,
    sb,
    sn,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    pm, pb = tl.program_id(0), tl.program_id(1)
    q += pb * sb
    k += pb * sb
    v += pb * sb
    o += pb * sb
    rm = pm * BM + tl.arange(0, BM)
    rn = tl.arange(0, BN)
    rd = tl.arange(0, D)
    qq = tl.load(q + rm[:, None] * sn + rd[None, :], mask=rm[:, None] < N, other=0.0)
    m = tl.full([BM], -float("inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, D], tl.float32)
    hi = tl.minimum((pm + 1) * BM, N) if CAUSAL else N
    for s in range(0, hi, BN):
        cn = s + rn
        kk = tl.load(k + cn[None, :] * sn + rd[:, None], mask=cn[None, :] < N, other=0.0)
        x = tl.dot(qq, kk) * (scale * 1.4426950408889634)
        ok = cn[None, :] < N
        if CAUSAL:
            ok = ok & (cn[None, :] <= rm[:, None])
        x = tl.where(ok, x, -1e30)
        mn = tl.maximum(m, tl.max(x, 1))
        p = tl.exp2(x - mn[:, None])
        a = tl.exp2(m - mn)
        l = l * a + tl.sum(p, 1)
        vv = tl.load(v + cn[:, None] * sn + rd[None, :], mask=cn[:, None] < N, other=0.0)
        acc = tl.dot(p.to(v.dtype.element_ty), vv, acc * a[:, None])
        m = mn
    acc = acc / l[:, None]
    tl.store(o + rm[:, None] * sn + rd[None, :], acc.to(o.dtype.element_ty), mask=rm[:, None] < N)
    tl.store(lse + pb * N + rm, m / 1.4426950408889634 + tl.log(l), mask=rm < N)


@triton.jit
def int8_matmul_k(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rm, rn, rk = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.int32)
    for k in range(0, K, BK):
        x = tl.load(a + rm[:, None] * K + k + rk[None, :])
        y = tl.load(b + rn[None, :] * K + k + rk[:, None])
        acc = tl.dot(x, y, acc)
    tl.store(c + rm[:, None] * BN + rn[None, :], acc)


@triton.jit
def matmul_tma_k(
    da, db, dc, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WS: tl.constexpr
):
    pid = tl.program_id(0)
    gn = tl.cdiv(N, BN)
    om, on = (pid // gn) * BM, (pid % gn) * BN
    acc = tl.zeros([BM, BN], tl.float32)
    for k in tl.range(0, tl.cdiv(K, BK), warp_specialize=WS):
        x = da.load([om, k * BK])
        y = db.load([k * BK, on])
        acc = tl.dot(x, y, acc)
    dc.store([om, on], acc.to(tl.bfloat16))


@triton.jit
def flash_tma_k(
    dq,
    dk,
    dv,
    do,
    scale,
    N,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    WS: tl.constexpr,
):
    pm, pb = tl.program_id(0), tl.program_id(1)
    rm = pm * BM + tl.arange(0, BM)
    qq = dq.load([pb * N + pm * BM, 0])
    m = tl.full([BM], -float("inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, D], tl.float32)
    hi = (pm + 1) * BM if CAUSAL else N
    for s in tl.range(0, hi, BN, warp_specialize=WS):
        kk = dk.load([pb * N + s, 0])
        x = tl.dot(qq, kk.T) * (scale * 1.4426950408889634)
        if CAUSAL:
            x = tl.where((s + tl.arange(0, BN))[None, :] <= rm[:, None], x, -1e30)
        mn = tl.maximum(m, tl.max(x, 1))
        p = tl.exp2(x - mn[:, None])
        a = tl.exp2(m - mn)
        l = l * a + tl.sum(p, 1)
        vv = dv.load([pb * N + s, 0])
        acc = tl.dot(p.to(vv.dtype), vv, acc * a[:, None])
        m = mn
    do.store([pb * N + pm * BM, 0], (acc / l[:, None]).to(tl.bfloat16))


@triton.jit
def devdesc_k(x, y, M, N, BM: tl.constexpr, BN: tl.constexpr):
    dx = tl.make_tensor_descriptor(x, shape=[M, N], strides=[N, 1], block_shape=[BM, BN])
    dy = tl.make_tensor_descriptor(y, shape=[M, N], strides=[N, 1], block_shape=[BM, BN])
    o = [tl.program_id(0) * BM, tl.program_id(1) * BN]
    dy.store(o, dx.load(o) * 2)


@triton.jit
def flash_bwd_k(
    q,
    k,
    v,
    do,
    lse,
    delta,
    dq,
    dk,
    dv,
    scale,
    N,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """One program per key block: dk and dv in registers, dq by atomic adds in fp32."""
    pn, pb = tl.program_id(0), tl.program_id(1)
    o = pb * N * D
    rn = pn * BN + tl.arange(0, BN)
    rd = tl.arange(0, D)
    kk = tl.load(k + o + rn[:, None] * D + rd[None, :], mask=rn[:, None] < N, other=0.0)
    vv = tl.load(v + o + rn[:, None] * D + rd[None, :], mask=rn[:, None] < N, other=0.0)
    adk = tl.zeros([BN, D], tl.float32)
    adv = tl.zeros([BN, D], tl.float32)
    lo = (pn * BN) // BM * BM if CAUSAL else 0
    for s in range(lo, N, BM):
        rm = s + tl.arange(0, BM)
        qq = tl.load(q + o + rm[:, None] * D + rd[None, :], mask=rm[:, None] < N, other=0.0)
        dd = tl.load(do + o + rm[:, None] * D + rd[None, :], mask=rm[:, None] < N, other=0.0)
        ll = tl.load(lse + pb * N + rm, mask=rm < N, other=0.0)
        de = tl.load(delta + pb * N + rm, mask=rm < N, other=0.0)
        x = tl.dot(qq, kk.T) * scale
        ok = (rm[:, None] < N) & (rn[None, :] < N)
        if CAUSAL:
            ok = ok & (rn[None, :] <= rm[:, None])
        p = tl.where(ok, tl.exp(x - ll[:, None]), 0.0)
        adv = tl.dot(p.to(dd.dtype).T, dd, adv)
        dp = tl.dot(dd, vv.T)
        ds = (p * (dp - de[:, None]) * scale).to(qq.dtype)
        adk = tl.dot(ds.T, qq, adk)
        tl.atomic_add(dq + o + rm[:, None] * D + rd[None, :], tl.dot(ds, kk), mask=rm[:, None] < N)
    tl.store(dk + o + rn[:, None] * D + rd[None, :], adk, mask=rn[:, None] < N)
    tl.store(dv + o + rn[:, None] * D + rd[None, :], adv, mask=rn[:, None] < N)


@triton.jit
def fp8_matmul_k(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rm, rn, rk = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        x = tl.load(a + rm[:, None] * K + k + rk[None, :])
        y = tl.load(b + rn[None, :] * K + k + rk[:, None])
        acc = tl.dot(x, y, acc)
    tl.store(c + rm[:, None] * BN + rn[None, :], acc)


@triton.jit
def scan_sort_k(x, y, z, n, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    v = tl.load(x + c)
    tl.store(y + c, tl.cumsum(v, 0))
    tl.store(z + c, tl.sort(v))


@triton.jit
def dot_acc_k(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr):
    rm, rn, rk = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros([BM, BN], ACC)
    for k in range(0, K, BK):
        x = tl.load(a + rm[:, None] * K + k + rk[None, :])
        y = tl.load(b + (k + rk[:, None]) * BN + rn[None, :])
        acc = tl.dot(x, y, acc, out_dtype=ACC)
    tl.store(c + rm[:, None] * BN + rn[None, :], acc)


@triton.jit
def dot_precision_k(
    a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr
):
    rm, rn, rk = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        x = tl.load(a + rm[:, None] * K + k + rk[None, :])
        y = tl.load(b + (k + rk[:, None]) * BN + rn[None, :])
        acc = tl.dot(x, y, acc, input_precision=PRECISION)
    tl.store(c + rm[:, None] * BN + rn[None, :], acc)
