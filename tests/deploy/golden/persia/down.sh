#!/usr/bin/env bash
# persia-138: machines and what they cost an hour while they run.
#   head        1 x n2-highmem-16: 1.05
#   servers    30 x m2-ultramem-416: 2,531.10
#   workers     8 x a2-highgpu-8g: 235.12
#   readers   100 x c2-standard-30 (spot): 38.00
#   together 2,805.27 an hour (USD, prices of 2026-01, us-central1); disks, network and the control plane not included.
set -euo pipefail

# The job, if it still runs
kubectl delete rayjob clicks -n satrap --ignore-not-found || true

# All machines
gcloud container clusters delete persia-138 \
  --project=my-project \
  --zone=us-central1-a \
  --quiet

# The network
gcloud compute networks delete satrap \
  --project=my-project \
  --quiet

# The bucket, with every checkpoint in it. This cannot be undone:
# gcloud storage rm --recursive gs://my-project-satrap
echo "left: gs://my-project-satrap; its checkpoints cost money until you remove it"
