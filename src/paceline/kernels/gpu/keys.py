"""Sortable keys: a value and its column in one integer, so that order and ties are settled by integer comparison.

A key holds the value's 32 bits, made monotone, above COLUMN_BITS bits of the inverted column: of two equal values the
one in the lower column has the greater key, and no two keys of a row are equal. Keys are never negative.
"""

from __future__ import annotations

import triton
import triton.language as tl

MAX_COLUMNS = 1 << 20
COLUMN_BITS = tl.constexpr(20)
LAST_COLUMN = tl.constexpr(MAX_COLUMNS - 1)
NO_KEY = tl.constexpr(-MAX_COLUMNS)  # less than every key; its column lies past every row's end


@triton.jit
def clean(x):
    """fp32 as comparisons want it: NaN counts as minus infinity, and there is one zero."""
    x = tl.where(x == x, x, float("-inf"))
    return tl.where(x == 0.0, 0.0, x)


@triton.jit
def rank_of(x):
    """The bits of clean fp32 values as int32 numbers in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def pack(x, columns):
    """The int64 keys of clean fp32 values."""
    return ((rank_of(x).to(tl.int64) + 2147483648) << COLUMN_BITS) | (columns ^ LAST_COLUMN)


@triton.jit
def value_of(key):
    """The value in a key that is not NO_KEY, fp32."""
    rank = ((key >> COLUMN_BITS) - 2147483648).to(tl.int32)
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def lead_of(keys):
    """(the greatest key, how far its value is above those of all others); NO_KEY counts for nothing."""
    first = tl.max(keys, 0)
    second = tl.max(tl.where(keys == first, NO_KEY, keys), 0)
    value = tl.where(second >= 0, value_of(tl.maximum(second, 0)), float("-inf"))
    return first, lead_over(value_of(first), value)


@triton.jit
def lead_over(first, second):
    """How far `first` is above `second`; infinity above what is minus infinity."""
    some = second > float("-inf")
    return tl.where(some, first - tl.where(some, second, 0.0), float("inf"))


@triton.jit
def column_of(keys):
    """The columns in keys, int32."""
    return (keys & LAST_COLUMN).to(tl.int32) ^ LAST_COLUMN
