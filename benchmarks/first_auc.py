"""`python -m benchmarks first-auc`: the time from `git clone` to the first test AUC, as a newcomer meets it.

Clones this repository's HEAD into a temporary folder (what is not committed is left out, as it would be for them),
runs `make demo` there (virtual environment, install with torch and the native build, training on the Adult data) and
reports when each stage began. How long the install takes depends on how near packages are. `--smoke` clones, and
trains with this interpreter's satrap instead of installing one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import satrap
from benchmarks.harness import REPOSITORY, THIS_PYTHON, Meter, describe, emit

STAGES = {"venv": "==> making the virtual environment", "install": "==> installing", "train": "==> training"}
"""Stage → the beginning of the line `make demo` prints when it starts."""


def main(argv: list[str]) -> int:
    """Prints the configuration and the headline; returns 1 where the demo failed."""
    parser = argparse.ArgumentParser(prog="benchmarks first-auc", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="clone and train, without installing")
    options = parser.parse_args(argv)
    emit(benchmark="first-auc", machine=describe(), smoke=options.smoke)
    with tempfile.TemporaryDirectory() as folder:
        answer = run(Path(folder) / "satrap", smoke=options.smoke)
    emit(headline="first-auc", **answer, commit=describe()["commit"])
    return 0 if answer["status"] == 0 else 1


def run(clone: Path, *, smoke: bool) -> dict[str, Any]:
    """Clones, runs, and times the stages in seconds since the start of the clone."""
    meter = Meter()
    start = time.perf_counter()
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
    began = {"clone": 0.0}
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = ["make", "demo", f"PYTHON={THIS_PYTHON}"]
    if smoke:
        environment["PYTHONPATH"] = str(Path(satrap.__file__).parent.parent)  # the one this program would import
        command = [THIS_PYTHON, "-m", "satrap", "train", "examples/adult/job.yaml", "train.max_steps=20"]
        began["train"] = time.perf_counter() - start
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            stage = next((s for s, sign in STAGES.items() if line.startswith(sign)), None)
            if stage:
                began.setdefault(stage, time.perf_counter() - start)
    total = time.perf_counter() - start
    if process.returncode != 0:
        print("\n".join(lines[-30:]), file=sys.stderr)
    reading = meter.read()
    return {
        "status": process.returncode,
        "seconds_to_first_auc": total,
        "began_s": began,
        "test_auc_line": next((x.strip() for x in reversed(lines) if "AUC" in x), None),
        "cpu_s": reading.cpu_s,
        "other_cores": reading.other_cores,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
