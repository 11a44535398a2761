"""What several test files share: the tiny checkpoints, and the models read from them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # importing these takes seconds, and most test files need neither
    from families import Pair
    from zoo import Model


@pytest.fixture
def quiet_torch() -> Iterator[None]:
    """No gradients, and one thread: on tiny shapes a second one only waits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """All families. One fixture and not one per parameter: pytest would tear those down and build them again."""
    import families
    import torch

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("families")
    return {name: families.build(name, root) for name in families.FAMILIES}


@pytest.fixture(scope="session")
def models(pairs: dict[str, Pair], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Model]:
    """models(family, window): the pair of that family on the cpu backend, its sliding layers given another window."""
    from zoo import Model

    made: dict[tuple[str, int], Model] = {}

    def get(name: str, window: int) -> Model:
        if (name, window) not in made:
            to = tmp_path_factory.mktemp(f"{name}-{window}")
            folders = [with_window(folder, window, to) for folder in (pairs[name].target, pairs[name].assistant)]
            made[name, window] = Model.load(*folders)
        return made[name, window]

    return get


def with_window(folder: Path, window: int, to: Path) -> Path:
    """A copy of a checkpoint folder with another `sliding_window`; no weight depends on it."""

    def edit(config: dict[str, Any]) -> None:
        config.get("text_config", config)["sliding_window"] = window

    return with_config(folder, to / folder.name, edit)


def with_config(folder: Path, to: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint folder, its weights as hard links, with an edited config.json."""
    shutil.copytree(folder, to, copy_function=os.link)
    path = to / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.unlink()  # it is a hard link too
    path.write_text(json.dumps(config))
    return to
