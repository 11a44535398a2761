"""Functions that Triton's interpreter lacks, exact to fp32 rounding."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(u):
    """Hyperbolic tangent: a series near zero, where the exponentials would cancel, and exponentials elsewhere."""
    s = u * u
    series = u * (1.0 + s * (-0.33333333 + s * (0.13333333 + s * (-0.053968254 + s * 0.021869488))))
    e = tl.exp(-2.0 * tl.abs(u))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(s < 0.09, series, tl.where(u < 0.0, -far, far))


@triton.jit
def gelu_tanh(u):
    """The tanh approximation of GELU: u (1 + tanh t) / 2, which equals u / (1 + exp(-2 t))."""
    t = 0.7978845608028654 * (u + 0.044715 * u * u * u)
    return u / (1.0 + tl.exp(tl.minimum(-2.0 * t, 80.0)))
