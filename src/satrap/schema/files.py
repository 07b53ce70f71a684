"""Jobs as YAML: strict reading, writing, dotted overrides.

The YAML is that of version 1.2 in what a person would trip over: `yes`, `no`, `on` and `off` are words, `12:30` and
`2024-01-01` are text, `1e-3` is a number, and a repeated key is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from satrap.errors import JobError, did_you_mean
from satrap.schema.features import Feature
from satrap.schema.job import Job, short_forms
from satrap.schema.strict import convert, item_name, plain
from satrap.schema.tables import Table
from satrap.schema.wording import not_yaml

T = TypeVar("T")

_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
"""Plain words that are not text: YAML tag, pattern, first characters. An int fits float too; the first match counts."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class declares it so
        first: [(tag, pattern) for tag, pattern in found if tag.endswith((":null", ":merge"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Quotes every text that this loader, or one of YAML 1.1, would read as something else. What stands twice is
    written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors: a person reads this."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Line breaks, of which Unicode has seven, survive only where they are escaped.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)
for _tag, (_pattern, _first) in _SCALARS.items():
    _full = re.compile(f"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _full, list(_first))
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _full, list(_first))


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    # 007 is seven: the octal of YAML 1.1 has surprised everyone who ever met it.
    text = str(node.value).replace("_", "")
    return int(text, 16) if text.startswith("0x") else int(text)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise JobError(f"line {line}: a key must be a word, not a list or mapping")
        if key_node.value in seen:
            raise JobError(f"line {line}: the key '{key_node.value}' is given twice")
        seen.add(key_node.value)
    loader.flatten_mapping(node)
    return {str(k.value): loader.construct_object(v, deep=True) for k, v in node.value}


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)


def load_job(path: str | Path) -> Job:
    """Reads a job from a YAML file. Raises JobError naming the file, the key and what is expected."""
    return read_as(path, "job", job_from_dict)


def read_as(path: str | Path, what: str, make: Callable[[Any], T]) -> T:
    """Reads a YAML file and makes something of its tree. `what`: its kind, for messages. Raises JobError naming it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise JobError(f"there is no {what} file {path}{_nearest(Path(path))}") from e
    except UnicodeDecodeError as e:
        raise JobError(
            f"{path} is not a {what} file: a {what} file is YAML, which is text, and this holds other bytes (at byte "
            f"{e.start:,})"
        ) from e
    except OSError as e:
        raise JobError(f"cannot read the {what} file {path}: {e.strerror}") from e
    try:
        return make(_parse(text))
    except yaml.YAMLError as e:
        raise JobError(f"{path} is not valid YAML: {not_yaml(e, text)}") from e
    except JobError as e:
        raise JobError(f"{path}: {e}") from e


def _nearest(path: Path) -> str:
    names = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return f"; {did_you_mean(path.name, names)}" if names else ""


def job_from_dict(tree: Any) -> Job:
    """A job from plain dicts and lists, as in YAML. Raises JobError with the dotted path of what is wrong."""
    if not isinstance(tree, dict):
        raise JobError("a job is a mapping with the keys data, features, …; see `satrap train --help`")
    tree = dict(tree)
    if "data" in tree:
        tree["data"] = short_forms(tree["data"])
    job = convert(tree, Job, "")
    assert isinstance(job, Job)
    return job


def job_to_dict(job: Job) -> dict[str, Any]:
    """The whole job as plain dicts and lists; `job_from_dict` gives the equal job back."""
    tree = plain(job)
    assert isinstance(tree, dict)
    return tree


def save_job(job: Job, path: str | Path) -> None:
    """Writes the whole job as YAML, every setting spelled out."""
    Path(path).write_text(to_yaml(job_to_dict(job)), encoding="utf-8")


def to_yaml(tree: Any) -> str:
    """Plain dicts and lists as YAML that `read_as` reads as the same."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def override(job: Job, assignments: list[str]) -> Job:
    """A copy of the job with dotted settings changed in the order given, values read as YAML.

    List items are named: `features.age.scale=standard`, `tables.user.dim=32`, `data.label.click.positive=yes`. A table
    that features use but the job does not declare can be named as well. A new `kind` brings its own settings: those of
    the old kind do not carry over. Raises JobError for a path that does not exist or a value that does not fit.
    """
    tree = job_to_dict(job)
    # Undeclared tables are written out with the default dim and format, so those have to be known first.
    for text in sorted(assignments, key=lambda a: not a.startswith(("default_dim=", "default_format="))):
        path, eq, value = text.partition("=")
        if not eq or not path:
            raise JobError(f"override '{text}': write it as key.subkey=value, for example train.staleness=0")
        try:
            parsed = _parse(value)
        except yaml.YAMLError as e:
            raise JobError(f"override '{text}': the value is not valid YAML: {not_yaml(e, value)}") from e
        *parents, last = path.split(".")
        node = _walk(tree, parents, text)
        if last == "kind" and ".".join(parents) not in _PLAIN_KINDS and node.get("kind") != parsed:
            kept = {key: node[key] for key in _identity(parsed) if key in node}
            node.clear()
            node.update(kept)
        node[last] = parsed
    return job_from_dict(tree)


_PLAIN_KINDS = {"train.schedule"}
"""Where `kind` is a setting among others, not the tag that decides which other settings there are."""


def _identity(kind: Any) -> list[str]:
    """What a feature keeps when it becomes one of this kind: where it reads from and to."""
    kinds = {c.__struct_config__.tag: c.__struct_fields__ for c in get_args(Feature)}
    return [key for key in ("name", "column", "table") if key in kinds.get(kind, ())]


def _walk(tree: dict[str, Any], keys: list[str], text: str) -> dict[str, Any]:
    """The mapping that `keys` lead to; an absent optional part on the way is begun."""
    node: Any = tree
    rest = keys
    while rest:
        if isinstance(node, list):
            items = {item_name(x, i): x for i, x in enumerate(node)}
            if node is tree["tables"]:
                items = {**_undeclared_tables(tree), **items}
            # Names may hold dots themselves; the longest that fits is meant.
            length = next((n for n in range(len(rest), 0, -1) if ".".join(rest[:n]) in items), None)
            if length is None:
                raise JobError(f"override '{text}': there is no '{rest[0]}'; {did_you_mean(rest[0], items)}")
            item = items[".".join(rest[:length])]
            if isinstance(item, dict) and not any(item is x for x in node):
                node.append(item)
            node, rest = item, rest[length:]
        elif isinstance(node, dict):
            key, *rest = rest
            if key not in node:
                raise JobError(f"override '{text}': unknown key '{key}'; {did_you_mean(key, node)}")
            if node[key] is None:
                node[key] = {}
            node = node[key]
        else:
            break
    if not isinstance(node, dict):
        what = "a list; name an item and a setting of it" if isinstance(node, list) else "a plain value"
        raise JobError(f"override '{text}': '{'.'.join(keys)}' is {what}")
    return node


def _undeclared_tables(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Tables that features use without the job declaring them, as they would be declared."""
    names = [f.get("table") or f.get("name") for f in tree["features"] if f.get("kind") != "numeric"]
    made = {"dim": tree["default_dim"], "format": tree["default_format"]}
    # With every setting, so that those of an optional part (`capacity.rows`) have a place to go to.
    return {name: {**plain(Table(name=str(name), dim=1)), **made} for name in names}
