#!/usr/bin/env bash
# gke-small: machines and what they cost an hour while they run.
#   head        1 x e2-standard-4: 0.13
#   servers     2 x n2-highmem-16: 2.10
#   workers     2 x g2-standard-12 (spot): 0.80
#   together 3.03 an hour (USD, prices of 2026-01, us-central1); disks, network and the control plane not included.
set -euo pipefail

# Services
gcloud services enable compute.googleapis.com container.googleapis.com storage.googleapis.com \
  --project=my-project

# The cluster, with a small pool for system pods and the operators
gcloud container clusters create gke-small \
  --project=my-project \
  --zone=us-central1-a \
  --network=default \
  --num-nodes=2 \
  --machine-type=e2-standard-4 \
  --release-channel=regular \
  --workload-pool=my-project.svc.id.goog \
  --addons=GcsFuseCsiDriver \
  --enable-ip-alias \
  --enable-dataplane-v2 \
  --enable-shielded-nodes \
  --enable-managed-prometheus

# head
gcloud container node-pools create head \
  --project=my-project \
  --zone=us-central1-a \
  --cluster=gke-small \
  --machine-type=e2-standard-4 \
  --num-nodes=1 \
  --node-taints=satrap.dev/role=head:NoSchedule \
  --node-labels=satrap.dev/role=head \
  --enable-autoscaling \
  --min-nodes=0 \
  --max-nodes=1 \
  --workload-metadata=GKE_METADATA \
  --enable-gvnic

# servers
gcloud container node-pools create servers \
  --project=my-project \
  --zone=us-central1-a \
  --cluster=gke-small \
  --machine-type=n2-highmem-16 \
  --num-nodes=2 \
  --node-taints=satrap.dev/role=servers:NoSchedule \
  --node-labels=satrap.dev/role=servers \
  --enable-autoscaling \
  --min-nodes=0 \
  --max-nodes=2 \
  --workload-metadata=GKE_METADATA \
  --enable-gvnic

# workers
gcloud container node-pools create workers \
  --project=my-project \
  --zone=us-central1-a \
  --cluster=gke-small \
  --machine-type=g2-standard-12 \
  --num-nodes=2 \
  --node-taints=satrap.dev/role=workers:NoSchedule \
  --node-labels=satrap.dev/role=workers \
  --enable-autoscaling \
  --min-nodes=0 \
  --max-nodes=2 \
  --workload-metadata=GKE_METADATA \
  --enable-gvnic \
  --accelerator=type=nvidia-l4,count=1,gpu-driver-version=latest \
  --spot \
  --placement-type=COMPACT

# Where run folders are kept: folders are renamed at once only with a hierarchical namespace
gcloud storage buckets create gs://my-project-satrap \
  --project=my-project \
  --location=us-central1 \
  --uniform-bucket-level-access \
  --enable-hierarchical-namespace \
  --public-access-prevention

# The job's pods, and nobody else, may read and write it
number="$(gcloud projects describe my-project --format="value(projectNumber)")"
gcloud storage buckets add-iam-policy-binding gs://my-project-satrap \
  --member="principal://iam.googleapis.com/projects/${number}/locations/global/workloadIdentityPools/my-project.svc.id.goog/subject/ns/satrap/sa/clicks" \
  --role=roles/storage.objectUser

# Operators, then the job
gcloud container clusters get-credentials gke-small \
  --project=my-project \
  --zone=us-central1-a
helm repo add kuberay https://ray-project.github.io/kuberay-helm/
helm upgrade kuberay-operator kuberay/kuberay-operator \
  --install \
  --version=1.5.1 \
  --namespace=kuberay-operator \
  --create-namespace
helm upgrade kueue oci://registry.k8s.io/kueue/charts/kueue \
  --install \
  --version=0.14.4 \
  --namespace=kueue-system \
  --create-namespace \
  --wait

# Keys of servers and workers: made here, kept in a Secret, in no file that is rendered
satrap keys new keys
kubectl create namespace satrap --dry-run=client -o yaml | kubectl apply -f -
kubectl create secret generic satrap-keys -n satrap --from-file=keys/

kubectl apply -f deploy/
