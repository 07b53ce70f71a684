"""Plain dicts and lists → typed specs, strictly: every message has the dotted path and, for a name, the nearest known.

msgspec does the conversion; the walk beside it exists for the messages, which are what a user of a job file meets.
"""

from __future__ import annotations

import re
from enum import Enum
from os import PathLike, fspath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from satrap.errors import JobError, did_you_mean
from satrap.schema.base import Spec
from satrap.schema.wording import keys_needed, misfit


def convert(tree: Any, kind: Any, where: str) -> Any:
    """`tree` as a value of type `kind`. Raises JobError whose message begins with the path below `where`."""
    _check_names(tree, kind, where)
    try:
        return msgspec.convert(tree, kind, strict=True)
    except msgspec.ValidationError as e:
        message, _, path = str(e).partition(" - at `$")
        dotted, value = _found(tree, where, path.rstrip("`"))
        raise JobError(f"{dotted}: {misfit(message, value)}") from e


def plain(value: Any) -> Any:
    """A spec, or a value meant for one, as plain dicts and lists; a path becomes its string."""

    def unknown(other: Any) -> Any:
        if isinstance(other, PathLike):
            return fspath(other)
        raise JobError(f"a job holds text, numbers, lists and specs, not {type(other).__name__} ({other!r})")

    return _lists(msgspec.to_builtins(value, enc_hook=unknown))


def _lists(tree: Any) -> Any:
    """Tuples, which YAML does not have, as lists."""
    if isinstance(tree, dict):
        return {key: _lists(item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [_lists(item) for item in tree]
    return tree


def join(where: str, key: object) -> str:
    """A dotted path, one key longer."""
    return f"{where}.{key}" if where else str(key)


def item_name(item: Any, index: int = 0) -> str:
    """How a list item is named in paths: by its name, a label by its column, anything else by its number."""
    if isinstance(item, dict):
        for key in ("name", "column"):
            if isinstance(item.get(key), str):
                return str(item[key])
    return str(index)


def _found(tree: Any, where: str, path: str) -> tuple[str, Any]:
    """`[3].width` below `features`, with the tree to look names up in, is `features.age.width`; and what is there."""
    for key, index in re.findall(r"\.?([^.\[\]]+)|\[(\d+)\]", path):
        if key:
            where = join(where, key)
            tree = tree.get(key) if isinstance(tree, dict) else None
        elif isinstance(tree, list | tuple) and int(index) < len(tree):
            tree = tree[int(index)]
            where = join(where, item_name(tree, int(index)))
        else:
            where = join(where, index)
    return where or "job", tree


def _check_names(value: Any, kind: Any, where: str) -> None:
    """Walks the tree beside the types, and refuses unknown keys, kinds and choices."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    specs = [o for o in options if isinstance(o, type) and issubclass(o, Spec)]
    if specs and not isinstance(value, dict) and not (value is None and NoneType in options):
        raise JobError(keys_needed(specs, value, where or "job"))
    if isinstance(value, list | tuple):
        lists = [o for o in options if get_origin(o) in (tuple, list)]
        for i, item in enumerate(value if lists else ()):
            _check_names(item, get_args(lists[0])[0], join(where, item_name(item, i)))
    elif isinstance(value, dict):
        if specs:
            _check_spec(value, specs, where)
    elif isinstance(value, str) and not any(o is str for o in options):
        choices = [c for o in options for c in _choices(o)]
        if choices and value not in choices:
            raise JobError(f"{where}: unknown value '{value}'; {did_you_mean(value, choices)}")


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(x) for x in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(x.value) for x in kind]
    return []


def _check_spec(value: dict[Any, Any], specs: list[type[Spec]], where: str) -> None:
    chosen, known = specs[0], set[str]()
    if len(specs) > 1 or chosen.__struct_config__.tag_field is not None:
        tags = {str(s.__struct_config__.tag): s for s in specs}
        tag = value.get("kind")
        if tag is None:
            raise JobError(f"{where}: the key 'kind' is missing; one of {', '.join(tags)}")
        if tag not in tags:
            raise JobError(f"{join(where, 'kind')}: unknown kind '{tag}'; {did_you_mean(str(tag), tags)}")
        chosen, known = tags[tag], {"kind"}
    types = {f.name: f.type for f in msgspec.structs.fields(chosen)}
    for key, item in value.items():
        path = join(where, key)
        if key in types:
            _check_names(item, types[key], path)
        elif key not in known:
            raise JobError(f"{path}: unknown key '{key}'; {did_you_mean(str(key), {*types, *known})}")
