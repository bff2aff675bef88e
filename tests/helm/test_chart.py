"""What the chart renders: each value and each switch, in both modes."""

from __future__ import annotations

import base64
import importlib
import json
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import discovery
from scripts.helm_readme import rows
from tests.helm.chart import (
    CHART,
    HA,
    ROOT,
    Document,
    of_kind,
    pods,
    refusal,
    rendered,
    run,
    settings,
    template,
    yaml,
)

# Imported so because it has no types, and may get some.
jsonschema: Any = importlib.import_module("jsonschema")
kubernetes_validate: Any = importlib.import_module("kubernetes_validate")
VERSIONS = ("1.25", kubernetes_validate.latest_version())
CUSTOM = {"HTTPRoute", "PodMonitor", "PrometheusRule", "ServiceMonitor"}
SCHEMAS = Path(__file__).parent / "schemas"

SCALED = {**HA, "web.autoscaling.enabled": True}
ROUTED = {"httpRoute.enabled": True, "httpRoute.parentRefs": [{"name": "gateway"}]}
GUARDED = {"networkPolicy.enabled": True}
PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "platform"}}}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
EXTRA: dict[str, Any] = {
    "extraEnv": [{"name": "LICTOR_WEBHOOKS", "value": "/etc/webhooks/webhooks.toml"}],
    "extraVolumes": [{"name": "webhooks", "secret": {"secretName": "webhooks"}}],
    "extraVolumeMounts": [{"name": "webhooks", "mountPath": "/etc/webhooks", "readOnly": True}],
    "extraContainers": [{"name": "beside", "image": "beside:1", "securityContext": RESTRICTED}],
    "extraInitContainers": [{"name": "before", "image": "before:1", "securityContext": RESTRICTED}],
    "extraObjects": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "{{ .Release.Name }}-extra"},
            "data": {"a": "b"},
        }
    ],
}

