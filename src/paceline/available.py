"""Whether this machine has a GPU that serves, without importing Triton."""

from __future__ import annotations

import importlib.util
import warnings

import torch

from paceline.errors import UsageError

OLDEST = (8, 0)


def available() -> bool:
    """Whether the GPU engine would run here; never fails."""
    return not obstacle()


def check_device() -> str:
    """The GPU's name; raises UsageError with the mend where there is none that serves."""
    if why := obstacle():
        raise UsageError(f"device 'cuda' cannot be used: {why}; use device 'cpu'")
    return torch.cuda.get_device_name()


def obstacle() -> str:
    """Why the GPU engine cannot run here; empty where it can."""
    if importlib.util.find_spec("triton") is None:
        return "it needs Triton, which is not installed (pip install triton)"
    if torch.version.cuda is None:
        return "this PyTorch has no CUDA"
    if why := _silent_driver():
        return why
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        have, need = (".".join(map(str, c)) for c in (capability, OLDEST))
        return f"{torch.cuda.get_device_name()} has compute capability {have}, and Paceline needs {need} or newer"
    return ""


def _silent_driver() -> str:
    """Why PyTorch finds no GPU. It tells an old driver from none only in a warning, which would be a second line."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return ""
    if any("too old" in str(warning.message) for warning in said):
        return f"the NVIDIA driver is too old for CUDA {torch.version.cuda}, which this PyTorch was built for"
    return "there is no NVIDIA GPU, or its driver does not answer"
