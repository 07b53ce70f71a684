#!/usr/bin/env bash
# gke-small: machines and what they cost an hour while they run.
#   head        1 x e2-standard-4: 0.13
#   servers     2 x n2-highmem-16: 2.10
#   workers     2 x g2-standard-12 (spot): 0.80
#   together 3.03 an hour (USD, prices of 2026-01, us-central1); disks, network and the control plane not included.
set -euo pipefail

# The job, if it still runs
kubectl delete rayjob clicks -n satrap --ignore-not-found || true

# All machines
gcloud container clusters delete gke-small \
  --project=my-project \
  --zone=us-central1-a \
  --quiet

# The bucket, with every checkpoint in it. This cannot be undone:
# gcloud storage rm --recursive gs://my-project-satrap
echo "left: gs://my-project-satrap; its checkpoints cost money until you remove it"
