"""The chart in `deploy/helm`: rendered by helm, and checked by the schemas of Kubernetes."""

import json
import re
import subprocess
from dataclasses import fields
from typing import Any

import pytest
import yaml

from common.settings import Settings, load_settings
from tests.support.kubernetes import CHART, REQUIRED, helm, merged, refusal, render
from tests.support.processes import ROOT, RedisServer, Shell, free_port, wait_until
from tests.support.prometheus_server import running_prometheus
from workers.cli import start

POOLS = ("cpu", "gpu", "train")
SCALED = {"enabled": True}
#: Everything switched on.
ALL: dict[str, Any] = {
    "image": {"registry": "registry.example.org/nlp/", "tag": "1.2.3", "pullSecrets": ["pull"]},
    "graceSeconds": 90,
    "settings": {
        "HUGQUEUE_ALLOWED_MODELS": "my-org/*",
        "HUGQUEUE_LEASE": 60,
        "HUGQUEUE_MAX_JOB_RECORDS": 100_000_000,
        "HUGQUEUE_RENEW": 0.5,
        "HF_HUB_OFFLINE": True,
    },
    "settingsSecrets": ["aws"],
    "extraEnv": [{"name": "NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}],
    "extraVolumes": [{"name": "store", "persistentVolumeClaim": {"claimName": "store"}}],
    "extraVolumeMounts": [{"name": "store", "mountPath": "/store"}],
    "serviceAccountName": "reader",
    "huggingFace": {"existingSecret": "hub"},
    "modelCache": {"existingClaim": "cache"},
    "models": {"existingClaim": "models"},
    "trainedModels": {"existingClaim": "trained"},
    "workers": {
        "cpu": {"queues": ["cpu"], "preload": ["embedding"], "env": {"HUGQUEUE_LEASE": "7"}, "autoscaling": SCALED},
        "gpu": {
            "enabled": True,
            "gpus": 2,
            "runtimeClassName": "nvidia",
            "autoscaling": SCALED,
            "args": ["--dtype=auto"],
        },
        "train": {"enabled": True, "gpus": 4, "image": "hugqueue-worker-gpu", "autoscaling": SCALED},
    },
    "autoscaling": {"prometheus": "http://prometheus:9090", "selector": 'namespace="nlp"', "authentication": "auth"},
    "redis": {"storageClass": "fast", "maxmemory": "4gb", "clients": [{"namespaceSelector": {}}]},
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "monitoring"}}},
}
CASES = {
    "defaults": {},
    "all": ALL,
    "own redis": {
        "redis": {"enabled": False},
        "externalRedis": {"existingSecret": "broker"},
        "flower": {"enabled": False},
    },
    "existing secrets": {
        "redis": {"password": "", "existingSecret": "r"},
        "flower": {"basicAuth": "", "existingSecret": "f"},
        "metrics": {"enabled": False},
        "workers": {"gpu": {"enabled": True, "resources": {}, "maxUnavailable": "50%"}},
    },
}
#: Kinds of other projects, whose schemas no package has.
CUSTOM = {"ScaledObject", "ServiceMonitor", "PodMonitor"}


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """Return name -> object."""
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def container(workload: dict[str, Any]) -> dict[str, Any]:
    [found] = workload["spec"]["template"]["spec"]["containers"]
    return found


