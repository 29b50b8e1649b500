"""What stands in deploy/ fits the gateway and itself: ports, probes, variables, names, and what a container may do.

Nothing is pulled or built here; the balancers run in tests/integration/replicas.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from composition.servers_file import load_configuration
from composition.serving import DEFAULT_PORT
from composition.settings import VARIABLES, Settings
from tests.helpers.gateway import ROOT
from tests.helpers.ports import dead_port

yaml = pytest.importorskip("yaml", reason="PyYAML comes with FastMCP's server")

DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PROBES = {"/livez", "/readyz"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile, one instruction at a time, without its comments."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def given(name: str) -> list[str]:
    return [text for instruction, text in instructions() if instruction == name]


def manifests() -> dict[str, Any]:
    return {each["kind"]: each for file in MANIFESTS for each in yaml.safe_load_all(file.read_text())}


def container() -> Any:
    (only,) = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


# ------------------------------------------------------------------------------------------------------ the image


def test_the_image_copies_what_there_is_and_its_context_lets_through() -> None:
    allowed = {
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = [text.split() for text in given("COPY") if "--from" not in text]
    assert {source.removeprefix("./") for source, _ in copied} == allowed
    assert all((ROOT / source).exists() for source in allowed)


def test_packages_are_installed_by_hash_alone() -> None:
    (install,) = [text for text in given("RUN") if "pip install" in text]
    assert "--require-hashes" in install and "--only-binary=:all:" in install
    requirements = (ROOT / "requirements.txt").read_text()
    pin = r"^([a-z0-9_.-]+(?:\[[^\]]*\])?)==\S+.*?\\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)"
    pins = re.findall(pin, requirements, re.M)
    assert len(pins) == len(re.findall(r"^[a-z0-9]", requirements, re.M | re.I)) > 20
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[\[>=<;]", each)[0].strip() for each in wanted}
    assert names <= {re.split(r"\[", name)[0] for name, _ in pins}


def test_it_runs_as_nobody_special_and_is_asked_without_curl() -> None:
    last_stage = instructions()[max(i for i, (name, _) in enumerate(instructions()) if name == "FROM") :]
    users = [text for name, text in last_stage if name == "USER"]
    assert users == ["10001:10001"]
    (health,) = given("HEALTHCHECK")
    program = json.loads(health.partition("CMD")[2])
    assert program[0] == "python" and f"{DEFAULT_PORT}" in program[2] and "/livez" in program[2]
    compile(program[2], "HEALTHCHECK", "exec")
    assert json.loads(given("ENTRYPOINT")[0]) == ["python", "server.py"]
    assert json.loads(given("CMD")[0])[:1] == ["serve"]
    assert given("EXPOSE") == [str(DEFAULT_PORT)]


def test_its_health_check_tells_a_gateway_that_answers_from_one_that_does_not() -> None:
    program = json.loads(given("HEALTHCHECK")[0].partition("CMD")[2])[2]
    with dead_port() as port:
        done = subprocess.run(
            [sys.executable, "-c", program.replace(str(DEFAULT_PORT), str(port))], capture_output=True, timeout=20
        )
    assert done.returncode != 0


@pytest.mark.parametrize("place", ["Dockerfile", "compose.yaml", "kubernetes/deployment.yaml"])
def test_variables_are_those_of_the_gateway(place: str) -> None:
    named = set(re.findall(r"\bAPOLLOS_[A-Z_]+", (DEPLOY / place).read_text()))
    assert named and named <= {*VARIABLES, "APOLLOS_SERVERS"}


# ----------------------------------------------------------------------------------------------------- Kubernetes


def test_manifests_are_of_one_gateway() -> None:
    found = manifests()
    assert set(found) == {"ConfigMap", "Secret", "Deployment", "Service", "PodDisruptionBudget"}
    assert {each["metadata"]["name"] for each in found.values()} == {"apollos-gateway"}
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ]
    assert selectors == [labels] * 3
    assert found["Deployment"]["spec"]["replicas"] > found["PodDisruptionBudget"]["spec"]["minAvailable"] >= 1


def test_ports_and_probes_are_those_of_the_gateway() -> None:
    (port,) = container()["ports"]
    assert port["containerPort"] == DEFAULT_PORT
    assert [each["targetPort"] for each in manifests()["Service"]["spec"]["ports"]] == [port["name"]]
    asked = {kind: container()[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert all(each["port"] == port["name"] and each["path"] in PROBES for each in asked.values())
    assert (asked["liveness"]["path"], asked["readiness"]["path"]) == ("/livez", "/readyz")


def test_the_pod_may_do_nothing_that_it_need_not() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["terminationGracePeriodSeconds"] >= Settings().drain_timeout + 20
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {each["name"] for each in container()["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_what_it_refers_to_is_there() -> None:
    found = manifests()
    for variable in container()["env"]:
        secret = variable.get("valueFrom", {}).get("secretKeyRef")
        if secret:
            assert secret["key"] in found["Secret"]["stringData"]
    names = [each["name"] for each in container()["env"]]
    for index, variable in enumerate(container()["env"]):
        assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= set(names[:index])
    assert list(found["ConfigMap"]["data"]) == ["servers.toml"]


def test_the_servers_files_load(tmp_path: Path) -> None:
    texts = [manifests()["ConfigMap"]["data"]["servers.toml"], (DEPLOY / "servers.toml").read_text()]
    for text in texts:
        (tmp_path / "servers.toml").write_text(text)
        assert load_configuration(tmp_path / "servers.toml").resources


# --------------------------------------------------------------------------------------------------------- compose


def test_each_replica_of_compose_has_an_address_of_its_own() -> None:
    services = compose()["services"]
    replicas = [name for name in services if name.startswith("gateway-")]
    assert len(replicas) == 2
    for name in replicas:
        assert services[name]["environment"]["APOLLOS_REPLICA_URL"] == f"http://{name}:{DEFAULT_PORT}"
        assert "@redis:6379" in services[name]["environment"]["APOLLOS_STORE"]
        assert services[name]["volumes"][0].split(":")[0] == "./servers.toml"
    for balancer in ("nginx.conf", "haproxy.cfg"):
        text = (DEPLOY / balancer).read_text()
        assert all(f"{name}:{DEFAULT_PORT}" in text for name in replicas)


def test_every_service_of_compose_is_locked_down() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged") and "/var/run/docker.sock" not in str(service), name
    assert compose()["services"]["nginx"]["ports"] == ["127.0.0.1:8080:8080"]
    assert not any("ports" in service for name, service in compose()["services"].items() if name != "nginx")


def test_no_secret_stands_in_a_file() -> None:
    for file in DEPLOY.rglob("*"):
        text = file.read_text() if file.is_file() else ""
        assert not re.search(r"rediss?://:(?!CHANGE-ME|\$\{)[^@\s]+@", text), file
