"""From a job and a cluster file to Kubernetes manifests and cloud commands.

Owns: what is rendered. Pure functions: the same files give the same texts, and nothing is run.
May import: plan, schema, observe, errors. Must never: call a cloud or a cluster, hold a key, import torch or Ray.
"""

from satrap.deploy.gcloud import gcloud_script
from satrap.deploy.render import render

__all__ = ["gcloud_script", "render"]
