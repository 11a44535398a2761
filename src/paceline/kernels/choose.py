"""The CPU kernels that draw tokens and test drafts, compiled by Numba. Shapes are documented in `paceline.kernels.Ops`.

For developers: Numba keeps compiled functions on disk until the file that defines them changes. Functions here inline
some of jit.py and pick.py, so touch this file after an edit there.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types, vectorize
from numba.extending import intrinsic

from paceline.kernels.pick import desk, greatest, top_row

HALF, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
CHUNK = 128  # noise is computed for so many tokens at a time


@njit(cache=True, error_model="numpy", inline="always")
def _uniform(seed, position, token, word):
    """Whole 64-bit words throughout, of which the lower halves count: so loops over it become vector code."""
    c0, c1, c2, c3 = token & HALF, position & HALF, position >> SHIFT, word & HALF
    k0, k1 = seed & HALF, seed >> SHIFT
    for _ in range(10):
        p0, p1 = (c0 & HALF) * np.uint64(0xD2511F53), (c2 & HALF) * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> SHIFT) ^ c1 ^ k0, p1 & HALF, (p0 >> SHIFT) ^ c3 ^ k1, p0 & HALF
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & HALF, (k1 + np.uint64(0xBB67AE85)) & HALF
    return (float((c0 << np.uint64(21)) | (c1 >> np.uint64(11))) + 0.5) * 2.0**-53


@vectorize(["float64(uint64, uint64, uint64, uint64)"], cache=True)
def philox_uniform(seed, position, token, word):
    """`paceline.kernels.reference.philox_uniform`, without temporaries."""
    return _uniform(seed, position, token, word)


@njit(cache=True, error_model="numpy")
def philox_gumbel(seed, position, ids, out):
    """`paceline.kernels.reference.philox_gumbel`, without temporaries."""
    for i in range(ids.shape[0]):
        out[i] = -math.log(-math.log(_uniform(seed, position, np.uint64(ids[i]), np.uint64(0))))


@intrinsic
def _bits(_context, x):
    """A float64's bits as an int64."""
    return types.int64(types.float64), lambda context, b, signature, args: b.bitcast(args[0], ir.IntType(64))


@njit(cache=True, error_model="numpy")
def _ceiling(uniform):
    """No less than -log(-log(uniform)): -log u is at least 1 - u, and its logarithm is bounded by the exponent."""
    return 1e-6 - float((_bits(1.0 - uniform) >> 52) - 1023) * 0.6931471805599454


@njit(cache=True, error_model="numpy")
def _race(scores, ids, count, key, word):
    """The index of the greatest score + Gumbel noise, the first of equals; 0 where all scores are minus infinity.

    Noise that cannot win is left uncomputed: most tokens need no logarithm. key: (seed, position).
    """
    best, chosen, uniforms = -math.inf, 0, np.empty(CHUNK)
    for start in range(0, count, CHUNK):
        length = min(CHUNK, count - start)
        for i in range(length):
            uniforms[i] = _uniform(key[0], key[1], np.uint64(ids[start + i]), word)
        for i in range(length):
            score = scores[start + i]
            if score + _ceiling(uniforms[i]) > best:
                score += -math.log(-math.log(uniforms[i]))
                if score > best:
                    best, chosen = score, start + i
    return chosen


@njit(cache=True, error_model="numpy")
def _left(scores, peak, top_p):
    """How many of the descending scores top-p leaves."""
    if not top_p < 1.0:
        return scores.shape[0]
    total, held, kept = 0.0, 0.0, 0
    for i in range(scores.shape[0]):
        total += math.exp(scores[i] - peak)
    while kept < scores.shape[0] and (kept == 0 or held < top_p * total):
        held += math.exp(scores[kept] - peak)
        kept += 1
    return kept


@njit(cache=True, error_model="numpy")
def _cut(values, names, cuts, scores):
    """Scores of a row's logits; returns how many the cuts leave, which then come first, and the peak."""
    temperature, top_p, min_p = cuts
    for i in range(values.shape[0]):
        scores[i] = values[i] / temperature
    peak = greatest(values) / temperature
    count = _left(scores, peak, top_p)
    if not min_p > 0.0:
        return count, peak
    least, kept = peak + math.log(min_p), 0
    for i in range(count):
        if scores[i] >= least:
            scores[kept], names[kept], names[i] = scores[i], names[i], names[kept]
            kept += 1
    return kept, peak


@njit(cache=True, error_model="numpy")
def _list(row, own, ranked, values, names, room):
    """Logits of a row and their tokens: the greatest, likeliest first, where ranked; or all, as they come.

    own: the tokens that the columns stand for; empty where they are their own.
    """
    if ranked:
        top_row(row, names, values, room)
    else:
        for i in range(row.shape[0]):
            values[i], names[i] = row[i], i
    if own.shape[0] > 0:
        for i in range(names.shape[0]):
            names[i] = own[names[i]]


