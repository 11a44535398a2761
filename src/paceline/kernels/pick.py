"""The CPU kernels that look up, rank and draw, compiled by Numba. Shapes are documented in `paceline.kernels.Ops`.

For developers: Numba keeps compiled functions on disk until the file that defines them changes. Functions here inline
some of jit.py, so touch this file after an edit there.
"""

import math

import numpy as np
from numba import njit, vectorize

from paceline.kernels.jit import F32, REDUCE, bits_to_f32, dot, exp32
from paceline.kernels.simd import PANEL


@njit(cache=True, error_model="numpy")
def embed_panels(panels, ids, scale, out):
    """Rows of a weight stored in panels of fp32."""
    for r in range(ids.shape[0]):
        p, c = ids[r] // PANEL, ids[r] % PANEL
        for k in range(out.shape[1]):
            out[r, k] = panels[p, k, c] * F32(scale)


@njit(cache=True, error_model="numpy")
def embed_panels_bf16(panels, ids, scale, out):
    for r in range(ids.shape[0]):
        p, c = ids[r] // PANEL, ids[r] % PANEL
        for k in range(out.shape[1]):
            out[r, k] = bits_to_f32(np.int32(np.uint32(panels[p, k, c]) << np.uint32(16))) * F32(scale)


@njit(cache=True, error_model="numpy")
def embed_rows(table, ids, scale, out):
    for r in range(ids.shape[0]):
        for k in range(out.shape[1]):
            out[r, k] = table[ids[r], k] * F32(scale)


@njit(cache=True, error_model="numpy")
def embed_rows_bf16(table, ids, scale, out):
    for r in range(ids.shape[0]):
        for k in range(out.shape[1]):
            out[r, k] = bits_to_f32(np.int32(np.uint32(table[ids[r], k]) << np.uint32(16))) * F32(scale)


@njit(cache=True, error_model="numpy", fastmath=REDUCE)
def _dot_bf16(x, bits):
    total = F32(0.0)
    for i in range(x.shape[0]):
        total += x[i] * bits_to_f32(np.int32(np.uint32(bits[i]) << np.uint32(16)))
    return total


@njit(cache=True, error_model="numpy")
def gather_linear(x, table, ids, out):
    for r in range(ids.shape[0]):
        for i in range(ids.shape[1]):
            out[r, i] = dot(x[r], table[ids[r, i]])


@njit(cache=True, error_model="numpy")
def gather_linear_bf16(x, table, ids, out):
    for r in range(ids.shape[0]):
        for i in range(ids.shape[1]):
            out[r, i] = _dot_bf16(x[r], table[ids[r, i]])


@njit(cache=True, error_model="numpy")
def top(x, count, ids, values):
    """Insertion into a sorted short list: one comparison for almost every entry."""
    for r in range(x.shape[0]):
        filled = 0
        for i in range(x.shape[1]):
            value = x[r, i]
            if filled == count and not value > values[r, count - 1]:
                continue
            at = min(filled, count - 1)
            while at > 0 and value > values[r, at - 1]:
                values[r, at], ids[r, at] = values[r, at - 1], ids[r, at - 1]
                at -= 1
            values[r, at], ids[r, at] = value, i
            filled = min(filled + 1, count)


@njit(cache=True, error_model="numpy", fastmath=REDUCE | {"nnan"})
def confidence(logits):
    peak, total = F32(-np.inf), F32(0.0)
    for i in range(logits.shape[0]):
        peak = max(peak, logits[i])
    for i in range(logits.shape[0]):
        total += exp32(logits[i] - peak)
    return F32(1.0) / total


@njit(cache=True, error_model="numpy")
def route(scores, expert_scale, ids, weights):
    """Softmax of the chosen scores equals the renormalised softmax of all."""
    top(scores, ids.shape[1], ids, weights)
    for r in range(ids.shape[0]):
        total, peak = F32(0.0), weights[r, 0]
        for i in range(ids.shape[1]):
            weights[r, i] = exp32(weights[r, i] - peak)
            total += weights[r, i]
        for i in range(ids.shape[1]):
            weights[r, i] = weights[r, i] / total * expert_scale[ids[r, i]]


@njit(cache=True, error_model="numpy")
def combine(parts, weights, out):
    """out[r] = sum over rank of weights[r, rank] * parts[r, rank], in rank order."""
    out[:] = F32(0.0)
    for r in range(out.shape[0]):
        for rank in range(weights.shape[1]):
            for i in range(out.shape[1]):
                out[r, i] += weights[r, rank] * parts[r, rank, i]


@njit(cache=True, error_model="numpy")
def _multiply_words(a, b):
    product = np.uint64(a) * np.uint64(b)
    return np.uint32(product >> np.uint64(32)), np.uint32(product & np.uint64(0xFFFFFFFF))


@njit(cache=True, error_model="numpy")
def philox_gumbel(seed, position, ids, out):
    """`paceline.kernels.reference.philox_gumbel`, without temporaries."""
    for i in range(ids.shape[0]):
        out[i] = -math.log(-math.log(_uniform(seed, position, np.uint64(ids[i]), np.uint64(0))))


@njit(cache=True, error_model="numpy")
def _uniform(seed, position, token, word):
    c0, c1, c2, c3 = np.uint32(token), np.uint32(position), np.uint32(position >> np.uint64(32)), np.uint32(word)
    k0, k1 = np.uint32(seed), np.uint32(seed >> np.uint64(32))
    for _ in range(10):
        h0, l0 = _multiply_words(c0, np.uint32(0xD2511F53))
        h1, l1 = _multiply_words(c2, np.uint32(0xCD9E8D57))
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
    bits = (np.uint64(c0) << np.uint64(21)) | (np.uint64(c1) >> np.uint64(11))
    return (float(bits) + 0.5) * 2.0**-53


@njit(cache=True, error_model="numpy")
def draw(values, ids, temperature, top_p, min_p, seed, position):
    """`paceline.kernels.reference.TorchOps.draw`, without temporaries."""
    count, peak = values.shape[0], np.max(values) / temperature
    if top_p < 1.0:
        total = 0.0
        for i in range(count):
            total += math.exp(values[i] / temperature - peak)
        held, kept = 0.0, 0
        while kept < count and (kept == 0 or held < top_p * total):
            held += math.exp(values[kept] / temperature - peak)
            kept += 1
        count = kept
    least = peak + math.log(min_p) if min_p > 0.0 else -math.inf
    best, chosen = -math.inf, ids[0]
    for i in range(count):
        score = values[i] / temperature
        if score < least:
            continue
        score += -math.log(-math.log(_uniform(seed, position, np.uint64(ids[i]), np.uint64(0))))
        if score > best:
            best, chosen = score, ids[i]
    return chosen


@vectorize(["float64(uint64, uint64, uint64, uint64)"], cache=True)
def philox_uniform(seed, position, token, word):
    """`paceline.kernels.reference.philox_uniform`, without temporaries."""
    return _uniform(seed, position, token, word)
