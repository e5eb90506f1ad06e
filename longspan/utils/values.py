"""JSON values: their hash, their leaves, where two of them differ, and the nearest name to a mistyped one."""

import difflib
import hashlib
import json
from collections.abc import Iterable
from typing import Any

LONGEST_SHOWN = 60


def canonical_sha256(value: Any) -> str:
    """Hash of a JSON value that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def shown(value: Any) -> str:
    """A value as an error shows it, cut when it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a JSON value by their dotted paths, such as `stages.1.length`; an empty list or dict is a leaf."""
    if not value or not isinstance(value, dict | list | tuple):
        return {path: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, item in pairs for k, v in flat(item, f"{path}.{key}" if path else str(key)).items()}


def differences(old: Any, new: Any) -> list[str]:
    """Where two JSON values differ, a line each: `stages.1.length: 512, now 1024`."""
    before, after = flat(old), flat(new)
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key}: {shown(before[key]) if key in before else 'nothing'}, "
        f"now {shown(after[key]) if key in after else 'nothing'}"
        for key in keys
        if (key in before) != (key in after) or before[key] != after[key]
    ]


def nearest(name: str, have: Iterable[str]) -> str | None:
    """The known name that a mistyped one most likely meant, or None."""
    return next(iter(difflib.get_close_matches(name, list(have), n=1)), None)
