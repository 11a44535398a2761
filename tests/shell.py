"""The command line, run inside the tests' own process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from paceline import cli

COMMANDS: dict[str, list[str]] = {
    "generate": ["generate", "hello"],
    "chat": ["chat"],
    "explain": ["explain"],
    "bench": ["bench", "--out", "r.json", "--html", "r.html"],
}


class Shell:
    """Runs `paceline ...` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.monkeypatch, self.capsys, self.folder = monkeypatch, capsys, folder
        monkeypatch.chdir(folder)

    def refuses(self, *words: object) -> str:
        """Expects exit code 2, silence on stdout, and an untouched folder; returns stderr."""
        before = sorted(self.folder.rglob("*"))
        self.monkeypatch.setattr(sys, "argv", ["paceline", *map(str, words)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = self.capsys.readouterr()
        assert caught.value.code == 2
        assert not out
        assert "Traceback" not in err
        assert sorted(self.folder.rglob("*")) == before
        return str(err)

    def refuses_in_one_line(self, match: str, *words: object) -> None:
        err = self.refuses(*words)
        assert err.startswith("paceline: ")
        assert err.count("\n") == 1
        assert match in err
