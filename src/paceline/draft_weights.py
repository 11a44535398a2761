"""What a drafter's weights are kept in on a GPU, as users ask for it."""

from __future__ import annotations

from paceline.config import DrafterConfig
from paceline.errors import UsageError


def int8_parts(value: str, drafter: DrafterConfig | None) -> tuple[bool, bool]:
    """Whether the drafter's (dense head, body) are kept in int8, for "auto", "stored", "int8-head" or "int8".

    Raises UsageError for another value, and for one that would do nothing.
    """
    if value not in ("auto", "stored", "int8-head", "int8"):
        raise UsageError(f"unknown draft weights {value!r}; choose 'auto', 'stored', 'int8-head' or 'int8'")
    if value in ("auto", "stored"):
        return False, False
    if drafter is None:
        raise UsageError(f"draft_weights {value!r} needs an MTP drafter; leave it 'auto' without one")
    if value == "int8-head" and drafter.centroids:
        raise UsageError(
            "draft_weights 'int8-head' is for dense heads, and this drafter's has centroids; take 'int8', which is for"
            " all else of a drafter too, or leave it 'auto'"
        )
    return drafter.centroids is None, value == "int8"
