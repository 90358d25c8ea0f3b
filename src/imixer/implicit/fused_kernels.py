"""Triton kernels of the fused token mixing, forward and backward. `fused.py` calls them.

R: rows, one per sample and channel, numbered b C + c; S: tokens; D: width of x; H: inner width N_h. Blocks of them have
`_B`; D_P is D padded to a power of two. A program does one block of rows from beginning to end: its state stays in
registers, and the matrices pass through shared memory tile by tile.
"""

import triton
import triton.language as tl


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gelu_slope(x):
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327


@triton.jit
def _tile(pointer, rows, columns, row_stride, column_stride, n_rows, n_columns):
    """Load a tile of a matrix, with zeros outside of it."""
    inside = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=inside, other=0.0)


@triton.jit
def _bias(pointer, columns, n_columns):
    return tl.load(pointer + columns, mask=columns < n_columns, other=0.0)[None, :]


@triton.jit
def _dot(a, b, total, ACC: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Add a b to the total. With WIDEN in its type: the interpreter cannot multiply bfloat16."""
    if WIDEN:
        a, b = a.to(ACC), b.to(ACC)
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _strided(rows, channels, sample_stride, channel_stride):
    """Say where the rows of a tensor (B, C, S) of any strides begin."""
    return (rows // channels).to(tl.int64) * sample_stride + (rows % channels) * channel_stride


@triton.jit
def forward_kernel(
    v, W_in, b_in, W1, b1, W2, b2, W_out, b_out, states, out,
    R, S, D, H, S_OUT, channels, state_step,
    v_sample, v_channel, v_token, out_sample, out_channel, out_token,
    n_iter, KEEP: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    R_B: tl.constexpr, S_B: tl.constexpr, D_P: tl.constexpr, H_B: tl.constexpr,
):  # fmt: skip
    """Mix v (B, C, S) -> out (B, C, S_OUT): x = G(v), n times x <- G(v) + F(x), then H(x).

    With KEEP the iterates go to states (n + 1, R, D), which the backward pass needs.
    """
    rows, width = tl.program_id(0) * R_B + tl.arange(0, R_B), tl.arange(0, D_P)
    tokens, inner = tl.arange(0, S_B), tl.arange(0, H_B)
    no_tokens, no_inner = tl.zeros([R_B, S_B], dtype=ACC), tl.zeros([R_B, H_B], dtype=ACC)
    there = rows < R
    own = there[:, None] & (width[None, :] < D)
    operand = v.dtype.element_ty
    begin = _strided(rows, channels, v_sample, v_channel)

    z = tl.zeros([R_B, D_P], dtype=ACC)
    for s in range(0, S, S_B):
        inside = there[:, None] & (s + tokens[None, :] < S)
        part = tl.load(v + begin[:, None] + (s + tokens[None, :]) * v_token, mask=inside, other=0.0)
        z = _dot(part, _tile(W_in, s + tokens, width, 1, S, S, D), z, ACC, PRECISION, WIDEN)
    z += _bias(b_in, width, D)

    x = z
    place = states + rows.to(tl.int64)[:, None] * D + width[None, :]
    for _ in range(n_iter):
        if KEEP:
            tl.store(place, x.to(operand), mask=own)
            place += state_step
        g = _gelu(x).to(operand)
        x = z + _bias(b2, width, D)
        for h in range(0, H, H_B):
            a = _dot(g, _tile(W1, width, h + inner, 1, D, D, H), no_inner, ACC, PRECISION, WIDEN)
            ga = _gelu(a + _bias(b1, h + inner, H)).to(operand)
            x = _dot(ga, _tile(W2, h + inner, width, 1, H, H, D), x, ACC, PRECISION, WIDEN)
    if KEEP:
        tl.store(place, x.to(operand), mask=own)

    g = _gelu(x).to(operand)
    begin = _strided(rows, channels, out_sample, out_channel)
    for s in range(0, S_OUT, S_B):
        y = _dot(g, _tile(W_out, width, s + tokens, 1, D, D, S_OUT), no_tokens, ACC, PRECISION, WIDEN)
        y += _bias(b_out, s + tokens, S_OUT)
        inside = there[:, None] & (s + tokens[None, :] < S_OUT)
        tl.store(out + begin[:, None] + (s + tokens[None, :]) * out_token, y.to(operand), mask=inside)


@triton.jit
def backward_kernel(
    dout, W_in, W1, b1, W2, W_out, states, dx_of, a_of, da_of, dz_of, dv,
    R, S, D, H, S_OUT, channels, state_step, inner_step, last_state, last_inner,
    dout_sample, dout_channel, dout_token, dv_sample, dv_channel, dv_token,
    n_iter, ACC: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    R_B: tl.constexpr, S_B: tl.constexpr, D_P: tl.constexpr, H_B: tl.constexpr,
):  # fmt: skip
    """Lead the gradient dout (B, C, S_OUT) back to dv (B, C, S), and keep what the matrices' gradients are made of.

    These are dx_of (n, R, D), the gradient of what step i gives; a_of and da_of (n, R, H), the inner activation and
    the gradient before it; and dz_of (R, D), the gradient of G(v).
    """
    rows, width = tl.program_id(0) * R_B + tl.arange(0, R_B), tl.arange(0, D_P)
    tokens, inner = tl.arange(0, S_B), tl.arange(0, H_B)
    no_tokens, no_inner = tl.zeros([R_B, S_B], dtype=ACC), tl.zeros([R_B, H_B], dtype=ACC)
    there = rows < R
    own = there[:, None] & (width[None, :] < D)
    operand = dout.dtype.element_ty
    begin = _strided(rows, channels, dout_sample, dout_channel)
    of_rows = rows.to(tl.int64)[:, None]
    place = of_rows * D + width[None, :]
    at, inner_at = place + last_state, last_inner + of_rows * H  # of the last step, from which it goes back

    dx = tl.zeros([R_B, D_P], dtype=ACC)
    for s in range(0, S_OUT, S_B):
        inside = there[:, None] & (s + tokens[None, :] < S_OUT)
        part = tl.load(dout + begin[:, None] + (s + tokens[None, :]) * dout_token, mask=inside, other=0.0)
        dx = _dot(part, _tile(W_out, s + tokens, width, D, 1, S_OUT, D), dx, ACC, PRECISION, WIDEN)
    dx *= _gelu_slope(tl.load(states + at, mask=own, other=0.0).to(ACC))

    dz = tl.zeros([R_B, D_P], dtype=ACC)
    for _ in range(n_iter):
        dz += dx
        drawn = dx.to(operand)
        at -= state_step
        inner_at -= inner_step
        tl.store(dx_of + at, drawn, mask=own)
        x = tl.load(states + at, mask=own, other=0.0).to(ACC)
        g = _gelu(x).to(operand)
        dx = tl.zeros([R_B, D_P], dtype=ACC)
        for h in range(0, H, H_B):
            a = _dot(g, _tile(W1, width, h + inner, 1, D, D, H), no_inner, ACC, PRECISION, WIDEN)
            a += _bias(b1, h + inner, H)
            da = _dot(drawn, _tile(W2, width, h + inner, H, 1, D, H), no_inner, ACC, PRECISION, WIDEN)
            da = (da * _gelu_slope(a)).to(operand)
            inside = there[:, None] & (h + inner[None, :] < H)
            inner_place = inner_at + h + inner[None, :]
            tl.store(a_of + inner_place, _gelu(a).to(operand), mask=inside)
            tl.store(da_of + inner_place, da, mask=inside)
            dx = _dot(da, _tile(W1, h + inner, width, D, 1, H, D), dx, ACC, PRECISION, WIDEN)
        dx *= _gelu_slope(x)
    dz += dx

    drawn = dz.to(operand)
    tl.store(dz_of + place, drawn, mask=own)
    begin = _strided(rows, channels, dv_sample, dv_channel)
    for s in range(0, S, S_B):
        y = _dot(drawn, _tile(W_in, width, s + tokens, S, 1, D, S), no_tokens, ACC, PRECISION, WIDEN)
        inside = there[:, None] & (s + tokens[None, :] < S)
        tl.store(dv + begin[:, None] + (s + tokens[None, :]) * dv_token, y.to(operand), mask=inside)
