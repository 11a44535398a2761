"""The public face: what `paceline.__all__` promises is there."""

from __future__ import annotations

import paceline


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, each by name: the order that ruff's RUF022 keeps."""
    kind = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return kind, name


def test_all_is_sorted_and_says_nothing_twice() -> None:
    assert paceline.__all__ == sorted(set(paceline.__all__), key=order)


def test_everything_in_all_can_be_imported() -> None:
    missing = [name for name in paceline.__all__ if not hasattr(paceline, name)]
    assert not missing, f"paceline.__all__ names {', '.join(missing)}, which paceline does not have"


def test_errors_share_one_base() -> None:
    exported = [getattr(paceline, name) for name in paceline.__all__ if name.endswith("Error")]
    assert all(issubclass(error, paceline.PacelineError) for error in exported)
