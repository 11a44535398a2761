"""Gumbel noise as a function of (seed, position, id): `reference.philox_gumbel` on the device."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gumbel(seed_low, seed_high, position, ids):
    """Standard Gumbel noise, float64, of the shape of ids.

    Philox4x32-10, counter (id, position low, position high, 0), key (seed low, seed high). seed_low and seed_high are
    uint32, position an int64; ids count modulo 2^32.
    """
    c0 = ids.to(tl.uint32)
    c1 = tl.zeros_like(c0) + position.to(tl.uint32)
    c2 = tl.zeros_like(c0) + (position >> 32).to(tl.uint32)
    c3 = tl.zeros_like(c0)
    key0, key1 = seed_low.to(tl.uint64), seed_high.to(tl.uint64)
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ key0.to(tl.uint32), p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ key1.to(tl.uint32), p0.to(tl.uint32)
        # In 64 bits, though only the lower half counts: the interpreter warns of sums that wrap.
        key0, key1 = key0 + 0x9E3779B9, key1 + 0xBB67AE85
    bits = (c0.to(tl.uint64) << 21) | (c1.to(tl.uint64) >> 11)
    uniform = (bits.to(tl.float64) + 0.5) * 1.1102230246251565e-16  # 2^-53
    return -tl.log(-tl.log(uniform))


@triton.jit
def halves(seed):
    """The bits of an int64 seed as (low, high), uint32."""
    return seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
