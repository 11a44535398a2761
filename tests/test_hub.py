"""Hub: what a name resolves to, and what is said when it cannot be. No network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from paceline import hub
from paceline.errors import CheckpointError
from paceline.hub import find_drafter, resolve_checkpoint

NAME = "google/gemma-4-E2B-it"


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("this test must not ask the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub, "repo_exists", refuse)


def fails_with(error: Exception) -> Callable[..., str]:
    def download(*args: object, **kwargs: object) -> str:
        raise error

    return download


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    # A stand-in, because the hub's package changed its HTTP library between versions.
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("the hub says no", response=response)  # type: ignore[arg-type]


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "x")
    assert resolve_checkpoint(str(folder)) == folder


def test_a_folder_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint(NAME) == Path(NAME)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        resolve_checkpoint(str(tmp_path))


def test_a_hub_name_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(checkpoint(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_checkpoint(NAME) == tmp_path / "snapshot"
    assert asked == {"name": NAME, "patterns": ["*.json", "*.safetensors", "*.jinja"]}


def test_a_repository_without_config_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    with pytest.raises(CheckpointError, match="choose a repository with safetensors weights"):
        resolve_checkpoint(NAME)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (http_error(errors.GatedRepoError, 403), "accept its terms at https://huggingface.co/google/gemma-4-E2B-it"),
        (http_error(errors.RepositoryNotFoundError, 404), "nor found on the hub"),
        (http_error(errors.HfHubHTTPError, 500), r"could not be downloaded \(the hub says no\)"),
        (errors.LocalEntryNotFoundError("no snapshot"), "hub cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), "unset HF_HUB_OFFLINE"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ConnectionError(), r"could not be downloaded \(ConnectionError\)"),
    ],
)
def test_failed_downloads_say_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails_with(error))
    with pytest.raises(CheckpointError, match=sentence) as caught:
        resolve_checkpoint(NAME)
    assert NAME in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "./no/such", "a/b/c", "", "/no/such", "org/", "org/na me"])
def test_other_names_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint(tmp_path / "x").parent)
    with pytest.raises(CheckpointError):
        resolve_checkpoint(name)


@pytest.mark.parametrize("target", [NAME, "google/gemma-4-26B-A4B-it", "google/gemma-4-E2B-it-qat-q4_0-unquantized"])
def test_googles_drafters_are_known_by_name(target: str) -> None:
    found = find_drafter(target)
    assert found is not None
    assert found.name == f"{target}-assistant"
    assert target in found.why


@pytest.mark.parametrize("target", [f"{NAME}-assistant", "nowhere"])
def test_no_drafter_for_a_drafter_or_an_unknown_name(target: str) -> None:
    assert find_drafter(target) is None


def test_others_drafters_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "repo_exists", lambda name: name == "ann/gemma-poet-assistant")
    found = find_drafter("ann/gemma-poet")
    assert found is not None
    assert found.name == "ann/gemma-poet-assistant"
    assert find_drafter("ann/gemma-cook") is None
    monkeypatch.setattr(huggingface_hub, "repo_exists", fails_with(ConnectionError()))
    assert find_drafter("ann/gemma-poet") is None


@pytest.mark.parametrize(
    ("target", "drafter", "where"),
    [
        ("poet", "poet-assistant", "beside"),
        ("poet", "poet/assistant", "inside"),
        ("pair/target", "pair/assistant", "beside"),
    ],
)
def test_drafters_on_disk(tmp_path: Path, target: str, drafter: str, where: str) -> None:
    checkpoint(tmp_path / target)
    assert find_drafter(str(tmp_path / target)) is None
    checkpoint(tmp_path / drafter)
    found = find_drafter(str(tmp_path / target))
    assert found is not None
    assert found.name == str(tmp_path / drafter)
    assert where in found.why


def test_an_assistant_beside_a_folder_of_another_name_is_not_taken(tmp_path: Path) -> None:
    checkpoint(tmp_path / "assistant")
    assert find_drafter(str(checkpoint(tmp_path / "poet"))) is None


def test_the_current_folder_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "poet-assistant")
    monkeypatch.chdir(checkpoint(tmp_path / "poet"))
    found = find_drafter(".")
    assert found is not None
    assert found.name == str(tmp_path / "poet-assistant")


def test_the_embedded_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "EMBEDDED_PAIR", tmp_path)
    with pytest.raises(CheckpointError, match="reinstall paceline"):
        resolve_checkpoint("embedded")
    with pytest.raises(CheckpointError, match="reinstall paceline"):
        find_drafter("embedded")
    target, drafter = checkpoint(tmp_path / "target"), checkpoint(tmp_path / "assistant")
    assert resolve_checkpoint("embedded") == target
    found = find_drafter("embedded")
    assert found is not None
    assert found.name == str(drafter)
