"""Checks: what of them Consul is told, their faults, and how the command line writes them."""

from __future__ import annotations

import pytest

from discovery.errors import ConfigError
from discovery.health.checks import Check, HTTPCheck, Target, TCPCheck, TTLCheck, parse_check

TARGET = Target(scheme="https", host="::1", port=8001)


@pytest.mark.parametrize(
    ("check", "told"),
    [
        pytest.param(
            HTTPCheck("/health", interval="5s"),
            {"HTTP": "https://[::1]:8001/health", "Interval": "5s", "Timeout": "5s"},
            id="http",
        ),
        pytest.param(
            HTTPCheck(
                "http://other:9/up",
                interval=90,
                timeout=0.25,
                method="HEAD",
                headers={"Host": "x"},
                tls_skip_verify=True,
                success_before_passing=2,
                failures_before_critical=3,
                initial_status="passing",
            ),
            {
                "HTTP": "http://other:9/up",
                "Interval": "1m30s",
                "Timeout": "250ms",
                "Method": "HEAD",
                "Header": {"Host": ["x"]},
                "TLSSkipVerify": True,
                "SuccessBeforePassing": 2,
                "FailuresBeforeCritical": 3,
                "Status": "passing",
            },
            id="http with everything",
        ),
        pytest.param(TCPCheck(), {"TCP": "[::1]:8001", "Interval": "10s", "Timeout": "5s"}, id="tcp"),
        pytest.param(
            TCPCheck(9, host="db"), {"TCP": "db:9", "Interval": "10s", "Timeout": "5s"}, id="tcp elsewhere"
        ),
        pytest.param(TTLCheck("1m"), {"TTL": "1m"}, id="ttl"),
    ],
)
def test_what_consul_is_told(check: Check, told: dict[str, object]) -> None:
    assert check.faults() == []
    assert check.definition(TARGET) == told


@pytest.mark.parametrize(
    ("check", "faults"),
    [
        pytest.param(HTTPCheck("health"), ["path must be a path"], id="path"),
        pytest.param(
            HTTPCheck(interval="5", timeout="soon", method="", initial_status="fine"),
            ["timeout 'soon' is not a duration", "method must be", "initial_status must be one of"],
            id="several",
        ),
        pytest.param(HTTPCheck(interval="0s"), ["interval must be longer than nothing"], id="no interval"),
        pytest.param(HTTPCheck(interval="-5s"), ["interval '-5s' is not a duration"], id="negative"),
        pytest.param(HTTPCheck(headers={"a": 1}), ["headers must be a mapping"], id="headers"),  # type: ignore[dict-item]
        pytest.param(
            HTTPCheck(headers={"Authorization": "Bearer geheim\n", "a b": "geheim", "X": "geheim\r\nY: 1"}),
            [
                "headers: the value of 'Authorization' holds",
                "headers: 'a b' is no name",
                "headers: the value of 'X'",
            ],
            id="headers that cannot be sent",
        ),
        pytest.param(HTTPCheck("http://a..b/"), ["path 'http://a..b/' is no URL"], id="host"),
        pytest.param(HTTPCheck("http://:80/"), ["path 'http://:80/' is no URL"], id="no host"),
        pytest.param(HTTPCheck("http://h:99999/"), ["path 'http://h:99999/' is no URL"], id="port in URL"),
        pytest.param(HTTPCheck("http://h/a b"), ["path 'http://h/a b' is no URL"], id="space in URL"),
        pytest.param(TCPCheck(0), ["port must be a whole number"], id="port"),
        pytest.param(TCPCheck(host="a:1"), ["host 'a:1' is neither"], id="host"),
        pytest.param(TCPCheck(success_before_passing=-1), ["success_before_passing must be"], id="count"),
        pytest.param(TTLCheck("often"), ["ttl 'often' is not a duration"], id="ttl"),
        pytest.param(TTLCheck(0), ["ttl must be longer than nothing"], id="no ttl"),
    ],
)
def test_every_fault_is_told(check: Check, faults: list[str]) -> None:
    told = check.faults()
    assert len(told) == len(faults)
    for fault in faults:
        assert any(one.startswith(fault) for one in told), told
    assert "geheim" not in str(told), "a header may hold a secret"


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("http:/health", HTTPCheck("/health")),
        ("http:", HTTPCheck()),
        (
            "http:/up,interval=5s,timeout=2s,method=HEAD",
            HTTPCheck("/up", interval="5s", timeout="2s", method="HEAD"),
        ),
        ("http://127.0.0.1:9/up,interval=1s", HTTPCheck("http://127.0.0.1:9/up", interval="1s")),
        ("https://db/up,tls_skip_verify=true", HTTPCheck("https://db/up", tls_skip_verify=True)),
        ("tcp:", TCPCheck()),
        ("tcp:9000", TCPCheck(9000)),
        ("tcp:db:9000,failures_before_critical=2", TCPCheck(9000, host="db", failures_before_critical=2)),
        ("tcp:[::1]:9000", TCPCheck(9000, host="::1")),
        ("ttl:", TTLCheck()),
        ("ttl:1m,name=alive", TTLCheck("1m", name="alive")),
    ],
)
def test_the_command_lines_form(text: str, check: Check) -> None:
    assert parse_check(text) == check


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["'' is no check: write"]),
        ("http", ["'http' is no check"]),
        ("https:/health", ["'https:/health' is no check"]),
        ("grpc:x", ["'grpc:x' is no check"]),
        ("http:health", ["'http:health': path must be a path"]),
        (
            "http:/,interval=x,colour=red",
            ["'colour=red' is no option", "'http:/,interval=x,colour=red': interval"],
        ),
        ("http:/,failures_before_critical=x", ["'failures_before_critical=x': 'x' is no value of"]),
        ("http:/,tls_skip_verify=maybe", ["'tls_skip_verify=maybe': 'maybe' is no value of"]),
        ("tcp:web", ["'tcp:web': 'web' is neither a port nor host:port"]),
        ("tcp:99999", ["'tcp:99999': port must be a whole number"]),
        ("ttl:never", ["'ttl:never': ttl 'never' is not a duration"]),
        ("ttl:5s,interval=1s", ["'interval=1s' is no option of this check"]),
    ],
)
def test_the_command_lines_faults(text: str, faults: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_check(text)
    assert len(caught.value.faults) == len(faults)
    for told, fault in zip(caught.value.faults, faults, strict=True):
        assert told.startswith(fault)
