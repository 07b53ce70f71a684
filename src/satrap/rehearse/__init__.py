"""A cluster in small on this machine: the nodes of a cluster file, a job on them, and machines that are lost.

Owns: network namespaces and Ray nodes in them, what is scaled down and how, failures by plan, the log of a rehearsal.
May import: deploy, launch, checkpoint, ps, plan, schema, observe, errors.
Must never: decide anything about training: it runs `satrap train` as a user would.
"""

from satrap.rehearse.failures import Failure, failure_of
from satrap.rehearse.run import Options, Report, rehearse

__all__ = ["Failure", "Options", "Report", "failure_of", "rehearse"]
