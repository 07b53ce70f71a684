"""An embedding worker computes nothing: its process loads neither torch nor what reads files."""

from __future__ import annotations

import subprocess
import sys


def test_pooling_loads_neither_torch_nor_pyarrow() -> None:
    look = "import sys, satrap.pooling; print(sorted({'torch', 'pyarrow', 'ray', 'pandas'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