def environment_of(workload: dict[str, Any]) -> dict[str, Any]:
    """Return variable -> value, or where it comes from."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(workload)["env"]}


@pytest.mark.parametrize("case", CASES)
def test_the_chart_is_linted_and_its_objects_are_valid(case: str) -> None:
    values = merged(REQUIRED, CASES[case])
    done = helm("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout + done.stderr
    objects = render(CASES[case])
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(set(names)) == len(names)
    validator = pytest.importorskip("kubernetes_validate", reason="`make chart-tools` installs it")
    for found in objects:
        if found["kind"] not in CUSTOM:
            for version in ("1.27", "1.37"):
                validator.validate(found, version, strict=True)


def test_the_example_of_the_documentation_works() -> None:
    [example] = re.findall(r"```yaml\n# values.yaml\n(.*?)```", (ROOT / "docs" / "scaling.md").read_text(), re.DOTALL)
    done = helm("template", "hugqueue", str(CHART), values=yaml.safe_load(example))
    assert done.returncode == 0, done.stderr
    objects = [found for found in yaml.safe_load_all(done.stdout) if found]
    assert "hugqueue-client" in done.stdout and not of_kind(objects, "Secret")
    assert of_kind(objects, "ScaledObject").keys() == {"hugqueue-worker-gpu"}


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_confined_and_every_selector_selects_it(case: str) -> None:
    objects = render(CASES[case])
    workloads = of_kind(objects, "Deployment") | of_kind(objects, "StatefulSet")
    labels = {name: found["spec"]["template"]["metadata"]["labels"] for name, found in workloads.items()}
    for name, found in workloads.items():
        pod = found["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["automountServiceAccountToken"] is False, name
        inside = container(found)["securityContext"]
        assert inside["readOnlyRootFilesystem"] is True and inside["capabilities"] == {"drop": ["ALL"]}, name
        # No version among them: an upgrade of the chart alone restarts nothing.
        assert found["spec"]["selector"]["matchLabels"] == labels[name]
        mounted = {mount["name"] for mount in container(found)["volumeMounts"]}
        assert mounted == {
            v["name"]
            for v in (*pod["volumes"], *(t["metadata"] for t in found["spec"].get("volumeClaimTemplates", ())))
        }
    for service in of_kind(objects, "Service").values():
        [name] = [name for name, found in labels.items() if service["spec"]["selector"].items() <= found.items()]
        ports = {port["name"] for port in container(workloads[name])["ports"]}
        assert all(port["targetPort"] in ports for port in service["spec"]["ports"]), name
    for name, budget in of_kind(objects, "PodDisruptionBudget").items():
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels[name].items()


def test_workers_have_the_time_to_stop_that_their_grace_needs() -> None:
    objects = of_kind(render(ALL), "Deployment")
    for pool in POOLS:
        found = objects[f"nlp-hugqueue-worker-{pool}"]
        needed = Settings(grace_seconds=float(environment_of(found)["HUGQUEUE_GRACE"])).supervisor_stop_seconds
        assert found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == needed == 120


def test_workers_are_started_with_options_that_exist_and_settings_that_exist() -> None:
    objects = of_kind(render(ALL), "Deployment")
    known = {setting.metadata["env"] for setting in fields(Settings)}
    for pool in POOLS:
        found = objects[f"nlp-hugqueue-worker-{pool}"]
        command, *arguments = container(found)["args"]
        assert command == "start"
        start.make_context("start", list(arguments))
        assert {name for name in environment_of(found) if name.startswith("HUGQUEUE_")} <= known
        assert container(found)["readinessProbe"]["exec"]["command"] == ["workers", "check"]
        assert "livenessProbe" not in container(found)
    cpu, gpu, train = (objects[f"nlp-hugqueue-worker-{pool}"] for pool in POOLS)
    assert container(cpu)["image"] == "registry.example.org/nlp/hugqueue-worker-cpu:1.2.3"
    assert environment_of(cpu)["HUGQUEUE_LEASE"] == "7" and environment_of(gpu)["HUGQUEUE_LEASE"] == "60"
    assert environment_of(cpu)["HF_HUB_OFFLINE"] == "true" and environment_of(cpu)["HUGQUEUE_RENEW"] == "0.5"
    settings = {name: value for name, value in environment_of(gpu).items() if isinstance(value, str)}
    assert load_settings(settings | {"CELERY_BROKER_URL": "redis://x"}).max_job_records == 100_000_000
    assert environment_of(gpu)["NODE_IP"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
    assert all(found["spec"]["template"]["spec"]["serviceAccountName"] == "reader" for found in objects.values())
    assert environment_of(cpu)["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert container(gpu)["resources"]["limits"]["nvidia.com/gpu"] == 2 and "--gpus=2" in container(gpu)["args"]
    assert {"--train", "--gpus=4", "--device=gpu"} <= set(container(train)["args"])
    assert all("replicas" not in found["spec"] for found in (cpu, gpu, train))  # KEDA decides


def test_a_new_password_restarts_who_uses_it() -> None:
    def checksums(values: dict[str, Any]) -> dict[str, str]:
        objects = render(values)
        workloads = of_kind(objects, "Deployment") | of_kind(objects, "StatefulSet")
        annotations = {name: found["spec"]["template"]["metadata"]["annotations"] for name, found in workloads.items()}
        return {name: found["checksum/passwords"] for name, found in annotations.items()}

    first = checksums({})
    assert not first.items() & checksums({"redis": {"password": "b2"}}).items()
    login = checksums({"flower": {"basicAuth": "me:other"}})
    assert {name for name in first if first[name] != login[name]} == {"nlp-hugqueue-flower"}


def test_an_upgrade_stops_as_many_workers_at_once_as_a_drain() -> None:
    objects = render({"workers": {"cpu": {"maxUnavailable": "50%"}, "gpu": {"enabled": True, "maxUnavailable": 0}}})
    deployments = of_kind(objects, "Deployment")
    for pool, expected in (("cpu", "50%"), ("gpu", 1)):  # none at all would stop every upgrade
        rolling = deployments[f"nlp-hugqueue-worker-{pool}"]["spec"]["strategy"]["rollingUpdate"]
        assert rolling == {"maxSurge": 0, "maxUnavailable": expected}


def test_redis_refuses_a_password_that_cannot_be_part_of_a_url() -> None:
    command = container(of_kind(render({}), "StatefulSet")["nlp-hugqueue-redis"])["command"]
    environ = {"PATH": "/usr/bin:/bin", "REDIS_PASSWORD": "a/b+c=", "REDIS_MAXMEMORY": "0"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "expected letters and digits" in done.stderr) == (1, True)


def test_redis_and_the_images_are_those_of_the_compose_file() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    objects = render({"workers": {"gpu": {"enabled": True}}})
    redis = container(of_kind(objects, "StatefulSet")["nlp-hugqueue-redis"])
    assert redis["image"] == services["redis"]["image"]
    settings = services["redis"]["command"][2].replace("$$", "$")
    assert redis["command"] == ["sh", "-euc", settings]
    deployments = of_kind(objects, "Deployment")
    for name in ("worker-cpu", "worker-gpu", "flower", "metrics", "control"):
        image = container(deployments[f"nlp-hugqueue-{name}"])["image"]
        assert image == f"{services[name]['image']}:{yaml.safe_load((CHART / 'Chart.yaml').read_text())['appVersion']}"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"flower": {"basicAuth": "me:x"}}, "redis: set password"),
        ({"redis": {"password": "a1"}}, "flower: set basicAuth"),
        ({"redis": {"password": "a@b"}, "flower": {"basicAuth": "me:x"}}, "password"),
        ({"redis": {"enabled": False}, "flower": {"enabled": False}}, "externalRedis: set url"),
        (
            merged(REQUIRED, {"workers": {"train": {"enabled": True}}}),
            "trainedModels.existingClaim or trainedModels.url",
        ),
        (merged(REQUIRED, {"workers": {"cpu": {"autoscaling": SCALED}}}), "the address of Prometheus"),
        (merged(REQUIRED, {"settings": {"HUGQUEUE_GRACE": "5"}}), "HUGQUEUE_GRACE"),
        (merged(REQUIRED, {"settings": {"HF_TOKEN": "hf_x"}}), "HF_TOKEN"),
        (merged(REQUIRED, {"workers": {"cpus": {}}}), "cpus"),
        (merged(REQUIRED, {"workers": {"cpu": {"replicas": "two"}}}), "replicas"),
        (merged(REQUIRED, {"workers": {"cpu": {"maxUnavailable": "0%"}}}), "maxUnavailable"),
        (merged(REQUIRED, {"workers": {"train": {"queues": ["any"]}}}), "train"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_reason(values: dict[str, Any], reason: str) -> None:
    assert reason in refusal(values)


def test_the_schema_names_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: Any, rule: dict[str, Any], path: str) -> None:
        reference = rule.get("$ref") or rule.get("allOf", [{}])[0].get("$ref", "")
        rule = schema["definitions"][reference.rpartition("/")[2]] if reference else rule
        if "properties" not in rule or not isinstance(values, dict) or reference.endswith("resources"):
            return
        missing = {"global"} if path == "values" else {"queues"} if path == "values.workers.train" else set()
        assert set(rule["properties"]) - missing == set(values), path
        for name, value in values.items():
            compare(value, rule["properties"][name], f"{path}.{name}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "values")


def test_the_notes_say_how_to_submit() -> None:
    done = helm("install", "nlp", str(CHART), "--dry-run=client", values=merged(REQUIRED, ALL))
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "port-forward service/nlp-hugqueue-redis" in notes and "nlp-hugqueue-client" in notes
    assert "KEDA starts 0 to 10 gpu workers" in notes


def test_keda_sees_work_without_any_worker_none_when_it_is_done_and_no_answer_without_redis(
    server: RedisServer, shell: Shell, tmp_path: Any
) -> None:
    scaled = of_kind(render(merged(ALL, {"autoscaling": {"selector": 'job="hugqueue"'}})), "ScaledObject")
    queries = {}
    for pool in POOLS:
        spec = scaled[f"nlp-hugqueue-worker-{pool}"]["spec"]
        assert spec["minReplicaCount"] == 0
        assert spec["scaleTargetRef"]["name"] in of_kind(render(ALL), "Deployment")
        [trigger] = spec["triggers"]
        assert trigger["metadata"]["activationThreshold"] == "0" and trigger["metadata"]["ignoreNullValues"] == "false"
        queries[pool] = trigger["metadata"]["query"]
    port = free_port()
    with shell.popen("metrics", "--port", str(port)) as metrics:
        try:
            with running_prometheus(tmp_path, port) as prometheus:
                values = lambda: {pool: prometheus.value(query) for pool, query in queries.items()}  # noqa: E731
                wait_until(lambda: values() == {"cpu": 0, "gpu": 0, "train": 0}, 30, "zero before the first job")
                (tmp_path / "lines.txt").write_text("a\n" * 50)
                job = shell.submit("--task", "test-echo", "--device", "gpu", str(tmp_path / "lines.txt"))
                wait_until(lambda: values() == {"cpu": 0, "gpu": 5, "train": 0}, 30, "a job that no worker can take")
                shell.run("cancel", job)
                wait_until(lambda: values() == {"cpu": 0, "gpu": 0, "train": 0}, 30, "zero after it")
                server.kill()
                wait_until(lambda: set(values().values()) == {None}, 60, "no answer without Redis")
        finally:
            metrics.kill()
