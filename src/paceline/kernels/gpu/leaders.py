"""The k greatest of many without sorting them: their range is cut in three until one threshold leaves just k.

The winners' indices are then listed in ascending order. Nothing but integers is compared and counted: the set is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from paceline.kernels.gpu.keys import rank_of

NOTHING = tl.constexpr(-(2**31))  # the rank of what is not there
LOWEST = tl.constexpr(-2139095041)  # the rank of minus infinity
NOWHERE = tl.constexpr(1 << 20)  # an index past the end of everything


@triton.jit
def list_leaders(ranks, index, limit, low, high, at):
    """Lists the `limit` greatest of int32 ranks [N], N < 2^15, by their `index` [N], in order; of equals the first win.

    Where fewer ranks reach `low`, those are listed; all must lie below high. low and high are int64 scalars. Returns
    (how many were listed, a rank that all of them reach). Other threads may read the list at once.
    """
    above = limit * 0  # how many ranks reach high; `least` is how many reach low
    least = tl.reduce((ranks >= low.to(tl.int32)).to(tl.int32), 0, tl.standard._sum_combine)
    while (high - low > 1) & (least > limit):
        third = (high - low + 2) // 3
        a, b = low + third, tl.minimum(low + 2 * third, high - 1)
        both = (ranks >= a.to(tl.int32)).to(tl.int32) + (ranks >= b.to(tl.int32)).to(tl.int32) * 65536
        counts = tl.reduce(both, 0, tl.standard._sum_combine)
        at_a, at_b = counts & 65535, counts >> 16
        if at_b >= limit:
            low, least = b, at_b
        elif at_a >= limit:
            low, least, high, above = a, at_a, b, at_b
        else:
            high, above = a, at_a
    sure = ranks >= high.to(tl.int32)
    tied = (ranks >= low.to(tl.int32)) & (sure == 0)
    running = tl.cumsum(sure.to(tl.int32) * 65536 + tied.to(tl.int32), 0)
    ties, room = running & 65535, limit - above
    tl.store(at + (running >> 16) + tl.minimum(ties, room) - 1, index, sure | (tied & (ties <= room)))
    tl.debug_barrier()
    return tl.minimum(limit, least), low


@triton.jit
def listed(at, count, K: tl.constexpr):
    """The first K entries of a list of `count`, NOWHERE past its end."""
    lane = tl.arange(0, K)
    return tl.load(at + lane, lane < count, other=NOWHERE)


@triton.jit
def ceiling(ranks):
    """What all ranks lie below, int64."""
    return tl.maximum(tl.reduce(ranks, 0, tl.standard._elementwise_max), LOWEST).to(tl.int64) + 1


@triton.jit
def ranks_of(x, there):
    """The ranks of clean fp32 values, NOTHING where there is none."""
    return tl.where(there, rank_of(x), NOTHING)