# Each value with another one than its default, in the mode that it counts in.
CHANGED: list[tuple[str, dict[str, Any]]] = [
    ("mode", HA),
    ("image.repository", {"image.repository": "registry.local/lictor"}),
    ("image.tag", {"image.tag": "9"}),
    ("image.digest", {"image.digest": f"sha256:{'a' * 64}"}),
    ("image.pullPolicy", {"image.pullPolicy": "Always"}),
    ("image.pullSecrets", {"image.pullSecrets": ["pull"]}),
    ("nameOverride", {"nameOverride": "walker"}),
    ("fullnameOverride", {"fullnameOverride": "walker"}),
    ("commonLabels", {"commonLabels": {"team": "platform"}}),
    ("settings", {"settings": {"LICTOR_LOG_LEVEL": "debug"}}),
    ("consul.enabled", {"consul.enabled": False}),
    ("consul.nodeAgent", {"consul.nodeAgent": True}),
    ("consul.address", {"consul.address": "consul.example:8500"}),
    ("consul.port", {"consul.nodeAgent": True, "consul.port": 8501}),
    ("consul.https", {"consul.https": True}),
    ("consul.tlsSecret", {"consul.https": True, "consul.tlsSecret": "tls"}),
    (
        "consul.clientCertificate",
        {"consul.https": True, "consul.tlsSecret": "tls", "consul.clientCertificate": True},
    ),
    ("consul.tokenSecret", {"consul.tokenSecret": "token"}),
    ("consul.datacenters", {"consul.datacenters": "all"}),
    ("consul.namespace", {"consul.namespace": "platform"}),
    ("database.urlSecret", {**HA, "database.urlSecret": "another"}),
    ("push.enabled", {"push.enabled": False}),
    ("push.tokenSecret", {"push.tokenSecret": "push"}),
    ("push.generateToken", {"push.generateToken": True}),
    ("fetchAllow", {"fetchAllow": "10.42.0.0/16"}),
    ("web.replicas", {**HA, "web.replicas": 5}),
    ("web.resources", {"web.resources": {"limits": {"memory": "1Gi"}}}),
    ("web.workers", {"web.workers": 4}),
    ("web.autoscaling.enabled", SCALED),
    ("web.autoscaling.minReplicas", {**SCALED, "web.autoscaling.minReplicas": 3}),
    ("web.autoscaling.maxReplicas", {**SCALED, "web.autoscaling.maxReplicas": 9}),
    ("web.autoscaling.targetCPU", {**SCALED, "web.autoscaling.targetCPU": 50}),
    ("web.pdb.enabled", {**HA, "web.pdb.enabled": False}),
    ("sync.replicas", {**HA, "sync.replicas": 3}),
    ("sync.resources", {**HA, "sync.resources": {"limits": {"memory": "1Gi"}}}),
    ("persistence.size", {"persistence.size": "9Gi"}),
    ("persistence.storageClass", {"persistence.storageClass": "fast"}),
    ("service.type", {"service.type": "NodePort"}),
    ("service.port", {"service.port": 8080}),
    ("service.annotations", {"service.annotations": {"a": "b"}}),
    ("ingress.enabled", {"ingress.enabled": True}),
    ("ingress.className", {"ingress.enabled": True, "ingress.className": "nginx"}),
    ("ingress.host", {"ingress.enabled": True, "ingress.host": "modules.example"}),
    ("ingress.tlsSecret", {"ingress.enabled": True, "ingress.tlsSecret": "tls"}),
    ("ingress.annotations", {"ingress.enabled": True, "ingress.annotations": {"a": "b"}}),
    ("httpRoute.enabled", ROUTED),
    ("httpRoute.parentRefs", {**ROUTED, "httpRoute.parentRefs": [{"name": "another"}]}),
    ("httpRoute.hostnames", {**ROUTED, "httpRoute.hostnames": ["modules.example"]}),
    ("networkPolicy.enabled", GUARDED),
    ("networkPolicy.from", {**GUARDED, "networkPolicy.from": [PEER]}),
    ("networkPolicy.metricsFrom", {**GUARDED, "networkPolicy.metricsFrom": [PEER]}),
    ("networkPolicy.moduleNetworks", {**GUARDED, "networkPolicy.moduleNetworks": ["10.42.0.0/16"]}),
    ("networkPolicy.consulPort", {**GUARDED, "networkPolicy.consulPort": 8501}),
    ("networkPolicy.databasePort", {**HA, **GUARDED, "networkPolicy.databasePort": 6432}),
    ("networkPolicy.extraEgress", {**GUARDED, "networkPolicy.extraEgress": [{"ports": [{"port": 443}]}]}),
    ("monitoring.serviceMonitor", {"monitoring.serviceMonitor": True}),
    ("monitoring.podMonitor", {"monitoring.podMonitor": True}),
    ("monitoring.rules", {"monitoring.rules": True}),
    ("monitoring.dashboard", {"monitoring.dashboard": True}),
    ("monitoring.labels", {"monitoring.rules": True, "monitoring.labels": {"release": "prometheus"}}),
    ("serviceAccount.create", {"serviceAccount.create": False}),
    ("serviceAccount.annotations", {"serviceAccount.annotations": {"a": "b"}}),
    ("podAnnotations", {"podAnnotations": {"a": "b"}}),
    ("podLabels", {"podLabels": {"a": "b"}}),
    ("affinity", {"affinity": {"podAntiAffinity": {}}}),
    ("nodeSelector", {"nodeSelector": {"disk": "ssd"}}),
    ("tolerations", {"tolerations": [{"key": "dedicated", "operator": "Exists"}]}),
    ("priorityClassName", {"priorityClassName": "high"}),
    *((name, {name: value}) for name, value in EXTRA.items()),
]


