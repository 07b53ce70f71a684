"""Observation: how good, how fast, how large; nothing here changes what is trained.

Owns: metrics, the run log and its record shapes (`satrap.observe.runlog`), progress display, plots, the description of
the machine, logging. May import: errors, numpy; rich and matplotlib where they are used, inside functions. Must never:
import torch, know of jobs, batches or tables.
"""

from satrap.observe.logs import log, log_to_stderr
from satrap.observe.machine import cores_available, cpu_seconds, describe, peak_rss_bytes, rss_bytes
from satrap.observe.metrics import BinaryMetrics, Metrics
from satrap.observe.plots import plots
from satrap.observe.progress import Progress, summary_table
from satrap.observe.runlog import RunLog, read_metrics

__all__ = [
    "BinaryMetrics",
    "Metrics",
    "Progress",
    "RunLog",
    "cores_available",
    "cpu_seconds",
    "describe",
    "log",
    "log_to_stderr",
    "peak_rss_bytes",
    "plots",
    "read_metrics",
    "rss_bytes",
    "summary_table",
]
