"""A GPU as far as anybody asks, so that what is refused on one can be tested without it."""

from __future__ import annotations

import importlib.util

import pytest
import torch

GB = 10**9


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), free: int = 80 * GB) -> None:
    """Triton, and a GPU with so many bytes free."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "triton" else real(name))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
