"""Finds checkpoints: a folder on this machine, a name on the Hugging Face hub, or the pair inside the package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from paceline.errors import CheckpointError

EMBEDDED = "embedded"
EMBEDDED_PAIR = Path(__file__).parent / "assets" / "pair"
FILES = ["*.json", "*.safetensors", "*.jinja"]
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Found:
    """A checkpoint chosen for the user: a name for `resolve_checkpoint`, and why it was chosen."""

    name: str
    why: str


def resolve_checkpoint(name: str) -> Path:
    """The folder of a checkpoint, downloaded first when `name` is a hub name not yet on this machine.

    `name` is a folder, "org/name" on the hub, or "embedded" (the small pair that Paceline brings along).
    A folder wins over a hub name. Raises CheckpointError.
    """
    if name == EMBEDDED:
        return _with_config(EMBEDDED_PAIR / "target", "reinstall paceline")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _with_config(folder, "give the folder that holds the checkpoint's files")
    if HUB_NAME.fullmatch(name):
        return _with_config(_download(name), "choose a repository with safetensors weights in the Transformers layout")
    raise CheckpointError(f"{name!r} is neither a folder on this machine nor a hub name like google/gemma-4-E2B-it")


def find_drafter(target_name: str) -> Found | None:
    """The drafter that belongs to a target by name, or None; nothing is downloaded.

    Google publishes each as the target's name + "-assistant". On disk it is the same, or a folder "assistant"
    inside the target's folder, or beside it when that is called "target".
    """
    if target_name == EMBEDDED:
        return _embedded_drafter()
    folder = Path(target_name).expanduser()
    if folder.is_dir():
        return _drafter_beside(folder.absolute())
    if HUB_NAME.fullmatch(target_name) and not target_name.endswith("-assistant"):
        return _drafter_on_hub(target_name)
    return None


def _embedded_drafter() -> Found:
    folder = _with_config(EMBEDDED_PAIR / "assistant", "reinstall paceline")
    return Found(str(folder), "the drafter of the embedded pair")


def _drafter_beside(folder: Path) -> Found | None:
    candidates = [folder.with_name(f"{folder.name}-assistant"), folder / "assistant"]
    if folder.name == "target":
        candidates.append(folder.with_name("assistant"))
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            where = "inside" if candidate.parent == folder else "beside"
            return Found(str(candidate), f"{candidate.name} lies {where} the target's folder")
    return None


def _drafter_on_hub(target_name: str) -> Found | None:
    name = f"{target_name}-assistant"
    if re.fullmatch(r"google/gemma-4-.+-it(-qat-q4_0-unquantized)?", target_name):
        return Found(name, f"Google publishes {name} for {target_name}")
    # Others often keep the habit, not always, and a name that does not exist must not stop a run.
    return Found(name, f"{name} exists on the hub") if _exists(name) else None


def _exists(name: str) -> bool:
    try:
        return huggingface_hub.repo_exists(name)
    except Exception:  # whatever keeps us from asking, the answer is the same: no drafter that we know of
        return False


def _with_config(folder: Path, mend: str) -> Path:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; {mend}")
    return folder


def _download(name: str) -> Path:
    """The hub's snapshot in the local cache, with progress on stderr; a complete one is not downloaded again."""
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, then run 'hf auth login'"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name} is neither a folder here nor found on the hub; check the name, or run 'hf auth login' if private"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{name} is not complete on this machine and the hub cannot be reached; go online (and unset "
            "HF_HUB_OFFLINE), or pass a folder"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{name} could not be downloaded ({reason[0]}); try again, or pass a folder") from error