@njit(cache=True, error_model="numpy")
def draw(x, own, count, cuts, key, draft, out):
    """`paceline.kernels.reference.TorchOps.draw`; returns how many rows have a token.

    count: of logits that top-k leaves; 0 where rows are taken whole.
    """
    width, room = count if count > 0 else x.shape[1], desk(x.shape[1])
    values, names, scores = np.empty(width, np.float32), np.empty(width, np.int64), np.empty(width)
    for r in range(x.shape[0]):
        _list(x[r], own[r % own.shape[0]], count > 0, values, names, room)
        if cuts[0] == 0.0:
            out[r] = names[0]
        else:
            left, _ = _cut(values, names, cuts, scores)
            out[r] = names[_race(scores, names, left, (key[0], key[1] + np.uint64(r)), np.uint64(0))]
        if r < draft.shape[0] and out[r] != draft[r]:
            return r + 1
    return x.shape[0]


@njit(cache=True, error_model="numpy")
def laws(x, own, count, cuts, names, chances):
    """`paceline.kernels.reference.TorchOps.laws`; count as in `draw`."""
    width, room = names.shape[1], desk(x.shape[1])
    values, scores = np.empty(width, np.float32), np.empty(width)
    for r in range(x.shape[0]):
        _list(x[r], own[r % own.shape[0]], count > 0, values, names[r], room)
        left, peak = _cut(values, names[r], cuts, scores)
        total, law = 0.0, chances[r]
        for i in range(left):
            law[i] = math.exp(scores[i] - peak)
            total += law[i]
        law[:left] /= total
        law[left:] = 0.0


@njit(cache=True, error_model="numpy")
def draw_law(law, ids, key, word):
    """The column that `paceline.verification.draw` takes by the noise of `key` = (seed, position) and `word`."""
    scores = np.empty(law.shape[0])
    for i in range(law.shape[0]):
        scores[i] = math.log(law[i]) if law[i] > 0.0 else -math.inf
    return _race(scores, ids, law.shape[0], key, word)


@njit(cache=True, error_model="numpy")
def _chance(laws, j, token):
    ids, law = laws
    for i in range(ids.shape[1]):
        if ids[j, i] == token and law[j, i] > 0.0:
            return law[j, i]
    return 0.0


@njit(cache=True, error_model="numpy")
def _residual(q, p, j, weight, table, left):
    """max(weight p - q, 0) of the tokens that p knows, and their sum; table: zeros for all tokens, and again after."""
    (q_ids, q_law), (p_ids, p_law), mass = q, p, 0.0
    for i in range(q_ids.shape[1]):
        table[q_ids[j, i]] += q_law[j, i]
    for i in range(p_ids.shape[1]):
        left[i] = max(weight * p_law[j, i] - table[p_ids[j, i]], 0.0)
        mass += left[i]
    for i in range(q_ids.shape[1]):
        table[q_ids[j, i]] = 0.0
    return mass


@njit(cache=True, error_model="numpy")
def _leading(ratios, uniforms):
    """How many drafts pass before the first that does not."""
    for j in range(ratios.shape[0]):
        if not uniforms[j] < min(ratios[j], 1.0):
            return j
    return ratios.shape[0]


@njit(cache=True, error_model="numpy")
def _longest(q, p, ratios, uniforms, table, left):
    """How many drafts the last that passes its block has, and the weight of the target's law after them."""
    kept, kept_weight, weight, k = 0, 1.0, 1.0, ratios.shape[0]
    for j in range(k):
        weight = min(weight * ratios[j], 1.0)
        accept = weight
        if j + 1 < k:
            mass = _residual(q, p, j + 1, weight, table, left)
            total = mass + (1.0 - weight)
            accept = mass / total if total > 0.0 else 1.0
        if uniforms[j] < accept:
            kept, kept_weight = j + 1, weight
    return kept, kept_weight


@njit(cache=True, error_model="numpy")
def settle(block, draft, words, key, q, p):
    """`paceline.verification.verify` in "rejection" or "block" mode, over laws that know a few tokens each.

    draft: tokens [k]; q and p: (ids, chances) [k, ..] and [k + 1, ..] of the drafts and of the target; key: (seed,
    position of the round's first token); words: noise of the first test and of the token that follows. Returns how
    many drafts stay and that token; or -1 and the number of a draft that its law rules out.
    """
    k, (ids, law) = draft.shape[0], p
    table, left = np.zeros(1 + max(ids.max(), q[0].max() if k else 0)), np.empty(ids.shape[1])
    ratios, uniforms = np.empty(k), np.empty(k)
    for j in range(k):
        drawn = _chance(q, j, draft[j])
        if not drawn > 0.0:
            return -1, j
        ratios[j] = _chance(p, j, draft[j]) / drawn
        uniforms[j] = _uniform(key[0], key[1], np.uint64(0), words[0] + np.uint64(256 * j))
    kept, weight = _longest(q, p, ratios, uniforms, table, left) if block else (_leading(ratios, uniforms), 1.0)
    # Without a residual the laws agree, and only a rounding error can ask for this token.
    whole = kept == k or not _residual(q, p, kept, weight, table, left) > 0.0
    return kept, ids[kept, draw_law(law[kept] if whole else left, ids[kept], key, words[1])]
