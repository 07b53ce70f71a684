"""Rendered manifests: as they were, as Kubernetes and KubeRay want them, and what must hold of any."""

from __future__ import annotations

import difflib
import inspect
import json
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml
from kuberay_fields import KINDS, META, problems
from rendered_clusters import CLUSTERS, GOLDEN, cluster, job, prices, rendered

from satrap.deploy import gcloud_script, render
from satrap.deploy.groups import MEMORY, POOLING, pods_of
from satrap.errors import JobError
from satrap.launch import placing, run
from satrap.observe.endpoint import PORTS
from satrap.plan import Cluster
from satrap.plan.cluster import cluster_from_dict
from satrap.schema import job_from_dict, override
from satrap.schema.strict import plain

KUBERNETES = "1.33"


def trees(files: dict[str, str]) -> list[dict[str, Any]]:
    return [t for name, text in files.items() if name.endswith(".yaml") for t in yaml.safe_load_all(text)]


def changed(name: str, **changes: Any) -> Cluster:
    tree = plain(cluster(name))
    for path, value in changes.items():
        node = tree
        *parents, last = path.split("__")
        for key in parents:
            node = node[key]
        node[last] = value
    return cluster_from_dict(tree)


def ray_job(files: dict[str, str]) -> dict[str, Any]:
    return next(t for t in trees(files) if t["kind"] == "RayJob")


def groups(files: dict[str, str]) -> dict[str, dict[str, Any]]:
    spec = ray_job(files)["spec"]["rayClusterSpec"]
    return {"head": spec["headGroupSpec"], **{g["groupName"]: g for g in spec["workerGroupSpecs"]}}


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_is_rendered_is_as_it_was(name: str) -> None:
    # After a wanted change: python tests/deploy/rendered_clusters.py, and look at the diff.
    files = rendered(name)
    golden = {p.name: p.read_text(encoding="utf-8") for p in (GOLDEN / name).iterdir()}
    assert set(files) == set(golden)
    for file, text in files.items():
        diff = difflib.unified_diff(golden[file].splitlines(), text.splitlines(), "golden", "rendered", lineterm="")
        assert text == golden[file], f"{name}/{file}\n" + "\n".join(diff)


def test_a_change_of_the_job_shows_in_the_diff_and_nowhere_else() -> None:
    before = render(job("persia"), cluster("persia"), prices())
    other = msgspec.structs.replace(job("persia"), default_dim=64)
    after = render(other, cluster("persia"), prices())
    assert [name for name in before if before[name] != after[name]] == ["10-job.yaml"]
    assert "default_dim: 64" in after["10-job.yaml"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_pods_are_given_the_very_job_with_checkpoints_in_the_bucket_where_there_is_one(name: str) -> None:
    files = render(job(name), cluster(name), prices())
    config = yaml.safe_load(files["10-job.yaml"])
    kubernetes_validate.validate(config, KUBERNETES, strict=True)
    given = job_from_dict(yaml.safe_load(config["data"]["job.yaml"]))
    folder = None if name == "kind" else "gs://my-project-satrap/checkpoints"
    assert given.train.checkpoint.folder == folder
    assert override(given, ["train.checkpoint.folder=null"]) == job(name)


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_manifest_fits_its_published_schema(name: str) -> None:
    # Bug: a field that does not exist, which the API server drops or refuses an hour into a rollout.
    for tree in trees(rendered(name)):
        fields = KINDS.get((tree["apiVersion"], tree["kind"]))
        if fields is None:
            kubernetes_validate.validate(tree, KUBERNETES, strict=True)
            continue
        pods: list[Any] = []
        found = problems(tree["metadata"], META, "metadata", pods) + problems(tree["spec"], fields, "spec", pods)
        assert not found, found
        for template in pods:
            pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "x", **template["metadata"]}}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_validation_can_fail() -> None:
    pods: list[Any] = []
    assert problems({"entrypiont": "x"}, KINDS["ray.io/v1", "RayJob"], "spec", pods) == [
        "spec.entrypiont: no such field"
    ]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "spec": {"contaners": []}}, KUBERNETES, strict=True
        )


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_manifest_holds_a_secret(name: str) -> None:
    files = rendered(name)
    assert not [t for t in trees(files) if t["kind"] == "Secret"]
    text = "".join(files.values())
    assert "BEGIN" not in text
    assert "secret_key" not in text.lower()


