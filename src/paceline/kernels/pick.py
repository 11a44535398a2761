"""The CPU kernels that look up and rank, compiled by Numba. Shapes are documented in `paceline.kernels.Ops`.

For developers: Numba keeps compiled functions on disk until the file that defines them changes. Functions here inline
some of jit.py, so touch this file after an edit there.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from paceline.kernels.jit import F32, REDUCE, bits_to_f32, dot, exp32
from paceline.kernels.simd import PANEL

# Entries are compared, never computed with: which of two equal zeros is the greater does not matter.
ORDER = {"nnan", "nsz", "reassoc"}
# `top` takes the greatest of every GROUP // LANES entries first, bisects for its bound, and ranks less than ROOM.
LANES, GROUP, HALVINGS, ROOM = 16, 256, 12, 512
LAST = 0xFFFFFFFF  # the greatest index that a key has room for


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


@intrinsic
def _bits(_context, x):
    """A float32's bits as an int32."""
    return types.int32(types.float32), lambda context, b, signature, args: b.bitcast(args[0], ir.IntType(32))


@njit(cache=True, error_model="numpy", fastmath=ORDER)
def peaks_of(row, peaks):
    """peaks[16 g + lane]: the greatest of the entries 256 g + lane, 256 g + lane + 16, ..., as vectors have them."""
    whole = row.shape[0] // GROUP
    for g in range(whole):
        for lane in range(LANES):
            peak = row[g * GROUP + lane]
            for j in range(1, GROUP // LANES):
                peak = max(peak, row[g * GROUP + j * LANES + lane])
            peaks[g * LANES + lane] = peak
    peaks[whole * LANES :] = F32(-np.inf)
    for i in range(whole * GROUP, row.shape[0]):
        at = whole * LANES + i % LANES
        peaks[at] = max(peaks[at], row[i])


@njit(cache=True, error_model="numpy", fastmath=ORDER)
def greatest(row):
    peak = F32(-np.inf)
    for i in range(row.shape[0]):
        peak = max(peak, row[i])
    return peak


@njit(cache=True, error_model="numpy", fastmath=ORDER)
def _least_possible(row):
    """The least entry above minus infinity."""
    least = F32(np.inf)
    for i in range(row.shape[0]):
        least = min(least, row[i] if row[i] > F32(-np.inf) else F32(np.inf))
    return least


@njit(cache=True, error_model="numpy")
def _reaching(row, bound):
    """How many entries are `bound` or more."""
    count = np.int32(0)
    for i in range(np.int32(row.shape[0])):
        count += np.int32(row[i] >= bound)
    return count


@njit(cache=True, error_model="numpy")
def _bound(row, count):
    """A value that at least `count` entries reach and few more; minus infinity where too few are above that."""
    low, high = _least_possible(row), greatest(row)
    if _reaching(row, low) < count:
        return F32(-np.inf)
    for _ in range(HALVINGS):
        middle = low + (high - low) * F32(0.5)
        if _reaching(row, middle) >= count:
            low = middle
        else:
            high = middle
    return low


@njit(cache=True, error_model="numpy")
def _key(value, i):
    """A number that is greater for a greater value, and for the lower index of two equal ones; it ends with i."""
    bits = _bits(value + F32(0.0))  # the two zeros are equal
    bits ^= (bits >> np.int32(31)) & np.int32(0x7FFFFFFF)
    return (np.int64(bits) << np.int64(32)) | np.int64(LAST - i)


@njit(cache=True, error_model="numpy")
def _candidates(row, peaks, bound, keys):
    """Keys of the entries that are `bound` or more, as many as there is room for; returns how many."""
    found = 0
    for p in range(peaks.shape[0]):
        if peaks[p] >= bound:
            start, stop = p // LANES * GROUP, min((p // LANES + 1) * GROUP, row.shape[0])
            for i in range(start + p % LANES, stop, LANES):
                if row[i] >= bound and found < keys.shape[0]:
                    keys[found] = _key(row[i], i)
                    found += 1
    return found


@njit(cache=True, error_model="numpy")
def _place(keys, row, ids, values):
    """Each candidate at its rank, counted: no branch, so a vector of them at a time."""
    for i in range(keys.shape[0]):
        rank, key = np.int64(0), keys[i]
        for j in range(keys.shape[0]):
            rank += np.int64(keys[j] > key)
        if rank < ids.shape[0]:
            at = LAST - (key & np.int64(LAST))
            ids[rank], values[rank] = at, row[at]


@njit(cache=True, error_model="numpy")
def _insert(row, ids, values):
    """Insertion into a sorted short list: for rows that have too many equal entries or too few possible ones."""
    filled, count = 0, ids.shape[0]
    for i in range(row.shape[0]):
        value = row[i]
        if filled == count and not value > values[count - 1]:
            continue
        at = min(filled, count - 1)
        while at > 0 and value > values[at - 1]:
            values[at], ids[at] = values[at - 1], ids[at - 1]
            at -= 1
        values[at], ids[at] = value, i
        filled = min(filled + 1, count)


@njit(cache=True, error_model="numpy")
def _first(row, peaks):
    """Where the greatest entry stands first."""
    peak = greatest(peaks)
    for p in range(peaks.shape[0]):
        if peaks[p] == peak:
            for i in range(p // LANES * GROUP, row.shape[0]):
                if row[i] == peak:
                    return i
    return 0


@njit(cache=True, error_model="numpy")
def desk(width):
    """Where `top_row` works: room for the peaks and for the keys of candidates."""
    return np.empty(-(-width // GROUP) * LANES, np.float32), np.empty(ROOM, np.int64)


@njit(cache=True, error_model="numpy")
def top_row(row, ids, values, room):
    """Two passes: the greatest of every 16 entries, then only the sixteens that hold one of the candidates.

    As many peaks as are wanted reach the bound, so at least as many entries do. Rows with few peaks are searched for it
    themselves.
    """
    peaks, keys = room
    count = ids.shape[0]
    peaks_of(row, peaks)
    if count == 1:
        ids[0] = _first(row, peaks)
        values[0] = row[ids[0]]
        return
    bound = _bound(peaks if peaks.shape[0] >= 2 * count else row, count)
    found = _candidates(row, peaks, bound, keys)
    if count <= found < ROOM:
        _place(keys[:found], row, ids, values)
    else:
        _insert(row, ids, values)


@njit(cache=True, error_model="numpy")
def top(x, ids, values):
    room = desk(x.shape[1])
    for r in range(x.shape[0]):
        top_row(x[r], ids[r], values[r], room)


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
    top(scores, ids, weights)
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
