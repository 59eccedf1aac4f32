"""The files of cluster/ are accepted by the tools that read them, agree with each other, and open no door.

No cloud and no Kubernetes is contacted: `ray up`'s own validation runs on the file, and the RayJob is held against a
schema of the fields it uses. Every check is also run on a broken copy, so that it is known to be able to fail.
"""

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it on Python 3.10

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCHEMA = json.loads((Path(__file__).parent / "rayjob_schema.json").read_text())

Config = dict[str, Any]
Edit = Callable[[Config], Any]


def load(name: str) -> Config:
    return yaml.safe_load((CLUSTER / name).read_text())


def edited(config: Config, edit: Edit) -> Config:
    config = copy.deepcopy(config)
    edit(config)
    return config


@pytest.fixture(scope="module")
def ray_cluster() -> Config:
    return load("ray-cluster.yaml")


@pytest.fixture(scope="module")
def rayjob() -> Config:
    return load("rayjob.yaml")


@pytest.fixture(scope="module")
def policy() -> Config:
    return load("network-policy.yaml")


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (CLUSTER / "Dockerfile").read_text()


def pod_templates(rayjob: Config) -> dict[str, Config]:
    """The templates of every pod the job starts, by role."""
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {
        "submitter": rayjob["spec"]["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        **groups,
    }


def worker_group(rayjob: Config) -> Config:
    return rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


def head_pod(rayjob: Config) -> Config:
    return rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


# --- `ray up` ---


def prepare(config: Config) -> Config:
    """What `ray up` does to the file before it turns to the cloud."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(copy.deepcopy(config))
    util.validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster_config(ray_cluster: Config) -> None:
    prepared = prepare(ray_cluster)
    head, worker = (prepared["available_node_types"][name] for name in ("head", "gpu_worker"))
    assert head["resources"].get("GPU", 0) == 0
    assert head["max_workers"] == 0
    assert worker["resources"]["GPU"] >= 1
    assert (worker["min_workers"], worker["max_workers"]) == (0, prepared["max_workers"])


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda config: config.update(max_wokers=8), id="unknown setting"),
        pytest.param(lambda config: config["docker"].update(run_option=[]), id="unknown docker setting"),
        pytest.param(lambda config: config["available_node_types"]["gpu_worker"].update(max_worker=8), id="unknown node setting"),
        pytest.param(lambda config: config["available_node_types"]["head"].pop("resources"), id="no resources"),
        pytest.param(lambda config: config.update(head_node_type="header"), id="unknown head type"),
        pytest.param(lambda config: config["available_node_types"]["gpu_worker"].update(min_workers=99), id="min above max"),
    ],
)
def test_ray_refuses_a_mistyped_cluster_config(ray_cluster: Config, edit: Edit) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        prepare(edited(ray_cluster, edit))


def test_nodes_install_nothing_at_start(ray_cluster: Config) -> None:
    """Ray fills what a file leaves out with commands that install its nightly build."""
    prepared = prepare(ray_cluster)
    assert prepared["head_setup_commands"] == []
    assert prepared["worker_setup_commands"] == []
    without_list = prepare(edited(ray_cluster, lambda config: config.pop("setup_commands")))
    assert without_list["worker_setup_commands"] != []


def open_doors_of_nodes(config: Config) -> list[str]:
    """Ways in which somebody outside the private network could reach, or join, a cluster of `ray up`."""
    config = prepare(config)
    doors = []
    if not config["provider"].get("use_internal_ips"):
        doors.append("provider.use_internal_ips")
    for name, node_type in config["available_node_types"].items():
        interfaces = node_type["node_config"].get("NetworkInterfaces", [])
        # Without interfaces Ray creates a security group whose ssh port is open to every address.
        if not interfaces or any(i.get("AssociatePublicIpAddress", True) or not i["Groups"] for i in interfaces):
            doors.append(f"{name}: public address or Ray's own security group")
    if "--env RAY_AUTH_MODE=token" not in config["docker"]["run_options"]:
        doors.append("no token on every node")
    for role in ("head", "worker"):
        if any("RAY_AUTH_MODE" in option for option in config["docker"].get(f"{role}_run_options", [])):
            doors.append(f"{role} has its own RAY_AUTH_MODE")
    if not any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"]):
        doors.append("dashboard on every interface")
    return doors


def test_nodes_are_private_and_ask_for_the_token(ray_cluster: Config) -> None:
    assert open_doors_of_nodes(ray_cluster) == []


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda config: config["provider"].pop("use_internal_ips"), id="public addresses"),
        pytest.param(
            lambda config: config["available_node_types"]["gpu_worker"]["node_config"].pop("NetworkInterfaces"),
            id="own security group",
        ),
        pytest.param(lambda config: config["docker"]["run_options"].pop(0), id="no token"),
        pytest.param(
            lambda config: config["docker"]["worker_run_options"].append("--env RAY_AUTH_MODE=disabled"),
            id="workers without token",
        ),
        pytest.param(lambda config: config.pop("head_start_ray_commands"), id="Ray's default start command"),
    ],
)
def test_an_open_door_of_the_nodes_is_noticed(ray_cluster: Config, edit: Edit) -> None:
    assert len(open_doors_of_nodes(edited(ray_cluster, edit))) == 1


def test_the_token_is_where_the_containers_look_for_it(ray_cluster: Config) -> None:
    path = next(o.split("RAY_AUTH_TOKEN_PATH=")[1] for o in ray_cluster["docker"]["run_options"] if "TOKEN_PATH" in o)
    assert str(Path(path).parent) in ray_cluster["file_mounts"]


def test_containers_of_nodes_have_shared_memory(ray_cluster: Config) -> None:
    for role in ("head", "worker"):
        assert any("--shm-size=" in option for option in ray_cluster["docker"][f"{role}_run_options"]), role


# --- RayJob ---


def test_the_rayjob_matches_the_schema(rayjob: Config) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(rayjob, SCHEMA)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda job: job.update(apiVersion="ray.io/v1alpha1"), id="old API"),
        pytest.param(lambda job: job["spec"].update(entryPoint=job["spec"].pop("entrypoint")), id="entryPoint"),
        pytest.param(lambda job: job["spec"].update(entrypoint="promptmm pipeline demo run.dir=/tmp/run"), id="local run"),
        pytest.param(lambda job: job["spec"].update(shutdownAfterJobFinishes=False), id="cluster left running"),
        pytest.param(lambda job: job["spec"]["rayClusterSpec"].pop("authOptions"), id="no token"),
        pytest.param(lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="disabled"), id="token off"),
        pytest.param(lambda job: job["spec"]["rayClusterSpec"].update(enableInTreeAutoScaling=True), id="enableInTreeAutoScaling"),
        pytest.param(lambda job: worker_group(job).update(maxReplica=4), id="maxReplica"),
        pytest.param(lambda job: worker_group(job).update(minReplicas="0"), id="number in quotes"),
        pytest.param(lambda job: worker_group(job)["rayStartParams"].update({"num-cpus": 4}), id="number not in quotes"),
        pytest.param(
            lambda job: head_pod(job)["containers"][0]["resources"]["limits"].update({"nvidia.com/gpus": "1"}),
            id="nvidia.com/gpus",
        ),
        pytest.param(lambda job: head_pod(job)["containers"][0]["resources"]["limits"].update(memory="16GB"), id="wrong unit"),
        pytest.param(lambda job: head_pod(job)["containers"][0].pop("resources"), id="no resources"),
        pytest.param(lambda job: head_pod(job)["containers"][0].pop("image"), id="no image"),
        pytest.param(lambda job: head_pod(job)["containers"][0]["ports"][0].update(hostPort=6379), id="hostPort"),
        pytest.param(lambda job: head_pod(job).update(hostNetwork=True), id="hostNetwork"),
    ],
)
def test_the_schema_refuses_a_mistyped_rayjob(rayjob: Config, edit: Edit) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(edited(rayjob, edit), SCHEMA)


def test_gpu_workers_scale_from_zero_and_the_head_has_no_gpu(rayjob: Config) -> None:
    group = worker_group(rayjob)
    assert group["minReplicas"] == 0 < group["maxReplicas"]
    assert "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert all("nvidia.com/gpu" not in c["resources"]["limits"] for c in head_pod(rayjob)["containers"])


def has_shared_memory(pod: Config) -> bool:
    """Whether the Ray container of the pod mounts an in-memory /dev/shm."""
    in_memory = {v["name"] for v in pod.get("volumes", []) if v.get("emptyDir", {}).get("medium") == "Memory"}
    mounts = pod["containers"][0].get("volumeMounts", [])
    return any(mount["mountPath"] == "/dev/shm" and mount["name"] in in_memory for mount in mounts)


def test_every_ray_pod_mounts_shared_memory(rayjob: Config) -> None:
    ray_pods = {role: template["spec"] for role, template in pod_templates(rayjob).items() if role != "submitter"}
    assert len(ray_pods) >= 2
    assert [role for role, pod in ray_pods.items() if not has_shared_memory(pod)] == []


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda pod: pod["containers"][0]["volumeMounts"].clear(), id="not mounted"),
        pytest.param(lambda pod: pod["volumes"][-1]["emptyDir"].pop("medium"), id="on disk"),
        pytest.param(lambda pod: pod["volumes"].clear(), id="no volume"),
    ],
)
def test_missing_shared_memory_is_noticed(rayjob: Config, edit: Edit) -> None:
    assert not has_shared_memory(edited(head_pod(rayjob), edit))


def test_every_mount_has_its_volume(rayjob: Config) -> None:
    for role, template in pod_templates(rayjob).items():
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        mounts = {mount["name"] for c in template["spec"]["containers"] for mount in c.get("volumeMounts", [])}
        assert mounts == volumes, role


# --- the fence ---


def exposures(node: Any, path: str = "") -> Iterator[str]:
    """Every place of a manifest that puts a pod on a host's or a load balancer's address."""
    if isinstance(node, list):
        for index, child in enumerate(node):
            yield from exposures(child, f"{path}[{index}]")
    elif isinstance(node, dict):
        for key, child in node.items():
            if key in ("hostPort", "hostNetwork", "hostIPC", "enableIngress", "nodePort", "externalIPs", "privileged"):
                yield f"{path}.{key}"
            if child in ("LoadBalancer", "NodePort", "Ingress") and key in ("type", "serviceType", "kind"):
                yield f"{path}.{key}={child}"
            yield from exposures(child, f"{path}.{key}")


def manifests() -> Iterator[tuple[str, Config]]:
    for path in sorted(CLUSTER.glob("*.yaml")):
        if path.name != "ray-cluster.yaml":
            yield from ((path.name, document) for document in yaml.safe_load_all(path.read_text()))


def test_no_manifest_is_reachable_from_outside() -> None:
    found = {name: list(exposures(document)) for name, document in manifests()}
    assert set(found) == {"rayjob.yaml", "network-policy.yaml"}
    assert {name: places for name, places in found.items() if places} == {}


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        (lambda job: head_pod(job)["containers"][0]["ports"][1].update(hostPort=8265), "hostPort"),
        (lambda job: head_pod(job).update(hostNetwork=True), "hostNetwork"),
        (
            lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"].update(serviceType="LoadBalancer"),
            "serviceType=LoadBalancer",
        ),
        (lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"].update(enableIngress=True), "enableIngress"),
    ],
)
def test_an_exposed_manifest_is_noticed(rayjob: Config, edit: Edit, place: str) -> None:
    assert [found.rsplit(".", 1)[1] for found in exposures(edited(rayjob, edit))] == [place]


def gaps_in_fence(policy: Config, rayjob: Config) -> list[str]:
    """What of the job lies outside the policy, and whom else than the job's pods the policy admits."""
    spec = policy["spec"]
    gaps = []
    if policy["metadata"]["namespace"] != rayjob["metadata"]["namespace"]:
        gaps.append("another namespace")
    if "Ingress" not in spec["policyTypes"]:
        gaps.append("ingress is not restricted")
    fence = spec["podSelector"]["matchLabels"]
    for role, template in pod_templates(rayjob).items():
        if not fence.items() <= template["metadata"]["labels"].items():
            gaps.append(f"{role} is outside")
    for rule in spec["ingress"]:
        # A rule without `from`, or a peer that selects every pod, admits everybody.
        for peer in rule.get("from") or [{}]:
            pods = peer.get("podSelector", {}).get("matchLabels")
            own = set(peer) == {"podSelector"} and pods == fence
            operator = (
                set(peer) == {"podSelector", "namespaceSelector"}
                and pods == {"app.kubernetes.io/component": "kuberay-operator"}
                and peer["namespaceSelector"].get("matchLabels")
                and [port["port"] for port in rule.get("ports", [])] == [8265]
            )
            if not (own or operator):
                gaps.append(f"admits {peer}")
    if {"from": [{"podSelector": {"matchLabels": fence}}]} not in spec["ingress"]:
        gaps.append("the pods cannot reach each other")
    return gaps


def test_only_the_pods_of_the_job_reach_each_other(policy: Config, rayjob: Config) -> None:
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert gaps_in_fence(policy, rayjob) == []


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda policy: policy["metadata"].update(namespace="default"), id="namespace"),
        pytest.param(lambda policy: policy["spec"].update(policyTypes=["Egress"]), id="egress only"),
        pytest.param(lambda policy: policy["spec"]["ingress"].append({}), id="everybody"),
        pytest.param(lambda policy: policy["spec"]["ingress"].append({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}), id="cidr"),
        pytest.param(lambda policy: policy["spec"]["ingress"][1].pop("ports"), id="operator on every port"),
        pytest.param(lambda policy: policy["spec"]["ingress"][1]["from"][0].pop("podSelector"), id="whole namespace"),
        pytest.param(lambda policy: policy["spec"]["ingress"].pop(0), id="workers cut off"),
    ],
)
def test_a_gap_in_the_fence_is_noticed(policy: Config, rayjob: Config, edit: Edit) -> None:
    assert len(gaps_in_fence(edited(policy, edit), rayjob)) == 1


