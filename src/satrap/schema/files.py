"""Jobs as YAML: strict reading with the path and nearest known key in every message, writing, dotted overrides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml

from satrap.errors import JobError, did_you_mean
from satrap.schema.base import Spec
from satrap.schema.job import Job


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-3` is a number (YAML 1.1 wants a dot) and a repeated key is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|\.[0-9_]+(?:[eE][-+]?[0-9]+)?)$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        if key in seen:
            raise JobError(f"line {key_node.start_mark.line + 1}: the key '{key}' is given twice")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_job(path: str | Path) -> Job:
    """Reads a job from a YAML file. Raises JobError naming the file, the key and what is expected."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise JobError(f"cannot read the job file {path}: {e}") from e
    try:
        tree = yaml.load(text, _Loader)
        return job_from_dict(tree)
    except yaml.YAMLError as e:
        raise JobError(f"{path} is not valid YAML: {e}") from e
    except JobError as e:
        raise JobError(f"{path}: {e}") from e


def job_from_dict(tree: Any) -> Job:
    """A job from plain dicts and lists, as in YAML. Raises JobError with the dotted path of what is wrong."""
    if not isinstance(tree, dict):
        raise JobError("a job is a mapping with the keys data, features, …; see `satrap train --help`")
    tree = _sugar(tree)
    _refuse_unknown(tree, Job, "")
    try:
        return msgspec.convert(tree, Job, strict=True)
    except msgspec.ValidationError as e:
        if isinstance(e.__cause__, JobError):
            raise e.__cause__ from None
        message, _, where = str(e).partition(" - at `$")
        where = where.rstrip("`").lstrip(".") or "job"
        raise JobError(f"{where}: {message}") from e


def _sugar(tree: dict[str, Any]) -> dict[str, Any]:
    """Short forms a person writes: one path or label as a plain string instead of a list."""
    tree = dict(tree)
    data = tree.get("data")
    if isinstance(data, dict):
        data = dict(data)
        for key in ("train", "valid", "test"):
            if isinstance(data.get(key), str):
                data[key] = [data[key]]
        if isinstance(data.get("valid"), int) and not isinstance(data["valid"], bool):
            data["valid"] = float(data["valid"])
        label = data.get("label")
        if isinstance(label, str | dict):
            label = [label]
        if isinstance(label, list):
            data["label"] = [{"column": x} if isinstance(x, str) else x for x in label]
        tree["data"] = data
    return tree


def _refuse_unknown(value: Any, kind: Any, where: str) -> None:
    """Walks the tree beside the types; an unknown key is refused with the nearest known one."""
    args = get_args(kind)
    if isinstance(value, list | tuple):
        inner = [a for a in args if get_args(a)] or list(args)
        element = inner[0] if inner else None
        if element is not None and element is not Ellipsis:
            for i, item in enumerate(value):
                label = item.get("name", i) if isinstance(item, dict) else i
                _refuse_unknown(item, element, f"{where}.{label}" if where else str(label))
        return
    if not isinstance(value, dict):
        return
    options = [a for a in (args or (kind,)) if isinstance(a, type) and issubclass(a, Spec)]
    if not options:
        return
    if len(options) > 1 or options[0].__struct_config__.tag_field is not None:
        tags = {str(o.__struct_config__.tag): o for o in options}
        tag = value.get("kind")
        if tag is None:
            raise JobError(f"{where}: the key 'kind' is missing; one of {', '.join(tags)}")
        if tag not in tags:
            raise JobError(f"{where}.kind: unknown kind '{tag}'; {did_you_mean(str(tag), tags)}")
        chosen: type[Spec] = tags[tag]
        known = {"kind"}
    else:
        chosen, known = options[0], set()
    fields = {f.name: f.type for f in msgspec.structs.fields(chosen)}
    for key, item in value.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields and key not in known:
            raise JobError(f"{path}: unknown key '{key}'; {did_you_mean(str(key), {*fields, *known})}")
        if key in fields:
            _refuse_unknown(item, fields[key], path)


def job_to_dict(job: Job) -> dict[str, Any]:
    """The whole job as plain dicts and lists; `job_from_dict` gives the equal job back."""
    tree = msgspec.to_builtins(job)
    assert isinstance(tree, dict)
    return tree


def save_job(job: Job, path: str | Path) -> None:
    """Writes the whole job as YAML, every setting spelled out."""
    text = yaml.safe_dump(job_to_dict(job), sort_keys=False, allow_unicode=True, width=110)
    Path(path).write_text(text, encoding="utf-8")


def override(job: Job, assignments: list[str]) -> Job:
    """A copy of the job with dotted settings changed, values read as YAML.

    List items are named: `features.age.scale=standard`, `tables.user.dim=32`.
    Raises JobError for a path that does not exist or a value that does not fit.
    """
    tree = job_to_dict(job)
    for a in assignments:
        path, eq, text = a.partition("=")
        if not eq or not path:
            raise JobError(f"override '{a}': write it as key.subkey=value, for example train.staleness=0")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as e:
            raise JobError(f"override '{a}': the value is not valid YAML: {e}") from e
        _assign(tree, path.split("."), value, a)
    return job_from_dict(tree)


def _assign(node: Any, keys: list[str], value: Any, text: str) -> None:
    *parents, last = keys
    for key in parents:
        if isinstance(node, list):
            names = {str(x.get("name", i)): x for i, x in enumerate(node) if isinstance(x, dict)}
            if key not in names:
                raise JobError(f"override '{text}': there is no '{key}'; {did_you_mean(key, names)}")
            node = names[key]
        elif isinstance(node, dict):
            if key not in node:
                raise JobError(f"override '{text}': unknown key '{key}'; {did_you_mean(key, node)}")
            if node[key] is None:
                node[key] = {}
            node = node[key]
        else:
            raise JobError(f"override '{text}': '{key}' is below a plain value")
    if not isinstance(node, dict):
        raise JobError(f"override '{text}': '{last}' must name a setting")
    # A new kind brings its own settings: what was set for the old one does not carry over.
    if last == "kind":
        node.clear()
    node[last] = value
