"""The documentation builds without a warning, loads nothing from elsewhere, and says nothing that does not run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import typer

import satrap as package
from satrap.cli.app import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md"))
START = (DOCS / "index.md").read_text(encoding="utf-8")
TIMEOUT_S = 600

needs_mkdocs = pytest.mark.skipif(find_spec("mkdocstrings") is None, reason="no mkdocs: pip install 'satrap[docs]'")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Strict: a link that leads nowhere, or a name that is not there, fails the build."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr, done.stderr[-4000:]
    return out


@needs_mkdocs
def test_site_builds_without_a_warning_and_has_every_page(site: Path) -> None:
    there = {p.relative_to(site).with_suffix(".md").as_posix() for p in site.rglob("*.html")}
    assert {p.relative_to(DOCS).as_posix() for p in PAGES} <= there


@needs_mkdocs
def test_every_page_is_in_the_navigation(site: Path) -> None:
    # A guide that nobody links to is not found.
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in PAGES:
        name = page.relative_to(DOCS).with_suffix(".html").as_posix()
        assert f'href="{name}"' in index or name == "index.html", name


@needs_mkdocs
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(https?://[^\"'\s>]+)", text
        )
        assert [x for x in loaded if "rel=canonical" not in x] == [], page


@needs_mkdocs
def test_reference_has_every_command_and_every_setting_of_a_job(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    for name in group.commands:
        assert f"satrap {name}" in commands
    job = (site / "reference" / "job.html").read_text(encoding="utf-8")
    for name in ("staleness", "sync_warmup_steps", "embedding_optimizer", "max_gradient", "shuffle_rows", "wire"):
        assert f">{name}<" in job or f'.{name}"' in job, name


def shell_lines(text: str) -> list[str]:
    """The commands of the fenced and indented blocks of a page, without remarks and with continued lines joined."""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"((?:^    (?:satrap|make|python|\. )(?:[^\n]*\\\n)*[^\n]*\n)+)", text, re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s{2,}#.*", "", line).strip().removeprefix("$ ") for line in lines if line.strip()]


def satrap_lines() -> list[tuple[str, str]]:
    pages = [*PAGES, ROOT / "README.md", *sorted((ROOT / "examples").glob("*/README.md"))]
    return [
        (page.relative_to(ROOT).as_posix(), line)
        for page in pages
        for line in shell_lines(page.read_text(encoding="utf-8"))
        if line.startswith("satrap ")
    ]


@pytest.mark.parametrize(("page", "line"), satrap_lines())
def test_every_command_on_every_page_is_one_that_satrap_understands(page: str, line: str) -> None:
    words = shlex.split(re.split(r" [|>&]{1,2} ", line)[0])[1:]
    command, name = typer.main.get_command(app), "satrap"
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{name} has no command {words[0]}"
        command, name = command.commands[words[0]], f"{name} {words[0]}"
        words = words[1:]
    if not words or "--install-completion" in words or "--help" in words:
        return
    # Parses the options without running anything; the callbacks of commands are not called.
    command.make_context(name, words)


def test_there_are_commands_to_check() -> None:
    assert len(satrap_lines()) > 25


def test_start_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    # In the order of the page, as somebody would who reads it: what a block makes, a later one may need.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    found = os.pathsep.join([str(Path(package.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", START, re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks].count("python") == 1
    assert len(blocks) >= 5
    for kind, text in blocks:
        commands = [["python", "-c", text]] if kind == "python" else [shlex.split(x) for x in text.splitlines()]
        for words in commands:
            small = ["--rows", "3000"] if words[0] == "python" and "make_clicks" in words[1] else []
            first = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "satrap"]
            done = subprocess.run(
                [*first, *words[1:], *small],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    for made in ("runs/first/report.html", "scores.parquet", "job.yaml", "runs/second/profile.txt", "compared.html"):
        assert (tmp_path / made).is_file(), made
    assert "valid AUC" in done.stdout


def test_metrics_page_names_metrics_that_exist() -> None:
    # An alarm on a metric that was renamed never fires.
    named = set(re.findall(r"`?(satrap_[a-z_]+)", (DOCS / "operations" / "metrics.md").read_text(encoding="utf-8")))
    sources = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "src" / "satrap").rglob("*.py"))
    for name in named:
        own = re.sub(r"_(total|bucket|count|sum)$", "", name).removeprefix("satrap_")
        assert re.search(rf"[\"'_ ]{own}(_total)?[\"' {{]", sources), name


def test_pictures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    script = folder / "draw.py"
    script.write_text((DOCS / "pictures" / "draw.py").read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, str(script)], check=True, timeout=TIMEOUT_S)
    drawn = {p.name: p.read_bytes() for p in folder.glob("*.svg")}
    assert drawn == {p.name: p.read_bytes() for p in (DOCS / "pictures").glob("*.svg")}
    assert len(drawn) >= 3
