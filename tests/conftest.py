"""What several test files share: the tiny checkpoints, and the models read from them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides when a kernel is defined, so this must stand before any import of one.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if TYPE_CHECKING:  # importing these takes seconds, and most test files need neither
    from families import Pair
    from shell import Shell
    from zoo import Model


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache; round times are measured once for all of them."""
    os.environ["PACELINE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def quiet_torch() -> Iterator[None]:
    """No gradients, and one thread: on tiny shapes a second one only waits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    """`paceline ...` in an empty folder."""
    from shell import Shell

    return Shell(monkeypatch, capsys, tmp_path)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as far as anybody asks; nothing runs on it."""
    from pretend import pretend

    pretend(monkeypatch)


@pytest.fixture
def no_gpu(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the GPU itself."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


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
    return copy(folder, to, lambda config: config.get("text_config", config).update(sliding_window=window))


def copy(folder: Path, to: Path, edit: Callable[[dict[str, Any]], Any] = lambda config: None) -> Path:
    """A copy of a checkpoint folder inside `to`, its weights as hard links, with an edited config.json."""
    copied = to / folder.name
    shutil.copytree(folder, copied, copy_function=os.link)
    config = json.loads((copied / "config.json").read_text())
    edit(config)
    rewrite(copied / "config.json", json.dumps(config).encode())
    return copied


def rewrite(path: Path, content: bytes) -> None:
    """Replaces a file that may be a hard link to the original."""
    path.unlink()
    path.write_bytes(content)


def edit_json(path: Path, **changes: Any) -> None:
    rewrite(path, json.dumps({**json.loads(path.read_text()), **changes}).encode())
