"""Where the Triton kernels are tested: on the GPU where there is one, else under Triton's interpreter (fp32 only)."""

from __future__ import annotations

import torch

HAVE_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAVE_GPU else "cpu"
# The interpreter gets bf16 dots wrong, so without a GPU only the logic is tested, in fp32.
DTYPES = (torch.float32, torch.bfloat16) if HAVE_GPU else (torch.float32,)


def tolerance(dtype: torch.dtype) -> float:
    """Greatest relative error (Frobenius norm) a kernel may have against the fp32 reference."""
    return 1e-2 if dtype == torch.bfloat16 else 1e-5


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """|out - expected| / |expected|; infinite where out is not finite."""
    out, expected = out.double().cpu(), expected.double().cpu()
    if not torch.isfinite(out).all():
        return float("inf")
    return float((out - expected).norm() / expected.norm().clamp(min=1e-30))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    """Reproducible normal numbers on DEVICE, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)