def test_helm_finds_nothing_to_complain_of() -> None:
    done = run("lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_the_version_of_lictor() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (discovery.__version__, discovery.__version__)


def test_its_readme_lists_every_value_as_it_is() -> None:
    check = [sys.executable, str(ROOT / "scripts" / "helm_readme.py"), "--check"]
    assert subprocess.run(check, check=False).returncode == 0, "run scripts/helm_readme.py"


def test_each_value_has_a_case() -> None:
    assert [name for name, _ in CHANGED] == [path for path, _, _ in rows()]


@pytest.mark.parametrize(("name", "values"), CHANGED, ids=[name for name, _ in CHANGED])
def test_each_value_changes_what_is_rendered(name: str, values: dict[str, Any]) -> None:
    without = {path: value for path, value in values.items() if path != name}
    if name == "database.urlSecret":
        without = HA
    if name == "mode":
        without = {}
    if name == "httpRoute.parentRefs":
        without = ROUTED
    assert rendered(values) != rendered(without)


SWITCHES: dict[str, dict[str, Any]] = {
    "agent": {"consul.nodeAgent": True, "consul.tokenSecret": "token"},
    "tls": {"consul.https": True, "consul.tlsSecret": "tls", "consul.clientCertificate": True},
    "push": {"push.generateToken": True},
    "routes": {"ingress.enabled": True, "ingress.tlsSecret": "tls", **ROUTED},
    "network": GUARDED,
    "extra": {**EXTRA, "affinity": {"podAntiAffinity": {}}, "podLabels": {"a": "b"}},
    "monitoring": {"monitoring.podMonitor": True, "monitoring.rules": True, "monitoring.dashboard": True},
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", [{}, HA], ids=["single", "ha"])
def test_all_combinations_are_valid_and_restricted(mode: dict[str, Any]) -> None:
    for chosen in product([False, True], repeat=len(SWITCHES)):
        values = dict(mode)
        for switch, is_on in zip(SWITCHES.values(), chosen, strict=True):
            values |= switch if is_on else {}
        documents = rendered(values)
        for document in documents:
            check(json.dumps(document))
        for pod in pods(documents):
            assert_restricted(pod)


@cache
def check(document: str) -> None:
    """Against the schemas of its kind. Most documents are the same in many combinations."""
    told = json.loads(document)
    if told["kind"] in CUSTOM:
        jsonschema.validate(told, json.loads((SCHEMAS / f"{told['kind']}.json").read_text()))
        return
    for version in VERSIONS:
        kubernetes_validate.validate(told, version, strict=True)


def assert_restricted(pod: Document) -> None:
    """Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all(set(volume) - {"name"} <= {"emptyDir", "secret"} for volume in pod["volumes"])
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert not any("hostPort" in port for port in container.get("ports", ()))


def test_one_pod_runs_all_on_its_own_volume() -> None:
    documents = rendered({})
    claimed = of_kind(documents, "StatefulSet")
    assert claimed["spec"]["replicas"] == 1
    (container,) = claimed["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["up"]
    assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
    assert not [one for one in documents if one["kind"] in ("Deployment", "Job", "PodDisruptionBudget")]


def test_several_pods_take_the_database_from_a_secret_and_are_migrated_before() -> None:
    documents = rendered(HA)
    url = {"secretKeyRef": {"name": "db", "key": "url"}}
    assert [settings(pod)["LICTOR_DATABASE_URL"] for pod in pods(documents)] == [url] * 3
    job = of_kind(documents, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert of_kind(documents, "Deployment", "-sync")["spec"]["replicas"] == 2


def test_consul_is_asked_at_the_node_or_at_an_address() -> None:
    (pod,) = pods(rendered({"consul.nodeAgent": True, "consul.https": True, "consul.port": 8501}))
    names = [one["name"] for one in pod["containers"][0]["env"]]
    assert settings(pod)["CONSUL_HTTP_ADDR"] == "https://$(HOST_IP):8501"
    # What a value refers to must stand before it.
    assert names.index("HOST_IP") < names.index("CONSUL_HTTP_ADDR")
    (pod,) = pods(rendered({"consul.address": "consul.example:8500"}))
    assert settings(pod)["CONSUL_HTTP_ADDR"] == "http://consul.example:8500"


def test_secrets_are_files_and_in_no_variable() -> None:
    values = {"push.tokenSecret": "push", "consul.tokenSecret": "token", "consul.https": True}
    found = settings(pods(rendered({**values, "consul.tlsSecret": "tls"}))[0])
    assert found["CONSUL_HTTP_TOKEN_FILE"] == "/etc/lictor/consul-token/token"
    assert found["CONSUL_CACERT"] == "/etc/lictor/consul-tls/ca.crt"
    assert found["LICTOR_PUSH_TOKEN_FILE"] == "/etc/lictor/push/token"
    assert "CONSUL_HTTP_TOKEN" not in found
    mounts = pods(rendered(values))[0]["containers"][0]["volumeMounts"]
    assert not any("subPath" in mount for mount in mounts)


def test_a_setting_of_the_user_wins() -> None:
    found = settings(pods(rendered({"settings": {"LICTOR_WORKERS": 7, "LICTOR_DOUBT": "5m"}}))[0])
    assert (found["LICTOR_WORKERS"], found["LICTOR_DOUBT"]) == ("7", "5m")


def test_services_lead_to_the_pods_that_serve() -> None:
    for values, kind in (({}, "StatefulSet"), (HA, "Deployment")):
        documents = rendered(values)
        served = of_kind(documents, kind, "" if kind == "StatefulSet" else "-web")
        wanted = of_kind(documents, "Service")["spec"]["selector"]
        assert wanted.items() <= served["spec"]["template"]["metadata"]["labels"].items()


def test_selectors_outlive_upgrades() -> None:
    later = {**HA, "image.tag": "9", "commonLabels": {"team": "a"}, "web.replicas": 4}
    before, after = rendered(HA), rendered(later, "--is-upgrade")
    for kind in ("Deployment", "PodDisruptionBudget"):
        selectors = [
            [one["spec"]["selector"] for one in documents if one["kind"] == kind]
            for documents in (before, after)
        ]
        assert selectors[0] == selectors[1]
        assert "team" not in str(selectors[0])


def test_it_is_the_same_each_time() -> None:
    assert template(HA).stdout == template(HA).stdout


def test_alerts_and_the_dashboard_are_those_of_the_files() -> None:
    documents = rendered(SWITCHES["monitoring"])
    groups = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert of_kind(documents, "PrometheusRule")["spec"] == groups
    shown = of_kind(documents, "ConfigMap")["data"]["lictor.json"]
    assert shown.strip() == (CHART / "files" / "dashboard.json").read_text().strip()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mode": "ha"}, "database.urlSecret: with mode `ha` it must name a Secret"),
        ({"database.urlSecret": "db"}, "database.urlSecret: mode `single` keeps an SQLite file"),
        ({"mode": "both"}, "'/mode'"),
        ({"web.replicsa": 2}, "'/web': additional properties 'replicsa' not allowed"),
        ({"web.replicas": 0}, "'/web/replicas'"),
        ({"consul.enabled": False, "push.enabled": False}, "consul.enabled, push.enabled: one of them"),
        ({"consul.clientCertificate": True}, "consul.clientCertificate"),
        ({"consul.tlsSecret": "tls"}, "set consul.https: true"),
        ({"settings": {"LICTOR_DATABASE_URL": "postgresql://a"}}, "settings.LICTOR_DATABASE_URL"),
        ({"settings": {"lictor_workers": 1}}, "lictor_workers"),
        ({"image.digest": "latest"}, "'/image/digest'"),
        (
            {"push.generateToken": True, "push.tokenSecret": "push"},
            "push.generateToken: push.tokenSecret",
        ),
        ({"web.autoscaling.enabled": True}, "web.autoscaling.enabled: mode `single` has one pod"),
        ({**SCALED, "web.autoscaling.minReplicas": 7}, "web.autoscaling.minReplicas"),
        ({"httpRoute.enabled": True}, "httpRoute.parentRefs"),
        (
            {"monitoring.podMonitor": True, "monitoring.serviceMonitor": True},
            "monitoring.podMonitor, monitoring.serviceMonitor",
        ),
        ({"networkPolicy.moduleNetworks": ["pods"]}, "'/networkPolicy/moduleNetworks/0'"),
        ({"podLabels": {"app.kubernetes.io/name": "a"}}, "app.kubernetes.io/name"),
        ({"commonLabels": {"app.kubernetes.io/name": "a"}}, "app.kubernetes.io/name"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    assert said in refusal(values)


def test_a_token_is_made_up_once_and_kept() -> None:
    documents = rendered({"push.generateToken": True})
    secret = of_kind(documents, "Secret")
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert len(base64.b64decode(secret["data"]["token"])) == 40
    for pod in pods(documents):
        assert {"name": "push-token", "secret": {"secretName": "lictor-push"}} in pod["volumes"]


def test_pods_have_an_account_without_rights_and_keep_apart() -> None:
    documents = rendered(HA)
    account = of_kind(documents, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert not [one for one in documents if "Role" in one["kind"]]
    for part in ("web", "sync"):
        pod = of_kind(documents, "Deployment", f"-{part}")["spec"]["template"]["spec"]
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        (rule,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        apart = rule["podAffinityTerm"]["labelSelector"]["matchLabels"]
        assert apart["app.kubernetes.io/component"] == part
    # The Job runs before there is an account.
    assert "serviceAccountName" not in of_kind(documents, "Job")["spec"]["template"]["spec"]


def test_load_decides_how_many_pods_serve() -> None:
    documents = rendered(SCALED)
    assert "replicas" not in of_kind(documents, "Deployment", "-web")["spec"]
    scaled = of_kind(documents, "HorizontalPodAutoscaler")["spec"]
    assert scaled["scaleTargetRef"]["name"] == "lictor-web"
    assert (scaled["minReplicas"], scaled["maxReplicas"]) == (2, 6)


def test_each_pod_reaches_what_it_must_and_no_more() -> None:
    documents = rendered({**HA, **GUARDED, "networkPolicy.from": [PEER]})
    web = of_kind(documents, "NetworkPolicy", "-web")["spec"]
    sync = of_kind(documents, "NetworkPolicy", "-sync")["spec"]
    assert web["ingress"] == [{"ports": [{"protocol": "TCP", "port": "http"}], "from": [PEER]}]
    names = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    database, consul = ([{"protocol": "TCP", "port": port}] for port in (5432, 8500))
    assert [rule["ports"] for rule in web["egress"]] == [names, database]
    assert [rule.get("ports") for rule in sync["egress"]] == [names, database, consul, None]
    networks = [to["ipBlock"]["cidr"] for to in sync["egress"][-1]["to"]]
    assert networks == ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
    # Each policy is of pods that there are.
    for policy, part in ((web, "-web"), (sync, "-sync")):
        labels = of_kind(documents, "Deployment", part)["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()


def test_the_values_of_the_version_before_are_taken() -> None:
    before = Path(__file__).parent / "values-0.1.0.yaml"
    for mode in ({}, HA):
        settings = [f"--set={name}={value}" for name, value in mode.items()]
        done = run("template", "lictor", CHART, "--namespace", "platform", f"--values={before}", *settings)
        assert done.returncode == 0, done.stderr
        assert [one for one in yaml.safe_load_all(done.stdout) if one] == rendered(dict(mode))


@pytest.mark.parametrize("values", [{}, HA, {"push.tokenSecret": "push"}], ids=str)
def test_notes_say_the_next_step(values: dict[str, Any]) -> None:
    settings = [f"--set={name}={value}" for name, value in values.items()]
    done = run("install", "lictor", CHART, "--dry-run=client", "--namespace", "platform", *settings)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "kubectl -n platform port-forward service/lictor 8080:80" in notes
    assert ("push.tokenSecret names" in notes) == ("push.tokenSecret" not in values)
