"""Turning a failed check of a recipe into words: which key, what is wrong with it, what to write instead."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from longspan.utils.errors import ConfigError
from longspan.utils.values import nearest, shown

_TYPES = {
    "int_type": "write a whole number without quotes or point, such as 2048",
    "int_from_float": "write a whole number without quotes or point, such as 2048",
    "float_type": "write a number without quotes, such as 3e-4",
    "finite_number": "write an ordinary number; nan and inf are refused",
    "bool_type": "write true or false, without quotes",
    "string_type": "put the text in quotes",
    "path_type": "put the path in quotes",
    "tuple_type": "write a list in brackets, or [[…]] tables",
    "model_type": "write a table with its keys",
    "model_attributes_type": "write a table with its keys",
}


@dataclass(frozen=True)
class _Problem:
    code: str
    path: str
    what: str
    fix: str
    meant: str = ""  # the path that a misspelt one probably stands for


def explain(error: ValidationError, value: dict[str, Any], schema: dict[str, Any], *, where: str) -> ConfigError:
    """The `ConfigError` that lists every problem of `error` with its path in the recipe `value` and a fix.

    `schema` is the JSON schema that `value` was checked against; `where` names the file.
    """
    problems = [_problem(entry, value, schema) for entry in error.errors(include_url=False)]
    # A key that is missing because it is misspelt is told once, as misspelt.
    meant = {p.meant for p in problems if p.meant}
    problems = [p for p in problems if not (p.code == "recipe.missing-key" and p.path in meant)]
    first = problems[0]
    if len(problems) == 1:
        place = f"{where}: {first.path}" if first.path else where
        return ConfigError(first.code, first.what, where=place, fix=first.fix)
    lines = "".join(f"\n  - {p.path or 'recipe'}: {p.what}; {p.fix}" for p in problems)
    return ConfigError(first.code, f"{len(problems)} problems:{lines}", where=where, fix="mend these keys")


def _problem(entry: ErrorDetails, value: dict[str, Any], schema: dict[str, Any]) -> _Problem:
    keys = _walkable(entry["loc"], value)
    path = ".".join(str(key) for key in keys)
    kind = entry["type"]
    if kind == "extra_forbidden":
        known, fix = _suggest_key(keys, value, schema)
        meant = ".".join([*(str(key) for key in keys[:-1]), known]) if known else ""
        return _Problem("recipe.unknown-key", path, f"unknown key {keys[-1]!r}", fix, meant)
    if kind == "missing":
        return _Problem("recipe.missing-key", path, f"{keys[-1]!r} is missing", f"add {keys[-1]} = …")
    if kind == "union_tag_invalid":
        tag = str(entry["ctx"]["tag"])
        have = [part.strip(" '") for part in str(entry["ctx"]["expected_tags"]).split(",")]
        near = nearest(tag, have)
        fix = f"did you mean {near!r}?" if near else "choose one of these"
        return _Problem("recipe.unknown-kind", path, f"no kind {tag!r} (have: {', '.join(have)})", fix)
    if kind == "union_tag_not_found":
        return _Problem("recipe.missing-key", path, "'kind' is missing", 'add kind = "…" to say which one is meant')
    if kind in _TYPES:
        return _Problem("recipe.type", path, f"{shown(entry['input'])} is of the wrong type", _TYPES[kind])
    message = entry["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return _Problem("recipe.value", path, message, "change one of these values")
    return _Problem("recipe.value", path, f"{shown(entry['input'])} is refused", message[:1].lower() + message[1:])


def _walkable(loc: tuple[int | str, ...], value: Any) -> tuple[int | str, ...]:
    """`loc` without the names of chosen kinds, which pydantic adds but a recipe does not write."""
    keys: list[int | str] = []
    for key in loc:
        if isinstance(value, dict) and key not in value and value.get("kind") == key:
            continue
        keys.append(key)
        value = _child(value, key)
    return tuple(keys)


def _child(value: Any, key: int | str) -> Any:
    if isinstance(value, dict):
        return value.get(str(key))
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return value[key]
    return None


def _suggest_key(keys: tuple[int | str, ...], value: Any, schema: dict[str, Any]) -> tuple[str, str]:
    """The nearest key of the same table if there is one, and what to tell: it, or its right table, or all keys."""
    wrong = str(keys[-1])
    node = schema
    for key in keys[:-1]:
        node = _step(_settle(node, value, schema), key)
        value = _child(value, key)
    have = sorted(_settle(node, value, schema).get("properties", {}))
    near = nearest(wrong, have)
    if near:
        return near, f"did you mean {near!r}?"
    elsewhere = [path for path, names in _tables(schema) if wrong in names]
    if elsewhere:
        return "", f"{wrong!r} belongs to {' or '.join(elsewhere[:3])}"
    return "", f"remove it (keys here: {', '.join(have)})"


def _settle(node: dict[str, Any], value: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """Follow references and choices until the node of a table or a list is reached."""
    while True:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        elif "oneOf" in node and "discriminator" in node:
            mapping = node["discriminator"]["mapping"]
            chosen = mapping.get(value.get("kind")) if isinstance(value, dict) else None
            node = {"$ref": chosen or next(iter(mapping.values()))}
        elif "anyOf" in node:
            node = next((part for part in node["anyOf"] if part.get("type") != "null"), {})
        else:
            return node


def _step(node: dict[str, Any], key: int | str) -> dict[str, Any]:
    child: dict[str, Any] = node.get("items", {}) if isinstance(key, int) else node.get("properties", {}).get(key, {})
    return child


def _tables(schema: dict[str, Any]) -> Iterator[tuple[str, set[str]]]:
    """Every table that a recipe's top level leads to, two levels deep, with the names of its keys."""
    yield "the top of the recipe", set(schema["properties"])
    for name, node in schema["properties"].items():
        settled = _settle(node, {}, schema)
        label = f"[{name}]"
        if settled.get("type") == "array":
            settled, label = _settle(settled.get("items", {}), {}, schema), f"[[{name}]]"
        yield label, set(settled.get("properties", {}))
        for inner, below in settled.get("properties", {}).items():
            deeper = _settle(below, {}, schema)
            if deeper.get("type") == "array":
                deeper = _settle(deeper.get("items", {}), {}, schema)
            yield f"{inner} of {label}", set(deeper.get("properties", {}))
