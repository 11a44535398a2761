"""The CPU kernels besides the matmul, compiled by Numba. Shapes are documented in `paceline.kernels.Ops`.

Every loop treats a row on its own, in an order fixed by that row's shape: no result depends on the other rows.

For developers: Numba keeps compiled functions on disk until the file that defines them changes. Functions here inline
some of simd.py, so touch this file after an edit there.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from paceline.kernels.simd import PANEL, TILE, matmul_serial, panel_product

F32 = np.float32
# Sums of one row may be reassociated into vector lanes: the grouping depends on the row's length alone.
REDUCE = {"reassoc", "contract", "nsz"}


@intrinsic
def bits_to_f32(_context, bits):
    """An int32's bits as a float32."""
    return types.float32(types.int32), lambda context, b, signature, args: b.bitcast(args[0], ir.FloatType())


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def exp32(x):
    """e^x for x <= 88 in fp32, to 2 units in the last place; branch-free, so loops over it become vector code.

    Range reduction and the degree-5 polynomial of Cephes' expf (Moshier 1984).
    """
    x = max(x, F32(-87.0))
    n = np.floor(x * F32(1.44269504088896341) + F32(0.5))
    r = x - n * F32(0.693359375) + n * F32(2.12194440e-4)
    p = F32(1.9875691500e-4)
    p = p * r + F32(1.3981999507e-3)
    p = p * r + F32(8.3334519073e-3)
    p = p * r + F32(4.1665795894e-2)
    p = p * r + F32(1.6666665459e-1)
    p = p * r + F32(5.0000001201e-1)
    return (p * r * r + r + F32(1.0)) * bits_to_f32(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@njit(cache=True, error_model="numpy", fastmath=REDUCE)
def dot(a, b):
    total = F32(0.0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@njit(cache=True, error_model="numpy")
def inverse_rms(x, eps):
    return F32(1.0) / np.sqrt(dot(x, x) / F32(x.shape[0]) + F32(eps))


@njit(cache=True, error_model="numpy")
def rms_norm(x, weight, eps, out):
    for r in range(x.shape[0]):
        scale = inverse_rms(x[r], eps)
        for i in range(x.shape[1]):
            out[r, i] = x[r, i] * scale * weight[i]


@njit(cache=True, error_model="numpy")
def add_norm(h, y, post, pre, scale, eps, out, normed):
    """`pre` of length 0 leaves `normed` alone."""
    whole = scale[0]
    for r in range(h.shape[0]):
        s = inverse_rms(y[r], eps)
        for i in range(h.shape[1]):
            out[r, i] = (h[r, i] + y[r, i] * s * post[i]) * whole
        if pre.shape[0] > 0:
            s = inverse_rms(out[r], eps)
            for i in range(h.shape[1]):
                normed[r, i] = out[r, i] * s * pre[i]


@njit(cache=True, error_model="numpy")
def turn(x, weight, cos, sin, eps, out):
    """One head: norm, weight, then the first pairs (j, j + dim/2) turned."""
    half, rotated, scale = x.shape[0] // 2, cos.shape[0], inverse_rms(x, eps)
    for i in range(x.shape[0]):
        out[i] = x[i] * scale * weight[i]
    for j in range(rotated):
        a, b = out[j], out[half + j]
        out[j] = a * cos[j] - b * sin[j]
        out[half + j] = b * cos[j] + a * sin[j]


@njit(cache=True, error_model="numpy")
def rope_queries(qkv, weight, cos, sin, positions, eps, q):
    dim = weight.shape[0]
    for r in range(qkv.shape[0]):
        p = positions[r]
        for h in range(q.shape[1]):
            turn(qkv[r, h * dim : (h + 1) * dim], weight, cos[p], sin[p], eps, q[r, h])


@njit(cache=True, error_model="numpy")
def slot_of(position, table, page):
    return table[(position // page) % table.shape[0]] * page + position % page


@njit(cache=True, error_model="numpy")
def write_kv(qkv, start, weight, cos, sin, positions, eps, keys, values, table, page, ring):
    """Keys from column `start`, values after them, or from the same columns where the projection ends there.

    keys [panels, kv_heads, dim, 64], values [panels, kv_heads, ceil(dim / 64), 64, 64]: panels of 64 slots, laid out
    so that both products of attention read them as the matmul reads weights.
    """
    dim, kv_heads = weight.shape[0], keys.shape[1]
    v_start = start if qkv.shape[1] == start + kv_heads * dim else start + kv_heads * dim
    turned = np.empty(dim, np.float32)
    for r in range(qkv.shape[0]):
        p = positions[r]
        slot = slot_of(p, table, page)
        panel, c = slot // PANEL, slot % PANEL
        for h in range(kv_heads):
            turn(qkv[r, start + h * dim : start + (h + 1) * dim], weight, cos[p], sin[p], eps, turned)
            v = qkv[r, v_start + h * dim : v_start + (h + 1) * dim]
            scale = inverse_rms(v, eps)
            for i in range(dim):
                keys[panel, h, i, c] = turned[i]
                values[panel, h, i // PANEL, c, i % PANEL] = v[i] * scale


@njit(cache=True, error_model="numpy", fastmath={"nnan", "reassoc"})
def _mask_panel(scores, start, newest, turn, first, last):
    """Hides what one row may not see among the 64 slots from `start`; returns the greatest score left.

    In a ring of `turn` slots, a slot after the newest token's still holds a token of the turn before.
    """
    peak = F32(-np.inf)
    newest_slot = np.int32(newest % turn if turn else newest)
    shift, back = np.int32(start) + np.int32(newest) - newest_slot, np.int32(turn)
    border, low, high = newest_slot - np.int32(start), np.int32(first), np.int32(last)
    for c in range(np.int32(PANEL)):
        position = np.int32(shift + c - (back if c > border else np.int32(0)))
        s = scores[c] if (position >= low) & (position <= high) else F32(-np.inf)
        scores[c] = s
        peak = max(peak, s)
    return peak


@njit(cache=True, error_model="numpy", fastmath=REDUCE)
def _panel_sum(scores, at):
    total = F32(0.0)
    for c in range(PANEL):
        total += scores[at + c]
    return total


@njit(cache=True, error_model="numpy")
def _weigh(scores, peak):
    """Scores to weights exp(score - peak), masked ones to exact zeros; returns one over their sum.

    The sum goes panel by panel: however many panels of zeros follow, it stays the same.
    """
    for i in range(scores.shape[0]):
        s = scores[i]
        weight = exp32(s - peak)
        scores[i] = weight if s > F32(-1e38) else F32(0.0)
    total = F32(0.0)
    for at in range(0, scores.shape[0], PANEL):
        total += _panel_sum(scores, at)
    return F32(1.0) / total


@njit(cache=True, error_model="numpy")
def _attend_tile(task, q, keys, values, table, page, ring, first, last, out):
    """Up to TILE (row, head) pairs that read one key/value head: scores, weights, and their sum of values.

    Panels of 64 slots are walked in slot order, which depends on positions alone; masked slots add exact zeros.
    A pair's result is therefore the same whichever others share the pass.
    """
    n, heads, dim = q.shape[0], q.shape[1], q.shape[2]
    group, kv_heads = heads // keys.shape[1], keys.shape[1]
    tiles = (n * group + TILE - 1) // TILE
    kv, start = task // tiles, (task % tiles) * TILE
    rows = min(n * group - start, TILE)
    low, high = first[start // group], last[(start + rows - 1) // group]
    begin, end = (0, page // PANEL) if ring else (low // PANEL, high // PANEL + 1)
    width, blocks = (end - begin) * PANEL, values.shape[2]
    x, scores = np.empty((rows, dim), np.float32), np.zeros((rows, width), np.float32)
    sums, peaks = np.zeros((rows, blocks * PANEL), np.float32), np.full(rows, F32(-np.inf))
    for i in range(rows):
        x[i] = q[(start + i) // group, kv * group + (start + i) % group]
    for j in range(begin, end):
        panel, at = (table[0] * (page // PANEL) + j if ring else table[j]), (j - begin) * PANEL
        panel_product(x, 0, dim, keys, (panel * kv_heads + kv) * dim * PANEL, dim, scores, at, width, rows)
        for i in range(rows):
            r = (start + i) // group
            peak = _mask_panel(scores[i, at : at + PANEL], j * PANEL, high, page if ring else 0, first[r], last[r])
            peaks[i] = max(peaks[i], peak)
    for i in range(rows):
        peaks[i] = _weigh(scores[i], peaks[i])
    for j in range(begin, end):
        panel, at = (table[0] * (page // PANEL) + j if ring else table[j]), (j - begin) * PANEL
        for d in range(blocks):
            w_at = ((panel * kv_heads + kv) * blocks + d) * PANEL * PANEL
            panel_product(scores, at, width, values, w_at, PANEL, sums, d * PANEL, blocks * PANEL, rows)
    for i in range(rows):
        r, column = (start + i) // group, (kv * group + (start + i) % group) * dim
        for d in range(dim):
            out[r, column + d] = sums[i, d] * peaks[i]


@njit(cache=True, error_model="numpy")
def tasks(q, keys):
    """How many tiles a pass of attention has."""
    return keys.shape[1] * ((q.shape[0] * (q.shape[1] // keys.shape[1]) + TILE - 1) // TILE)


@njit(cache=True, error_model="numpy")
def attention(q, keys, values, table, page, ring, first, last, out):
    for task in range(tasks(q, keys)):
        _attend_tile(task, q, keys, values, table, page, ring, first, last, out)


@njit(cache=True, parallel=True, error_model="numpy")
def attention_parallel(q, keys, values, table, page, ring, first, last, out):
    for task in prange(tasks(q, keys)):
        _attend_tile(task, q, keys, values, table, page, ring, first, last, out)


@njit(cache=True, error_model="numpy")
def gelu(x):
    """The tanh form: x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    u = F32(2.0 * 0.7978845608028654) * (x + F32(0.044715) * x * x * x)
    return x / (F32(1.0) + exp32(min(-u, F32(87.0))))


@njit(cache=True, error_model="numpy")
def geglu(gate_up, out):
    width = out.shape[1]
    for r in range(out.shape[0]):
        for i in range(width):
            out[r, i] = gelu(gate_up[r, i]) * gate_up[r, width + i]


@njit(cache=True, error_model="numpy")
def _product(x, w, columns):
    y = np.zeros((x.shape[0], columns), np.float32)
    matmul_serial(x, w, y)
    return y


@njit(cache=True, error_model="numpy")
def query_block(h, x, weights, norms, scalar, reach, rope, view, widths, eps, out_h, out_x):
    """A query-only layer; weights: (qkv, output, gate_up, down), norms in the order of their use."""
    qkv, output, gate_up, down = weights
    q_norm, post_attention, pre_mlp, post_mlp, following = norms
    positions, first, last = reach
    keys, values, table, page, ring = view
    heads, inner = widths
    n, dim, hidden = h.shape[0], q_norm.shape[0], h.shape[1]
    q = np.empty((n, heads, dim), np.float32)
    rope_queries(_product(x, qkv, heads * dim), q_norm, rope[0], rope[1], positions, eps, q)
    seen = np.empty((n, heads * dim), np.float32)
    attention(q, keys, values, table, page, ring, first, last, seen)
    middle, normed = np.empty_like(h), np.empty_like(h)
    add_norm(h, _product(seen, output, hidden), post_attention, pre_mlp, np.ones(1, np.float32), eps, middle, normed)
    act = np.empty((n, inner), np.float32)
    geglu(_product(normed, gate_up, 2 * inner), act)
    add_norm(middle, _product(act, down, hidden), post_mlp, following, scalar, eps, out_h, out_x)


@njit(cache=True, error_model="numpy")
def gate_ple(gate, ple, layer, out):
    for r in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[r, i] = gelu(gate[r, i]) * ple[r, layer, i]


@njit(cache=True, error_model="numpy")
def mix_ple(context, token, weight, scale, eps, out):
    dim, half = weight.shape[0], F32(math.sqrt(0.5))
    row = np.empty(dim, np.float32)
    for r in range(out.shape[0]):
        for layer in range(out.shape[1]):
            at = layer * dim
            for i in range(dim):
                row[i] = context[r, at + i] * F32(scale)
            s = inverse_rms(row, eps)
            for i in range(dim):
                out[r, layer, i] = (row[i] * s * weight[i] + token[r, at + i]) * half


@njit(cache=True, error_model="numpy")
def softcap(logits, cap, out):
    """cap * tanh(x / cap), tanh(z) = 1 - 2 / (1 + e^2z)."""
    twice = F32(2.0 / cap)
    for r in range(logits.shape[0]):
        for i in range(logits.shape[1]):
            e = exp32(min(max(logits[r, i] * twice, F32(-80.0)), F32(80.0)))
            out[r, i] = F32(cap) * (F32(1.0) - F32(2.0) / (F32(1.0) + e))
