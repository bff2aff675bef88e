"""Reads how to reach Consul from the consul command's environment variables."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, NamedTuple, Self

from discovery.errors import ConfigError

Scheme = Literal["http", "https"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ConsulConfig:
    """Where Consul's HTTP API is, and how to speak to it; made once, and read from nowhere else.

    `unix_socket`, where it is set, takes the place of `host` and `port`. `path_prefix` is what a
    proxy puts before `/v1`. `ca_cert` and `ca_path` (a folder of such files) replace the machine's
    own certificate authorities, as they do for the consul command. `token_file` takes the place of
    `token` unless it is empty. `tls_server_name` is the name
    that the server's certificate must carry if it is not `host`. `timeout` is the limit in seconds
    for each step of a call; a blocking query's wait is added to it.

    Secrets (`token`, `auth`) never show in the repr.
    """

    scheme: Scheme = "http"
    host: str = "127.0.0.1"
    port: int = 8500
    unix_socket: str = ""
    path_prefix: str = ""
    token: str = ""
    token_file: Path | None = None
    auth: tuple[str, str] | None = None
    ca_cert: Path | None = None
    ca_path: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    tls_server_name: str = ""
    verify: bool = True
    namespace: str = ""
    timeout: float = field(default=5.0)

    def __post_init__(self) -> None:
        faults = [
            *_host_faults(self.host),
            *_token_faults(self.token),
            *_pair_faults(self.client_cert, self.client_key),
        ]
        if self.timeout <= 0:
            faults.append(f"timeout: {self.timeout!r} seconds is no time: give more than 0")
        if faults:
            raise ConfigError(faults)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Reads the variables that the consul command reads, and as it reads them.

        An empty variable counts as unset; a token in CONSUL_HTTP_TOKEN_FILE wins over
        CONSUL_HTTP_TOKEN unless the file is empty; CONSUL_HTTP_SSL=true makes `http://` https, and
        false does not unmake `https://`; an address without a port means 80 or 443. Where the
        consul command would warn and go on, or fail at the first call, this raises ConfigError,
        with every fault.
        """
        reader = _Reader(environ)
        place = reader.address("CONSUL_HTTP_ADDR")
        tls = place.scheme == "https" or reader.flag("CONSUL_HTTP_SSL", default=False)
        port = place.port if place.port is not None else (443 if tls else 80)
        token_file = reader.file("CONSUL_HTTP_TOKEN_FILE")
        try:
            config = cls(
                scheme="https" if tls else "http",
                host=place.host,
                port=port,
                unix_socket=place.unix_socket,
                path_prefix=place.path_prefix,
                token=reader.token("CONSUL_HTTP_TOKEN", token_file),
                token_file=token_file,
                auth=reader.auth("CONSUL_HTTP_AUTH"),
                ca_cert=reader.file("CONSUL_CACERT"),
                ca_path=reader.folder("CONSUL_CAPATH"),
                client_cert=reader.file("CONSUL_CLIENT_CERT"),
                client_key=reader.file("CONSUL_CLIENT_KEY"),
                tls_server_name=reader.text("CONSUL_TLS_SERVER_NAME"),
                verify=reader.flag("CONSUL_HTTP_SSL_VERIFY", default=True),
                namespace=reader.text("CONSUL_NAMESPACE"),
            )
        except ConfigError as error:
            raise ConfigError([*reader.faults, *error.faults]) from error
        if reader.faults:
            raise ConfigError(reader.faults)
        # The consul command loads these files even where it then speaks plain HTTP.
        config.ssl_context()
        return config

    @property
    def address(self) -> str:
        """The address as a person would write it into CONSUL_HTTP_ADDR."""
        if self.unix_socket:
            return f"unix://{self.unix_socket}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path_prefix}"

    @property
    def is_local(self) -> bool:
        """Whether Consul is on this very machine, as far as the address tells."""
        if self.unix_socket or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def read_token(self) -> str:
        """The token, from its file where there is one; raises ConfigError where that is of no use."""
        # As the consul command does it, an empty file leaves the other in force.
        return (_token_in(self.token_file) if self.token_file is not None else "") or self.token

    def tls_files(self) -> list[Path]:
        """The files of which `ssl_context` is made."""
        folder = sorted(self.ca_path.rglob("*")) if self.ca_path is not None else []
        named = (self.ca_cert, self.client_cert, self.client_key)
        return [file for file in (*named, *folder) if file is not None]

    def ssl_context(self) -> ssl.SSLContext:
        """What TLS needs, made from the files; raises ConfigError where one of them is of no use."""
        # Not ssl.create_default_context(): from Python 3.13 on it demands extensions that Consul's
        # own CA, made by older versions of `consul tls ca create`, does not have.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        faults = [*self._load_authorities(context), *self._load_client_certificate(context)]
        if faults:
            raise ConfigError(faults)
        # An intermediate authority may be trusted alone, as the consul command does it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _load_authorities(self, context: ssl.SSLContext) -> list[str]:
        if self.ca_cert is not None:
            return _load_authority(context, "CONSUL_CACERT", self.ca_cert)
        if self.ca_path is not None:
            return self._load_authority_folder(context, self.ca_path)
        context.load_default_certs()
        return []

    def _load_authority_folder(self, context: ssl.SSLContext, folder: Path) -> list[str]:
        # OpenSSL would want the files named by their hashes; the consul command takes any name.
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            return [f"CONSUL_CAPATH: {folder} holds no file: put the CA's certificates there, or unset it"]
        return [fault for path in files for fault in _load_authority(context, "CONSUL_CAPATH", path)]

    def _load_client_certificate(self, context: ssl.SSLContext) -> list[str]:
        if self.client_cert is None or self.client_key is None:
            return []
        try:
            # With a password at hand, even an empty one, OpenSSL does not ask the terminal for it.
            context.load_cert_chain(self.client_cert, self.client_key, password="")
        except ssl.SSLError as error:
            return [_certificate_fault(self.client_cert, self.client_key, error)]
        except OSError as error:
            return [f"CONSUL_CLIENT_CERT or CONSUL_CLIENT_KEY: {error.strerror or error}"]
        return []

    def __repr__(self) -> str:
        told = ", ".join(
            f"{item.name}={_MASK if item.name in _SECRETS else getattr(self, item.name)!r}"
            for item in fields(self)
            if getattr(self, item.name) != item.default
        )
        return f"ConsulConfig({told})"


