"""Captured rounds: how many are kept."""

from __future__ import annotations

import pytest
import torch

from paceline.device import graphs
from paceline.device.round import Shape


def test_captured_rounds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently wanted graph goes first, and is captured anew when it is wanted again."""

    class Model:
        def round(self, shape: Shape, rehearsal: bool = False) -> None: ...

    class Graph:
        def replay(self) -> None: ...

    captured: list[Shape] = []
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    own = graphs.Graphs(Model())  # type: ignore[arg-type]
    monkeypatch.setattr(own, "_capture", lambda call: (Graph(), captured.append(wanted)))
    for batch in (1, 2, 1, 4, 1, 2):
        wanted = Shape(batch, 0, "greedy", 1024)
        own.round(wanted)
    assert [shape.batch for shape in captured] == [1, 2, 4, 2]
    assert len(own.kept) == 2