@pytest.mark.parametrize("name", CLUSTERS)
def test_servers_ask_for_memory_alone_and_stay_off_accelerators(name: str) -> None:
    # Bug: a server takes a place on a GPU machine, and a worker waits for it for ever.
    server = groups(rendered(name))["servers"]
    offered = json.loads(json.loads(server["rayStartParams"]["resources"]))
    assert offered == {placing.MEMORY: 1} == {MEMORY: 1}
    assert placing.POOLING == POOLING
    spec = server["template"]["spec"]
    assert "nvidia.com/gpu" not in spec["containers"][0]["resources"]["requests"]
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    keys = {(e["key"], e["operator"]) for t in terms for e in t["matchExpressions"]}
    assert ("cloud.google.com/gke-accelerator", "DoesNotExist") in keys
    assert not [t for t in spec.get("tolerations", []) if t["key"] == "nvidia.com/gpu"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_process_of_the_job_lands_on_the_head(name: str) -> None:
    assert groups(rendered(name))["head"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", CLUSTERS)
def test_pods_run_as_nobody_in_particular(name: str) -> None:
    for group in groups(rendered(name)).values():
        for container in group["template"]["spec"]["containers"]:
            security = container["securityContext"]
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] > 0
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"]["drop"] == ["ALL"]


def test_the_original_cluster_has_its_138_machines_and_gpus() -> None:
    found = groups(rendered("persia"))
    count = {name: g.get("replicas", 1) for name, g in found.items()}
    assert count == {"head": 1, "servers": 30, "workers": 8, "readers": 100}
    gpus = found["workers"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == "8"
    assert "--servers 30 --workers 64 --embedding-workers 64" in ray_job(rendered("persia"))["spec"]["entrypoint"]


def test_quotas_of_the_queue_are_the_sum_of_what_pods_ask_for() -> None:
    # Bug: a quota below the sum, and Kueue never starts the job.
    files = rendered("persia")
    queue = next(t for t in trees(files) if t["kind"] == "ClusterQueue")
    flavors = {
        f["name"]: {r["name"]: r["nominalQuota"] for r in f["resources"]}
        for f in queue["spec"]["resourceGroups"][0]["flavors"]
    }
    for name, group in groups(files).items():
        asked = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        n = group.get("replicas", 1)
        quota = flavors[f"satrap-{name}"]
        assert quota["cpu"] == n * int(asked["cpu"])
        assert quota["memory"] == f"{n * int(asked['memory'][:-2])}Gi"
        assert quota["nvidia.com/gpu"] == n * int(asked.get("nvidia.com/gpu", 0))


def test_budgets_let_no_server_be_drained() -> None:
    budgets = {
        t["metadata"]["name"]: t["spec"]["maxUnavailable"]
        for t in trees(rendered("persia"))
        if t["kind"] == "PodDisruptionBudget"
    }
    assert budgets["clicks-servers"] == budgets["clicks-workers"] == 0
    assert budgets["clicks-readers"] == 1


def test_a_place_for_checkpoints_that_the_job_names_is_kept() -> None:
    named = override(job("persia"), ["train.checkpoint.folder=s3://models/clicks"])
    config = yaml.safe_load(render(named, cluster("persia"), prices())["10-job.yaml"])
    assert job_from_dict(yaml.safe_load(config["data"]["job.yaml"])) == named


def test_the_monitor_finds_the_port_of_every_process_of_every_pod() -> None:
    # Bug: processes serve at ports of their own choice, and Prometheus sees Ray's metrics alone.
    files = rendered("persia")
    words = ray_job(files)["spec"]["entrypoint"].split()
    first = int(words[words.index("--metrics-port") + 1])
    spec = next(t for t in trees(files) if t["kind"] == "PodMonitor")["spec"]
    asked = [e["port"] for e in spec["podMetricsEndpoints"]]
    for name, processes in {"servers": 1, "workers": 8, "readers": 1}.items():
        container = groups(files)[name]["template"]["spec"]["containers"][0]
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        assert set(ports) <= set(asked)
        # One more than there are processes: for one that comes from a lost machine.
        assert [p for n, p in ports.items() if n != "metrics"] == list(range(first, first + processes + 1))
    policy = next(t for t in trees(files) if t["metadata"]["name"] == "clicks-metrics")
    (rule,) = policy["spec"]["ingress"]
    assert {"protocol": "TCP", "port": first, "endPort": first + PORTS - 1} in rule["ports"]


def test_an_annotation_leads_to_the_first_process_of_a_pod() -> None:
    found = {
        n: g["template"]["metadata"]["annotations"]["prometheus.io/port"]
        for n, g in groups(rendered("gke-small")).items()
    }
    assert found == {"head": "8080", "servers": "9300", "workers": "9300"}


def test_the_head_notices_lost_machines_before_servers_are_given_up() -> None:
    env = {
        e["name"]: e["value"] for e in groups(rendered("persia"))["head"]["template"]["spec"]["containers"][0]["env"]
    }
    period, timeout, times = (
        int(env[f"RAY_health_check_{k}"]) for k in ("period_ms", "timeout_ms", "failure_threshold")
    )
    deadline_s = inspect.signature(run).parameters["server_deadline_s"].default
    assert times * (period + timeout) / 1000 <= deadline_s / 2


def test_only_readers_scale_and_only_where_asked() -> None:
    fixed = groups(rendered("persia"))
    assert all(g["minReplicas"] == g["maxReplicas"] for n, g in fixed.items() if n != "head")
    free = groups(render(job("persia"), changed("persia", kubernetes__autoscale=True), prices()))
    assert free["readers"]["minReplicas"] == 0
    assert free["servers"]["minReplicas"] == 30


def test_spot_machines_have_less_time_to_end_than_the_provider_gives() -> None:
    spec = groups(rendered("persia"))["readers"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] < 30
    assert spec["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("persia", {"servers__count": None}, "servers.count is missing"),
        ("persia", {"servers__machine": "a2-highgpu-8g"}, "has GPUs"),
        ("persia", {"servers__machine": "m2-ultramem-417"}, "did you mean 'm2-ultramem-416'"),
        ("persia", {"kubernetes__keys_secret": None}, "keys_secret is missing"),
        ("persia", {"google": None}, "nowhere to keep run folders"),
        ("persia", {"servers__processes": 16}, "set store.partitions=512"),
        ("kind", {"servers__count": 2, "kubernetes__keys_secret": "k"}, "ReadWriteOnce can be mounted on one machine"),
    ],
)
def test_what_cannot_run_is_refused_with_what_to_do(name: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError, match=says):
        render(job(name), changed(name, **changes), prices())


def test_a_journal_in_a_bucket_is_refused() -> None:
    # Bug: gradients are acknowledged as on disk, and are in the memory of a machine that dies.
    kept = msgspec.structs.replace(job("persia"), store=msgspec.structs.replace(job("persia").store, durability="disk"))
    with pytest.raises(JobError, match="a bucket keeps no journal"):
        render(kept, cluster("persia"), prices())


def test_data_on_the_users_own_disk_is_refused() -> None:
    # Bug: the job starts 138 machines and ends with "no such file".
    with pytest.raises(JobError, match="is a path of this machine"):
        render(
            msgspec.structs.replace(
                job("kind"), data=msgspec.structs.replace(job("kind").data, train=("train.parquet",))
            ),
            cluster("kind"),
        )


def test_the_script_names_every_machine_and_its_cost() -> None:
    script = gcloud_script(job("persia"), cluster("persia"), prices())
    for name, pods in pods_of(cluster("persia"), prices()).items():
        assert f"node-pools create {name} " in script
        assert f"--machine-type={pods.kind}" in script
        assert f"--num-nodes={pods.count}" in script
    assert "together 2,805.27 an hour" in script
    assert "--accelerator=type=nvidia-tesla-a100,count=8" in script


def test_what_the_script_makes_the_other_takes_away_but_never_the_models() -> None:
    up, down = (gcloud_script(job("persia"), cluster("persia"), prices(), down=d) for d in (False, True))
    assert "clusters create persia-138" in up
    assert "clusters delete persia-138" in down
    assert "networks create satrap" in up
    assert "networks delete satrap" in down
    removing = [line for line in down.splitlines() if "storage rm" in line]
    assert removing
    assert all(line.startswith("#") for line in removing)


def test_the_scripts_are_valid_shell() -> None:
    import subprocess

    for name in ("gke-small", "persia"):
        for down in (False, True):
            script = gcloud_script(job(name), cluster(name), prices(), down=down)
            assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
