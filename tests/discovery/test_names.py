"""What DNS and Consul can carry, and the rule that a fault names."""

from __future__ import annotations

import pytest

from discovery.validation import (
    address_fault,
    label_fault,
    meta_faults,
    path_fault,
    port_fault,
    tag_faults,
    text_fault,
)


@pytest.mark.parametrize("name", ["a", "Financial", "web-2", "0", "a" * 63])
def test_a_label_is_accepted(name: str) -> None:
    assert label_fault(name) is None


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        pytest.param("", "1 to 63 characters", id="empty"),
        pytest.param("a" * 64, "at most 63", id="too long"),
        pytest.param("my_module", "holds '_'", id="underscore"),
        pytest.param("a.b", "holds '.'", id="dot"),
        pytest.param("a b", "holds ' '", id="space"),
        pytest.param("a/b", "holds '/'", id="slash"),
        pytest.param("zürich", "holds 'ü'", id="not ASCII"),
        pytest.param("a\n", r"holds '\n'", id="line break"),
        pytest.param("-a", "neither begins nor ends with a hyphen", id="hyphen first"),
        pytest.param("a-", "neither begins nor ends with a hyphen", id="hyphen last"),
        pytest.param(None, "None is no text", id="none"),
        pytest.param(7, "7 is no text", id="number"),
    ],
)
def test_what_is_no_label_is_refused_with_the_rule(name: object, rule: str) -> None:
    assert rule in str(label_fault(name))


@pytest.mark.parametrize("address", ["10.0.0.1", "::1", "fe80::1", "db", "db.internal", "db.internal."])
def test_an_address_is_accepted(address: str) -> None:
    assert address_fault(address) is None


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        pytest.param("0.0.0.0", "where a server listens", id="any IPv4"),
        pytest.param("::", "where a server listens", id="any IPv6"),
        pytest.param("fe80::1%eth0", "names an interface", id="IPv6 with an interface"),
        pytest.param("http://db", "neither an IP address nor a host name", id="scheme"),
        pytest.param("db:80", "neither an IP address nor a host name", id="port"),
        pytest.param("[::1]", "neither an IP address nor a host name", id="brackets"),
        pytest.param("256.0.0.1", "neither an IP address nor a host name", id="no IPv4"),
        pytest.param("a." * 127 + "b", "neither an IP address nor a host name", id="too long"),
        pytest.param(1, "is no text", id="number"),
    ],
)
def test_what_is_no_address_is_refused(address: object, fault: str) -> None:
    assert fault in str(address_fault(address))


@pytest.mark.parametrize("port", [0, 65536, -1, "80", 80.0, True, None])
def test_what_is_no_port_is_refused(port: object) -> None:
    assert "from 1 to 65535" in str(port_fault(port))


def test_the_first_and_the_last_port_are_accepted() -> None:
    assert port_fault(1) is None
    assert port_fault(65535) is None


@pytest.mark.parametrize("path", ["/", "/manifest", "/a/b.json?x=1&y=%20"])
def test_a_path_is_accepted(path: str) -> None:
    assert path_fault(path) is None


@pytest.mark.parametrize("path", ["", "manifest", "//evil/manifest", "/a b", "/a#b", "/ä", "/a\n", None])
def test_what_is_no_path_is_refused(path: object) -> None:
    assert path_fault(path)


@pytest.mark.parametrize("text", ["a", "a/b c", "traefik.enable=true", "v1.2.0", "größe"])
def test_any_printable_text_is_an_id_or_a_tag(text: str) -> None:
    assert text_fault(text) is None
    assert tag_faults([text]) == []


@pytest.mark.parametrize("text", ["", "  ", "a\n", "\x00", None, 3])
def test_what_is_no_text_is_refused(text: object) -> None:
    assert text_fault(text)


def test_one_text_is_no_list_of_tags() -> None:
    assert tag_faults("module") == ["tags: give a list of texts (got 'module')"]
    assert tag_faults(None) == ["tags: give a list of texts (got None)"]


def test_meta_within_consuls_limits_is_accepted() -> None:
    assert meta_faults({f"Key_{number}-{'k' * 118}": "v" * 512 for number in range(64)}) == []


@pytest.mark.parametrize(
    ("meta", "fault"),
    [
        pytest.param({str(number): "" for number in range(65)}, "has 65 pairs", id="65 pairs"),
        pytest.param({"k" * 129: ""}, "129 characters, but Consul takes 128", id="long key"),
        pytest.param({"a.b": ""}, "only the letters a-z, digits, hyphens and underscores", id="dot in key"),
        pytest.param({"": ""}, "only the letters a-z", id="empty key"),
        pytest.param({"consul-x": ""}, "Consul keeps the prefix 'consul-' for itself", id="reserved"),
        pytest.param({"k": "v" * 513}, "513 bytes, but Consul takes 512", id="long value"),
        pytest.param({"k": "é" * 257}, "514 bytes", id="bytes count, not characters"),
        pytest.param({"k": 1}, "is not a text with a text", id="number"),
        pytest.param({"k": "caf\udce9"}, "half a character", id="half a character"),
        pytest.param("k=v", "give a mapping", id="text"),
    ],
)
def test_what_consuls_meta_cannot_hold_is_refused(meta: object, fault: str) -> None:
    assert [fault in told for told in meta_faults(meta)] == [True]


def test_every_fault_of_the_meta_is_told() -> None:
    assert len(meta_faults({"a.b": "", "c": 1, "d": "v" * 600})) == 3
