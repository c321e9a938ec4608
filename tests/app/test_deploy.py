"""What deploy/ says of the product is true of it: settings, paths, ports, metrics."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from prometheus_client.parser import text_string_to_metric_families

from app.jobs.job import JobError
from app.settings import Settings
from tests.app.conftest import running_api

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"

# What the store's library and the model hub's read.
OTHERS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"}


def documents(name: str) -> list[dict[str, Any]]:
    """The YAML documents of a manifest."""
    return list(yaml.safe_load_all((KUBERNETES / name).read_text()))


def container(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A deployment's pod and its only container."""
    pod = documents(name)[0]["spec"]["template"]["spec"]
    (only,) = pod["containers"]
    return pod, only


def is_setting(variable: str) -> bool:
    """Whether a process of ours reads a variable."""
    return variable.removeprefix("LONGTAKE_").lower() in Settings.model_fields or variable in OTHERS


def test_the_compose_file_gives_each_worker_a_gpu_of_its_own_and_everybody_the_settings_file() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("api", "worker"):
        assert services[name]["env_file"] == [{"path": "longtake.env", "required": False}]
        assert "LONGTAKE_MODEL" in services[name]["environment"]
        for variable in services[name]["environment"]:
            known = variable.removeprefix("LONGTAKE_").lower() in Settings.model_fields
            assert known or not variable.startswith("LONGTAKE_")
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["0"]
    assert services["worker"]["environment"]["LONGTAKE_DEVICE"] == "${LONGTAKE_DEVICE:-cuda}"


def test_every_variable_of_the_kubernetes_manifests_is_read() -> None:
    kustomization = documents("kustomization.yaml")[0]
    variables = {
        literal.partition("=")[0]
        for generator in kustomization["configMapGenerator"]
        for literal in generator["literals"]
    }
    secrets = (KUBERNETES / "secrets.env.example").read_text().splitlines()
    variables |= {line.partition("=")[0] for line in secrets}
    variables |= {row["name"] for name in ("api.yaml", "worker.yaml") for row in container(name)[1]["env"]}
    assert {
        "LONGTAKE_REDIS_URL",
        "LONGTAKE_STORAGE_URL",
        "LONGTAKE_API_KEYS_FILE",
        "LONGTAKE_DEVICE",
    } <= variables
    assert [name for name in sorted(variables) if not is_setting(name)] == []
    monitor = documents("monitoring.yaml")[0]["spec"]["endpoints"][0]["authorization"]["credentials"]
    assert monitor["key"] in variables
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == {
        "kustomization.yaml",
        *kustomization["resources"],
        *kustomization["configurations"],
        "keda.yaml",
        "monitoring.yaml",
    }


def test_applying_the_manifests_again_does_not_take_back_how_many_workers_there_are() -> None:
    worker, scaled = documents("worker.yaml")[0], documents("keda.yaml")[0]
    assert scaled["spec"]["scaleTargetRef"]["name"] == worker["metadata"]["name"]
    assert "replicas" not in worker["spec"]


def test_kustomize_knows_every_place_that_names_a_generated_secret() -> None:
    """The names it generates end in a hash; it knows those in pods by itself."""
    kustomization = documents("kustomization.yaml")[0]
    generated = {generator["name"] for generator in kustomization["secretGenerator"]}
    (reference,) = documents(*kustomization["configurations"])[0]["nameReference"]
    (field,) = reference["fieldSpecs"]
    monitor = documents("monitoring.yaml")[0]
    assert (reference["kind"], field["kind"]) == ("Secret", monitor["kind"])
    found: Any = monitor
    for step in field["path"].split("/"):
        found = found[step] if isinstance(found, dict) else found[0][step]
    assert found in generated


def test_pods_are_probed_where_the_api_answers_and_stopped_no_sooner_than_it_can(
    settings: Callable[..., Settings],
) -> None:
    pod, api = container("api.yaml")
    with running_api(settings()) as service:
        for probe in ("livenessProbe", "readinessProbe"):
            assert service.http.get(api[probe]["httpGet"]["path"]).status_code == 200
        assert (
            service.http.get(documents("monitoring.yaml")[0]["spec"]["endpoints"][0]["path"]).status_code
            == 200
        )
    assert api["ports"][0]["containerPort"] == Settings.model_fields["port"].default
    assert pod["terminationGracePeriodSeconds"] > Settings.model_fields["shutdown_seconds"].default
    for name in ("api.yaml", "worker.yaml"):
        pod, only = container(name)
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        mounts = {mount["mountPath"] for mount in only["volumeMounts"]}
        assert "/tmp" in mounts
    image = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", image, re.MULTILINE) == ["10001"] * 2


def test_the_environment_can_be_made_on_a_mac() -> None:
    """Its bash is 3.2, to which an empty array is an unbound variable, and Swift is of Linux only."""
    script = (ROOT / "deploy" / "install.sh").read_text()
    assert re.findall(r'(?<!\+)"\$\{\w+\[@\]\}"', script) == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (swift,) = (
        Requirement(line) for line in project["project"]["optional-dependencies"]["test"] if "swift" in line
    )
    assert swift.marker is not None
    assert not swift.marker.evaluate({"sys_platform": "darwin"})
    assert swift.marker.evaluate({"sys_platform": "linux"})


def expressions() -> Iterator[str]:
    """Every query of deploy/."""
    rules = yaml.safe_load((ROOT / "deploy" / "monitoring" / "rules.yaml").read_text())
    yield from (rule["expr"] for group in rules["groups"] for rule in group["rules"])
    dashboard = json.loads((ROOT / "deploy" / "monitoring" / "dashboard.json").read_text())
    yield from (target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    yield documents("keda.yaml")[0]["spec"]["triggers"][0]["metadata"]["query"]


def test_every_metric_of_the_rules_and_the_page_is_told_with_its_labels(
    settings: Callable[..., Settings],
) -> None:
    with running_api(settings()) as service:
        service.worker.register()
        service.worker.videos.worker_alive("w", {"model": "builtin", "slots": 1}, 60)
        failed = service.create()["id"]
        service.worker.claim(failed)
        service.worker.finish(failed, "failed", error=JobError(code="out_of_memory", message="x"))
        text = service.http.get("/metrics").text
    told = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("longtake_") and not sample.name.endswith("_created")
    }
    for expression in expressions():
        names = set(re.findall(r"longtake_\w+", expression))
        assert names <= told.keys(), expression
        grouped = re.findall(r"(?:by|on) \(([^)]*)\)", expression) + re.findall(r"{(\w+)[=~]", expression)
        labels = {label.strip() for group in grouped for label in group.split(",")}
        assert labels <= set().union(*(told[name] for name in names)), expression

    page = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `(longtake_\w+)` \| ([^|]*)\|", page, re.MULTILINE)
    histograms = {name.removesuffix("_bucket") for name in told if name.endswith("_bucket")}
    plain = {name for name in told if not any(name.startswith(f"{histogram}_") for histogram in histograms)}
    assert {name for name, _ in rows} == plain | histograms
    for name, cells in rows:
        labels = told.get(name) or told[f"{name}_count"] if name in histograms else told[name]
        assert set(re.findall(r"`(\w+)`", cells)) == labels, name
