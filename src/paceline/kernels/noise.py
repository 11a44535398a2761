"""Uniform noise on the host, the same bits either way: compiled where Numba is installed, else NumPy."""

from __future__ import annotations

import importlib.util

import numpy as np

from paceline.kernels.reference import Words
from paceline.kernels.reference import philox_uniform as plain

COMPILED = importlib.util.find_spec("numba") is not None


def philox_uniform(seed: Words, position: Words, ids: np.ndarray, word: Words = 0) -> np.ndarray:
    """`paceline.kernels.reference.philox_uniform`."""
    if not COMPILED:
        return plain(seed, position, ids, word)
    from paceline.kernels import choose

    drawn: np.ndarray = choose.philox_uniform(*(np.asarray(x, dtype=np.uint64) for x in (seed, position, ids, word)))
    return drawn