_SECRETS = {"token", "auth"}
_MASK = "***"

_TRUE = {"1", "t", "T", "true", "TRUE", "True"}
_FALSE = {"0", "f", "F", "false", "FALSE", "False"}

_NETWORK_ADDRESS = re.compile(
    r"(?:\[(?P<v6>[^\]]+)\]|(?P<name>[A-Za-z0-9._-]*))(?::(?P<port>\d*))?(?P<prefix>/[^\s?#]*)?"
)


class _Place(NamedTuple):
    """What an address says; `scheme` is empty and `port` None where it leaves that open."""

    scheme: str = ""
    host: str = "127.0.0.1"
    port: int | None = 8500
    unix_socket: str = ""
    path_prefix: str = ""


class _Reader:
    """Reads variables one by one and gathers what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.faults: list[str] = []

    def text(self, name: str) -> str:
        return self._environ.get(name, "")

    def flag(self, name: str, *, default: bool) -> bool:
        text = self.text(name)
        if text in _TRUE | _FALSE or not text:
            return text in _TRUE if text else default
        self.faults.append(f"{name}: {text!r} is not a boolean: write true or false")
        return default

    def file(self, name: str) -> Path | None:
        text = self.text(name)
        if not text:
            return None
        path = Path(text)
        try:
            path.open("rb").close()
        except OSError as error:
            self.faults.append(f"{name}: cannot read {text}: {_reason(error)}: name a readable file")
        return path

    def folder(self, name: str) -> Path | None:
        text = self.text(name)
        if not text:
            return None
        if not Path(text).is_dir():
            self.faults.append(f"{name}: {text} is not a folder: name one that holds the CA's certificates")
        return Path(text)

    def token(self, name: str, file: Path | None) -> str:
        token = self.text(name).strip()
        try:
            return (_token_in(file) if file is not None and os.access(file, os.R_OK) else "") or token
        except ConfigError as error:
            self.faults += error.faults
            return token

    def auth(self, name: str) -> tuple[str, str] | None:
        user, _, password = self.text(name).partition(":")
        return (user, password) if user or password else None

    def address(self, name: str) -> _Place:
        text = self.text(name)
        if not text:
            return _Place()
        try:
            return _parse_address(text)
        except ValueError as error:
            self.faults.append(f"{name}: {error}")
            return _Place()


def _parse_address(text: str) -> _Place:
    """Reads an address in the forms of the consul command; raises ValueError that says the mend."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _parse_network_address("", text)
    if scheme == "unix":
        if not rest:
            raise ValueError(f"{text!r} names no socket: write unix:///path/to/socket")
        return _Place(unix_socket=rest)
    if scheme not in ("http", "https"):
        raise ValueError(f"{text!r} has the scheme {scheme!r}: write http://, https:// or unix://")
    return _parse_network_address(scheme, rest)


