"""What the site needs beyond mkdocs: pages of a folder in the navigation, links into the repository, the commands.

mkdocs loads it (`hooks` in mkdocs.yml).
"""

from __future__ import annotations

import html
import logging
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Puts every page of a folder where the navigation says `folder/*`."""
    named = set(_leaves(config.nav))
    config.nav = _expanded(config.nav, Path(config.docs_dir), named)
    return config


def _leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [leaf for part in parts for leaf in _leaves(part)]


def _expanded(nav: list[Any], docs: Path, named: set[str]) -> list[Any]:
    out: list[Any] = []
    for item in nav:
        if isinstance(item, dict):
            ((title, below),) = item.items()
            out.append({title: below if isinstance(below, str) else _expanded(below, docs, named)})
        elif item.endswith("/*"):
            pages = sorted(p.relative_to(docs).as_posix() for p in (docs / item[:-2]).glob("*.md"))
            out += [p for p in pages if p not in named]
        else:
            out.append(item)
    return out


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files of the repository that are no pages become their names; one that leads nowhere is a warning."""
    docs = Path(config.docs_dir).resolve()
    here = docs / Path(page.file.src_uri).parent

    def shown(match: re.Match[str]) -> str:
        text, where = match[1], match[2]
        target = (here / where).resolve()
        if docs in target.parents and target.suffix == ".md":
            return match[0]  # mkdocs checks these
        if not target.exists():
            log.warning("%s links to %s, which is not there", page.file.src_uri, where)
        return match[0] if docs in target.parents else (text if text.startswith("`") else f"`{text}`")

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    markdown = "".join(p if p.startswith("```") else _plain_brackets(LINK.sub(shown, p)) for p in parts)
    if page.file.src_uri == "reference/commands.md":
        markdown = markdown.replace("<!-- commands -->", _commands())
    return markdown


def _plain_brackets(text: str) -> str:
    """[P][tables] is the shape of an array here, not a reference: no page uses Markdown's references."""
    parts = re.split(r"(`[^`\n]*`)", text)
    return "".join(p if p.startswith("`") else p.replace("][", "]\\[") for p in parts)


def _commands() -> str:
    """Every command with its options, from the commands themselves."""
    import typer

    from satrap.cli.app import app

    group = typer.main.get_command(app)
    parts: list[str] = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        parts += _command(f"satrap {name}", command)
    return "\n".join(parts)


def _command(name: str, command: Any) -> list[str]:
    if hasattr(command, "commands"):
        return [line for k, c in command.commands.items() for line in _command(f"{name} {k}", c)]
    said = (command.help or "").strip()
    parts = [f"## {name}", "", said, "", "| | |", "|---|---|"]
    for p in command.params:
        if getattr(p, "hidden", False) or p.name == "help":
            continue
        option = p.param_type_name == "option"
        names = ", ".join(p.opts) if option else (p.metavar or p.name)
        value = f" {p.metavar}" if option and p.metavar and not p.is_flag else ""
        parts.append(f"| <code>{_cell(names + value)}</code> | {_cell(getattr(p, 'help', None) or '')} |")
    examples = re.findall(r"\$ (satrap [^\[]*)", command.epilog or "")
    return [*parts, "", "```sh", *examples, "```", ""] if examples else [*parts, ""]


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;")
