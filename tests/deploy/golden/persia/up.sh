#!/usr/bin/env bash
# persia-138: machines and what they cost an hour while they run.
#   head        1 x n2-highmem-16: 1.05
#   servers    30 x m2-ultramem-416: 2,531.10
#   workers     8 x a2-highgpu-8g: 235.12
#   readers   100 x c2-standard-30 (spot): 38.00
#   together 2,805.27 an hour (USD, prices of 2026-01, us-central1); disks, network and the control plane not included.
set -euo pipefail

# Services
gcloud services enable compute.googleapis.com container.googleapis.com storage.googleapis.com \
  --project=my-project

# A network of its own, for large packets
gcloud compute networks create satrap \
  --project=my-project \
  --subnet-mode=auto \
  --mtu=8896

# The cluster, with a small pool for system pods and the operators
gcloud container clusters create persia-138 \
  --project=my-project \
  --zone=us-central1-a \
  --network=satrap \
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
  --cluster=persia-138 \
  --machine-type=n2-highmem-16 \
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
  --cluster=persia-138 \
  --machine-type=m2-ultramem-416 \
  --num-nodes=30 \
  --node-taints=satrap.dev/role=servers:NoSchedule \
  --node-labels=satrap.dev/role=servers \
  --enable-autoscaling \
  --min-nodes=0 \
  --max-nodes=30 \
  --workload-metadata=GKE_METADATA \
  --enable-gvnic

# workers
gcloud container node-pools create workers \
  --project=my-project \
  --zone=us-central1-a \
  --cluster=persia-138 \
  --machine-type=a2-highgpu-8g \
  --num-nodes=8 \
  --node-taints=satrap.dev/role=workers:NoSchedule \
  --node-labels=satrap.dev/role=workers \
  --enable-autoscaling \
  --min-nodes=0 \
  --max-nodes=8 \
  --workload-metadata=GKE_METADATA \
  --enable-gvnic \
  --accelerator=type=nvidia-tesla-a100,count=8,gpu-driver-version=latest \
  --placement-type=COMPACT

# readers
gcloud container node-pools create readers \
  --project=my-project \
  --zone=us-central1-a \
  --cluster=persia-138 \
  --machine-type=c2-standard-30 \
  --num-nodes=100 \
  --node-taints=satrap.dev/role=readers:NoSchedule \
  --node-labels=satrap.dev/role=readers \
  --enable-autoscaling \
  --min-nodes=0 \
  --max-nodes=100 \
  --workload-metadata=GKE_METADATA \
  --enable-gvnic \
  --spot

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
gcloud container clusters get-credentials persia-138 \
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
