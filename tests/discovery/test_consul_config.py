"""The consul command's variables, read as the consul command reads them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from discovery.consul.client import ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.errors import ConfigError
from tests.consul_server import Certificates, Request, ScriptedConsul, consul_binary

SECRET = "7f9d1c42-secret"


def test_nothing_set_means_the_agent_on_this_machine() -> None:
    config = ConsulConfig.from_env({})
    assert config == ConsulConfig()
    assert config.address == "http://127.0.0.1:8500"
    assert config.timeout == 5.0


def test_an_empty_variable_counts_as_unset() -> None:
    names = (
        "CONSUL_HTTP_ADDR",
        "CONSUL_HTTP_SSL",
        "CONSUL_HTTP_TOKEN_FILE",
        "CONSUL_CACERT",
        "CONSUL_HTTP_AUTH",
    )
    assert ConsulConfig.from_env(dict.fromkeys(names, "")) == ConsulConfig()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.5:8500", "http://10.0.0.5:8500"),
        ("consul.example:18500", "http://consul.example:18500"),
        ("http://10.0.0.5:8500", "http://10.0.0.5:8500"),
        ("https://10.0.0.5:8501", "https://10.0.0.5:8501"),
        ("http://10.0.0.5:8500/", "http://10.0.0.5:8500"),
        ("10.0.0.5:8500/", "http://10.0.0.5:8500"),
        ("https://proxy.example/consul/", "https://proxy.example:443/consul"),
        ("[::1]:8500", "http://[::1]:8500"),
        ("https://[2001:db8::1]:8501", "https://[2001:db8::1]:8501"),
        ("[::1]", "http://[::1]:80"),
        ("10.0.0.5", "http://10.0.0.5:80"),
        ("10.0.0.5:", "http://10.0.0.5:80"),
        ("http://10.0.0.5", "http://10.0.0.5:80"),
        ("https://10.0.0.5", "https://10.0.0.5:443"),
        (":8500", "http://localhost:8500"),
        ("unix:///run/consul.sock", "unix:///run/consul.sock"),
        ("unix://consul.sock", "unix://consul.sock"),
    ],
)
def test_address(text: str, address: str) -> None:
    assert ConsulConfig.from_env({"CONSUL_HTTP_ADDR": text}).address == address


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("tcp://10.0.0.5:8500", "http://, https:// or unix://"),
        ("HTTP://10.0.0.5:8500", "http://, https:// or unix://"),
        ("unix://", "unix:///path/to/socket"),
        ("/run/consul.sock", "names no host"),
        ("::1:8500", "[ipv6]:port"),
        ("[::zz]:8500", "not an IPv6 address"),
        ("10.0.0.5:http", "host:port"),
        ("10.0.0.5:0", "1 to 65535"),
        ("10.0.0.5:65536", "1 to 65535"),
        ("http://", "names no host"),
        ("two words:8500", "host:port"),
        (" 10.0.0.5:8500", "host:port"),
        ("10.0.0.5:8500?x=1", "host:port"),
        ("10.0.0.5:8500#x", "host:port"),
        ("kōnsul:8500", "host:port"),
        ("con..sul:8500", "empty, or longer than 63"),
        (f"{'c' * 64}.example:8500", "empty, or longer than 63"),
    ],
)
def test_address_that_is_none(text: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ConsulConfig.from_env({"CONSUL_HTTP_ADDR": text})
    (fault,) = caught.value.faults
    assert fault.startswith("CONSUL_HTTP_ADDR: ")
    assert advice in fault


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="CONSUL_HTTP_AUTH") as caught:
        ConsulConfig.from_env({"CONSUL_HTTP_ADDR": f"http://user:{SECRET}@10.0.0.5:8500"})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("word", ["1", "t", "T", "true", "TRUE", "True"])
def test_ssl_is_on(word: str) -> None:
    config = ConsulConfig.from_env({"CONSUL_HTTP_ADDR": "10.0.0.5:8501", "CONSUL_HTTP_SSL": word})
    assert config.address == "https://10.0.0.5:8501"


@pytest.mark.parametrize("word", ["0", "f", "F", "false", "FALSE", "False"])
def test_ssl_is_off(word: str) -> None:
    assert ConsulConfig.from_env({"CONSUL_HTTP_SSL": word}).scheme == "http"
    assert ConsulConfig.from_env({"CONSUL_HTTP_SSL_VERIFY": word}).verify is False


@pytest.mark.parametrize("name", ["CONSUL_HTTP_SSL", "CONSUL_HTTP_SSL_VERIFY"])
@pytest.mark.parametrize("word", ["yes", "on", "tRUE", " true", "2"])
def test_not_a_boolean(name: str, word: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: '{word}' is not a boolean: write true or false"):
        ConsulConfig.from_env({name: word})


@pytest.mark.parametrize(
    ("address", "ssl", "scheme"),
    [
        pytest.param("http://10.0.0.5:8501", "true", "https", id="http:// does not take TLS back"),
        pytest.param("https://10.0.0.5:8501", "false", "https", id="https:// does not need the variable"),
        pytest.param("unix:///run/consul.sock", "true", "https", id="TLS over a socket"),
    ],
)
def test_scheme_said_twice_is_as_the_consul_command_takes_it(address: str, ssl: str, scheme: str) -> None:
    config = ConsulConfig.from_env({"CONSUL_HTTP_ADDR": address, "CONSUL_HTTP_SSL": ssl})
    assert config.scheme == scheme


@pytest.mark.parametrize(
    ("variable", "content", "token"),
    [
        pytest.param("", "from-file\n", "from-file", id="file alone"),
        pytest.param("from-variable", "  from-file \n", "from-file", id="file wins"),
        pytest.param("from-variable", "\n", "from-variable", id="empty file leaves the variable"),
        pytest.param(" from-variable ", None, "from-variable", id="variable alone, trimmed"),
        pytest.param("", None, "", id="neither"),
    ],
)
def test_token(variable: str, content: str | None, token: str, tmp_path: Path) -> None:
    environ = {"CONSUL_HTTP_TOKEN": variable}
    if content is not None:
        (tmp_path / "token").write_text(content)
        environ["CONSUL_HTTP_TOKEN_FILE"] = str(tmp_path / "token")
    assert ConsulConfig.from_env(environ).token == token


def test_a_token_that_no_header_carries_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="CONSUL_HTTP_TOKEN: the token holds a character") as caught:
        ConsulConfig.from_env({"CONSUL_HTTP_TOKEN": f"{SECRET}\nx"})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "auth"), [("user:pass:word", ("user", "pass:word")), ("user", ("user", "")), ("", None)]
)
def test_basic_authentication(text: str, auth: tuple[str, str] | None) -> None:
    assert ConsulConfig.from_env({"CONSUL_HTTP_AUTH": text}).auth == auth


def test_secrets_do_not_show() -> None:
    config = ConsulConfig(host="10.0.0.5", token=SECRET, auth=("user", SECRET))
    assert repr(config) == "ConsulConfig(host='10.0.0.5', token='***', auth='***')"
    assert SECRET not in str(config)


def test_remaining_variables() -> None:
    config = ConsulConfig.from_env(
        {"CONSUL_TLS_SERVER_NAME": "server.dc1.consul", "CONSUL_NAMESPACE": "team"}
    )
    assert (config.tls_server_name, config.namespace) == ("server.dc1.consul", "team")


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    environ = {
        "CONSUL_HTTP_ADDR": "tcp://10.0.0.5",
        "CONSUL_HTTP_SSL": "yes",
        "CONSUL_HTTP_SSL_VERIFY": "no",
        "CONSUL_HTTP_TOKEN_FILE": missing,
        "CONSUL_CACERT": str(tmp_path),
        "CONSUL_CAPATH": missing,
        "CONSUL_CLIENT_KEY": missing,
    }
    with pytest.raises(ConfigError) as caught:
        ConsulConfig.from_env(environ)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "CONSUL_HTTP_ADDR",
        "CONSUL_HTTP_SSL",
        "CONSUL_HTTP_TOKEN_FILE",
        "CONSUL_CACERT",
        "CONSUL_CAPATH",
        "CONSUL_CLIENT_KEY",
        "CONSUL_HTTP_SSL_VERIFY",
        "CONSUL_CLIENT_CERT",
    ]
    assert f"CONSUL_HTTP_TOKEN_FILE: cannot read {missing}: no such file or directory" in str(caught.value)


def test_a_token_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"CONSUL_HTTP_TOKEN_FILE: .* does not hold text"):
        ConsulConfig.from_env({"CONSUL_HTTP_TOKEN_FILE": str(tmp_path / "token")})


def test_a_timeout_must_be_a_time() -> None:
    with pytest.raises(ConfigError, match="timeout"):
        ConsulConfig(timeout=0)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:8500", True),
        ("[::1]:8500", True),
        ("localhost:8500", True),
        ("unix:///run/consul.sock", True),
        ("10.0.0.5:8500", False),
        ("consul.example:8500", False),
    ],
)
def test_local(address: str, local: bool) -> None:
    assert ConsulConfig.from_env({"CONSUL_HTTP_ADDR": address}).is_local is local


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.create(consul_binary(), tmp_path_factory.mktemp("certificates"))


def test_files_are_taken(files: Certificates) -> None:
    config = ConsulConfig.from_env(
        {
            "CONSUL_CACERT": str(files.ca),
            "CONSUL_CLIENT_CERT": str(files.client_cert),
            "CONSUL_CLIENT_KEY": str(files.client_key),
        }
    )
    assert (config.ca_cert, config.client_cert, config.client_key) == (
        files.ca,
        files.client_cert,
        files.client_key,
    )


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        pytest.param({"CONSUL_CACERT": "junk"}, "CONSUL_CACERT: .*junk holds no certificate", id="CA"),
        pytest.param({"CONSUL_CAPATH": "empty"}, "CONSUL_CAPATH: .*empty holds no file", id="CA folder"),
        pytest.param({"CONSUL_CAPATH": "folder"}, "CONSUL_CAPATH: .*junk holds no", id="junk in CA folder"),
        pytest.param(
            {"CONSUL_CLIENT_CERT": "junk", "CONSUL_CLIENT_KEY": "junk"},
            "CONSUL_CLIENT_CERT: .* must be in PEM format",
            id="certificate",
        ),
        pytest.param(
            {"CONSUL_CLIENT_CERT": "client", "CONSUL_CLIENT_KEY": "other-key"},
            "CONSUL_CLIENT_KEY: .* is not the key of",
            id="somebody else's key",
        ),
        pytest.param(
            {"CONSUL_CLIENT_CERT": "client"},
            "CONSUL_CLIENT_KEY: is missing, while CONSUL_CLIENT_CERT is set",
            id="no key",
        ),
    ],
)
def test_files_that_hold_something_else(
    variables: dict[str, str], told: str, files: Certificates, tmp_path: Path
) -> None:
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "junk").write_text("junk")
    known = {"client": files.client_cert, "other-key": files.server_key}
    environ = {name: str(known.get(value, tmp_path / value)) for name, value in variables.items()}
    with pytest.raises(ConfigError, match=told):
        ConsulConfig.from_env(environ)


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"CONSUL_HTTP_TOKEN": "from-variable"}, id="token"),
        pytest.param({"CONSUL_HTTP_TOKEN": "variable", "CONSUL_HTTP_TOKEN_FILE": "token"}, id="token file"),
        pytest.param({"CONSUL_HTTP_TOKEN": "variable", "CONSUL_HTTP_TOKEN_FILE": "empty"}, id="empty file"),
        pytest.param({"CONSUL_HTTP_TOKEN": " spaces "}, id="token with spaces"),
        pytest.param({"CONSUL_HTTP_AUTH": "user:pass:word"}, id="basic authentication"),
        pytest.param({"CONSUL_HTTP_AUTH": "user"}, id="user alone"),
        pytest.param({"CONSUL_NAMESPACE": "team"}, id="namespace"),
    ],
)
def test_the_consul_command_sends_the_same(
    variables: dict[str, str], tmp_path: Path, scripted_consul: ScriptedConsul
) -> None:
    (tmp_path / "token").write_text(" from-file \n")
    (tmp_path / "empty").write_text("\n")
    environ: dict[str, str] = {
        **{
            name: str(tmp_path / value) if name.endswith("_FILE") else value
            for name, value in variables.items()
        },
        "CONSUL_HTTP_ADDR": scripted_consul.http_addr,
    }
    scripted_consul.answer('["dc1"]')
    scripted_consul.answer('["dc1"]')
    subprocess.run(
        [consul_binary(), "catalog", "datacenters"],
        env={"PATH": os.environ["PATH"], **environ},
        check=True,
        capture_output=True,
        timeout=30,
    )
    with ConsulClient(ConsulConfig.from_env(environ)) as client:
        client.catalog_datacenters()

    def of_interest(request: Request) -> dict[str, Any]:
        headers = {name: request.headers[name] for name in ("X-Consul-Token", "Authorization")}
        return {"path": request.path, "query": request.query, **headers}

    theirs, ours = scripted_consul.requests
    assert of_interest(ours) == of_interest(theirs)
