"""What the driver that times int8 tiles takes over, and what it leaves alone; nothing is timed here."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import cuda_int8_tiles as driver
import cuda_tiles

BF16 = {"rows": 1024, "cols": 4096, "gated": False, "tile": [64, 256, 8, 3, 4, 2], "wide": [[32, 64, 64, 4, 4, 0]]}
OLD = {"rows": 1024, "cols": 4096, "gated": False, "int8": True, "tile": [64, 64, 1, 4, 4, 2]}
OTHER = {**OLD, "cols": 8192}


def measured(us: float) -> dict[str, Any]:
    """A weight whose own tile takes `us` in bf16's tile 10."""
    key = {"rows": 1024, "cols": 4096, "gated": False}
    return {**key, "same_us": 10.0, "tried": [[us, 16, 128, 8, 4, 4, 2], [11.0, 64, 128, 8, 4, 4, 2]]}


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tuned.json"
    monkeypatch.setattr(cuda_tiles, "TUNED", path)
    cuda_tiles.write_tuned([BF16, OLD, OTHER])
    return path


@pytest.mark.parametrize(("us", "taken"), [(9.0, True), (9.9, False), (10.5, False)])
def test_a_tile_is_adopted_where_it_is_faster(tuned: Path, tmp_path: Path, us: float, taken: bool) -> None:
    record = tmp_path / "measured.json"
    record.write_text(json.dumps({"weights": [measured(us)]}), encoding="utf-8")
    driver.adopt(record)
    own = {**OLD, "tile": [16, 128, 8, 4, 4, 2]}
    assert json.loads(tuned.read_text(encoding="utf-8")) == [BF16, OTHER, *([own] if taken else [])]


def test_tiles_of_bf16_leave_those_of_int8(tuned: Path, tmp_path: Path) -> None:
    record = tmp_path / "measured.json"
    new = {**BF16, "tile": [64, 128, 4, 4, 4, 2]}
    record.write_text(json.dumps({"tiles": [new], "wide": []}), encoding="utf-8")
    cuda_tiles.adopt(record)
    del new["wide"]
    assert json.loads(tuned.read_text(encoding="utf-8")) == [new, OLD, OTHER]


def test_bodies_are_whole_and_their_tiles_fit() -> None:
    found = driver.body_weights(["31b"])
    assert (1024, 2 * 5376, False) in found
    assert (5376, 1024, False) in found
    assert not any(rows == 262144 for rows, _, _ in found)
    for _, cols, gated in found:
        tiles = driver.candidates(cols, gated)
        assert {t.bn for t in tiles} == {16, 32, 64}
        assert all(cols % t.bk == 0 and (t.split == 1 or not gated) for t in tiles)
