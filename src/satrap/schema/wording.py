"""What a user reads when a value does not fit its key, or when a file is not YAML: plain words, one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import NoneType
from typing import Any

import msgspec
import yaml

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping of keys to values",
    "null": "null",
}
_TOKENS = {
    "<block end>": "the end of the part that began before (is the indentation right?)",
    "<block mapping start>": "a key that is indented otherwise",
    "<block sequence start>": "a list that is indented otherwise",
    "<stream end>": "the end of the file",
    "<document start>": "another document",
    "<scalar>": "a value",
    "the node content": "a value",
    "'?'": "a key",
    "mapping values are not allowed here": "a colon after a key is not allowed here",
    "unexpected end of stream": "the end of the file",
    "block collection": "list",
    "flow sequence": "list",
    "block mapping": "mapping",
    "flow mapping": "mapping",
    "a quoted scalar": "quoted text",
    "flow node": "value",
}
"""What the parser says, and what it means."""
SHOWN = 60
"""Letters of a wrong value that a message repeats."""


def given(value: Any) -> str:
    """A value, as a message calls it.

    >>> given("nan"), given(1.5), given(None), given([1])
    ("the text 'nan'", 'the number 1.5', 'null', 'a list')
    """
    if isinstance(value, dict | list | tuple):
        return _KINDS["object" if isinstance(value, dict) else "array"]
    if isinstance(value, NoneType):
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text '{value}'" if len(value) <= SHOWN else f"a text of {len(value):,} letters"
    return f"the number {value}" if isinstance(value, int | float) else repr(value)


def misfit(message: str, value: Any) -> str:
    """What msgspec says of a value of the wrong type, in words; its other messages as they are.

    >>> misfit("Expected `float`, got `str`", "nan")
    "a number is expected, got the text 'nan'"
    >>> misfit("Expected `int | null`, got `float`", 1.5)
    'a whole number or null is expected, got the number 1.5'
    """
    found = re.fullmatch(r"Expected `([a-z]+(?: \| [a-z]+)*)`(?:, got `\w+`)?", message)
    if found is None:
        return message
    kinds = found[1].split(" | ")
    # A whole number is a number.
    words = [_KINDS.get(k, k) for k in kinds if not (k == "int" and "float" in kinds)]
    return f"{' or '.join(words)} is expected, got {given(value)}"


def keys_needed(specs: Sequence[type[msgspec.Struct]], value: Any, where: str) -> str:
    """What to say of a value that stands where settings have keys of their own. Several specs: told apart by `kind`."""
    tags = [str(s.__struct_config__.tag) for s in specs if s.__struct_config__.tag_field is not None]
    if tags:
        keys, example = f"kind, which is one of {', '.join(tags)}, and the keys of that kind", f"kind={tags[0]}"
    else:
        names = [f.name for f in msgspec.structs.fields(specs[0])]
        keys, example = ", ".join(names), f"{names[0]}=…"
    # What is in a list has no name to be reached by before it has keys.
    hint = "" if where.rpartition(".")[2].isdigit() else f"; for example {where}.{example}"
    return f"{where}: it has keys of its own ({keys}), got {given(value)}{hint}"


def not_yaml(error: yaml.YAMLError, text: str) -> str:
    """Where text is not YAML, and what was expected there, in one line.

    >>> try:
    ...     yaml.safe_load("a: [1")
    ... except yaml.YAMLError as e:
    ...     print(not_yaml(e, "a: [1"))
    line 1, column 6: expected ',' or ']', but got the end of the file (in a list that begins in line 1)
    """
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        return f"line {line}, column {column}: the character #x{ord(text[error.position]):04x} may not stand in YAML"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark, began = error.problem_mark, error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    problem = _in_words(error.problem or "it cannot be read")
    if error.context is None or began is None:
        return f"{where}: {problem}"
    if not error.context.startswith("while "):
        return f"{where}: {error.context}, {problem}"
    part = re.sub(r"^while \w+ ", "in ", _in_words(error.context))
    return f"{where}: {problem} ({part} that begins in line {began.line + 1})"


def _in_words(said: str) -> str:
    for token, words in _TOKENS.items():
        said = said.replace(f"'{token}'", words).replace(token, words)
    return said
