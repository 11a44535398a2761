"""The CPU kernels that reshape rows before the temperature, compiled by Numba: `paceline.kernels.Ops` says how."""

import numpy as np
from numba import njit

from paceline.kernels.jit import F32


@njit(cache=True, error_model="numpy")
def _penalised(value, times, penalties):
    """`paceline.kernels.reference.penalised` of one token."""
    repetition, presence, frequency = penalties
    if repetition != 1.0:
        value = value * F32(repetition) if value < F32(0.0) else value / F32(repetition)
    if presence != 0.0 or frequency != 0.0:
        value -= F32((presence if times > 0 else 0.0) + frequency * times)
    return value


@njit(cache=True, error_model="numpy")
def _times_of(token, seen, times):
    for i in range(seen.shape[0]):
        if seen[i] == token:
            return times[i]
    return np.int64(0)


@njit(cache=True, error_model="numpy")
def _penalise(row, seen, times, penalties, draft):
    """Drafted tokens count too: their logits are taken before the others' change, and put back at the end."""
    own = np.empty(draft.shape[0], np.float32)
    for i in range(draft.shape[0]):
        count = _times_of(draft[i], seen, times)
        for token in draft:
            count += np.int64(token == draft[i])
        own[i] = _penalised(row[draft[i]], count, penalties)
    for i in range(seen.shape[0]):
        row[seen[i]] = _penalised(row[seen[i]], times[i], penalties)
    for i in range(draft.shape[0]):
        row[draft[i]] = own[i]


@njit(cache=True, error_model="numpy")
def _reshape_row(row, bias, ends, history, penalties, draft):
    ids, values = bias
    for i in range(ids.shape[0]):
        row[ids[i]] += values[i]
    seen, times, missing = history
    if penalties[0] != 1.0 or penalties[1] != 0.0 or penalties[2] != 0.0:
        _penalise(row, seen, times, penalties, draft)
    if draft.shape[0] < missing:
        for token in ends:
            row[token] = F32(-np.inf)


@njit(cache=True, error_model="numpy")
def reshape(rows, bias, ends, history, penalties, draft):
    for r in range(rows.shape[0]):
        before = max(draft.shape[0] - rows.shape[0] + 1 + r, 0)
        _reshape_row(rows[r], bias, ends, history, penalties, draft[:before])


@njit(cache=True, error_model="numpy")
def reshape_part(x, columns, vocab, bias, ends, history, penalties, draft):
    """A row of the whole vocabulary lends each of the columns its place; what else it holds is nobody's."""
    row = np.empty(vocab, np.float32)
    for i in range(x.shape[0]):
        row[columns[i]] = x[i]
    _reshape_row(row, bias, ends, history, penalties, draft)
    for i in range(x.shape[0]):
        x[i] = row[columns[i]]


@njit(cache=True, error_model="numpy")
def _permit_word(x, word, out):
    for i in range(np.int32(32)):
        out[i] = x[i] if word & (np.uint32(1) << np.uint32(i)) else F32(-np.inf)


@njit(cache=True, error_model="numpy")
def permit(x, bits, out):
    for r in range(x.shape[0]):
        for word in range(x.shape[1] // 32):
            _permit_word(x[r, 32 * word : 32 * word + 32], bits[r, word], out[r, 32 * word : 32 * word + 32])
        for i in range(x.shape[1] // 32 * 32, x.shape[1]):
            out[r, i] = x[r, i] if bits[r, i // 32] >> np.uint32(i % 32) & np.uint32(1) else F32(-np.inf)


@njit(cache=True, error_model="numpy")
def permit_part(x, columns, bits, out):
    """Returns whether any token is left."""
    left = False
    for i in range(x.shape[1]):
        column = columns[0, i]
        allowed = (bits[0, column // 32] >> np.uint32(column % 32)) & np.uint32(1)
        out[0, i] = x[0, i] if allowed else F32(-np.inf)
        left |= out[0, i] > F32(-np.inf)
    return left