def test_a_pod_outside_the_fence_is_noticed(policy: Config, rayjob: Config) -> None:
    unlabelled = edited(rayjob, lambda job: worker_group(job)["template"]["metadata"]["labels"].clear())
    assert gaps_in_fence(policy, unlabelled) == ["gpu is outside"]


# --- one image, one version ---


@pytest.fixture(scope="module")
def ray_pin() -> str:
    constraints = ROOT / "constraints.txt"
    if not constraints.exists():
        pytest.skip("no constraints.txt at the root of the repository")
    pin = re.search(r"^ray==(\S+)$", constraints.read_text(), re.MULTILINE)
    assert pin, "constraints.txt does not pin ray"
    return pin[1]


def test_image_and_manifests_use_the_pinned_ray(ray_pin: str, dockerfile: str, rayjob: Config, ray_cluster: Config) -> None:
    base = re.findall(r"^FROM rayproject/ray:(\S+?)-py(\d)(\d+)-gpu$", dockerfile, re.MULTILINE)
    assert [version for version, *_ in base] == [ray_pin]
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == ray_pin
    images = {c["image"] for template in pod_templates(rayjob).values() for c in template["spec"]["containers"]}
    images.add(ray_cluster["docker"]["image"])
    assert len(images) == 1
    assert images.pop().endswith(f":ray{ray_pin}")


def test_dgl_has_a_wheel_for_the_python_of_the_image(dockerfile: str) -> None:
    version = re.search(r"^FROM \S+-py3(\d+)-gpu$", dockerfile, re.MULTILINE)
    assert version
    assert int(version[1]) in (10, 11)


def test_the_image_gets_all_that_the_wheel_is_built_from(dockerfile: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {path.split("/")[0] for path in project["tool"]["setuptools"]["package-dir"].values()}
    needed |= {"pyproject.toml", "constraints.txt", project["project"]["readme"], *project["project"]["license-files"]}
    copied = {source for line in re.findall(r"^COPY --chown=\S+ (.+)$", dockerfile, re.MULTILINE) for source in line.split()[:-1]}
    assert copied == needed
    assert [name for name in copied - {"constraints.txt"} if not (ROOT / name).exists()] == []


def test_the_image_installs_existing_extras_under_the_constraints(dockerfile: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    install = re.search(r'^RUN pip install .*-c constraints\.txt "\.\[(.+)\]"$', dockerfile, re.MULTILINE)
    assert install
    assert {"train", "s3"} <= set(install[1].split(",")) <= set(extras)