def _parse_network_address(scheme: str, text: str) -> _Place:
    if "@" in text:
        # The text is not quoted: what stands before the @ is a secret.
        raise ValueError("a user and password do not belong here: put them into CONSUL_HTTP_AUTH")
    match = _NETWORK_ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an address: write host:port, [ipv6]:port or unix:///path")
    host = _checked_ipv6(match["v6"]) if match["v6"] else match["name"]
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{text!r} has the port {port}: ports go from 1 to 65535")
    prefix = (match["prefix"] or "").rstrip("/")
    if not host and port is None:
        raise ValueError(f"{text!r} names no host: write host:port")
    # A port alone is on this machine.
    return _Place(scheme, host or "localhost", port, path_prefix=prefix)


def _checked_ipv6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError as error:
        raise ValueError(f"[{text}] is not an IPv6 address: {error}") from error


def _host_faults(host: str) -> Sequence[str]:
    try:
        host.encode("idna")
    except UnicodeError:
        fault = f"a part of {host!r} between dots is empty, or longer than 63 characters"
        return (f"CONSUL_HTTP_ADDR: {fault}: write host:port",)
    return ()


def _token_in(file: Path) -> str:
    """What a file holds; the token itself is not quoted where it is faulty."""
    try:
        token = file.read_text().strip()
    except OSError as error:
        fault = f"cannot read {file}: {_reason(error)}: name a readable file"
    except UnicodeDecodeError:
        fault = f"{file} does not hold text: put the token alone into it"
    else:
        if _fits_header(token):
            return token
        fault = f"{file} holds a character that no HTTP header can carry: put the token alone into it"
    raise ConfigError([f"CONSUL_HTTP_TOKEN_FILE: {fault}"])


def _fits_header(token: str) -> bool:
    return token.isascii() and token.isprintable()


def _token_faults(token: str) -> Sequence[str]:
    # The token itself is not quoted: this text ends up in logs.
    if _fits_header(token):
        return ()
    return ("CONSUL_HTTP_TOKEN: the token holds a character that no HTTP header can carry: copy it again",)


def _pair_faults(certificate: Path | None, key: Path | None) -> Sequence[str]:
    if (certificate is None) == (key is None):
        return ()
    missing, given = (
        ("CONSUL_CLIENT_KEY", "CONSUL_CLIENT_CERT")
        if key is None
        else ("CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY")
    )
    return (f"{missing}: is missing, while {given} is set: set both, or neither",)


def _load_authority(context: ssl.SSLContext, variable: str, path: Path) -> list[str]:
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        return [f"{variable}: {path} holds no certificate: name a file in PEM format"]
    except OSError as error:
        return [f"{variable}: cannot read {path}: {_reason(error)}"]
    return []


def _certificate_fault(certificate: Path, key: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"CONSUL_CLIENT_KEY: {key} is not the key of {certificate}: name the two that belong together"
    return (
        f"CONSUL_CLIENT_CERT: {certificate} with {key} cannot be used: "
        "both must be in PEM format, the key without a passphrase"
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
