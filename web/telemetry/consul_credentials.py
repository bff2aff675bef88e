"""Tells Prometheus until when what the synchronizer shows to Consul is valid: certificates and the token."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from discovery.consul.client import ConsulClient
from discovery.consul.config import ConsulConfig
from discovery.errors import DiscoveryError
from web.telemetry.certificate_validity import Validity, validities

logger = logging.getLogger(__name__)

# In seconds. The shortest life that Consul gives a token is a minute.
_ASK_EVERY = 30.0
_LIMIT = 3.0

_CLIENT = "CONSUL_CLIENT_CERT"


class ConsulCredentials(Collector):
    """What `environ` names for Consul: the files are read at each scrape, the token is asked for beside it.

    What has no end, or is not used, is not told. Raises ConfigError.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._files = _certificate_files(ConsulConfig.from_env(environ))
        self._faults: dict[str, str] = {}
        self._token: Validity | None = None

    def describe(self) -> list[Metric]:
        return [*_certificate_families(), *_token_families()]

    def collect(self) -> Iterator[Metric]:
        begins, ends = _certificate_families()
        for setting, place in self._files.items():
            validity = self._read(setting, place)
            if validity is not None:
                begins.add_metric([setting], validity.begins)
                ends.add_metric([setting], validity.ends)
        created, expires = _token_families()
        token = self._token
        if token is not None:
            created.add_metric([], token.begins)
            expires.add_metric([], token.ends)
        yield from (begins, ends, created, expires)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Asks Consul about the token now and then while the body runs: a scrape must not wait for Consul."""
        ended = threading.Event()

        def ask() -> None:
            while True:
                self._token = self._ask()
                if ended.wait(_ASK_EVERY * random.uniform(0.9, 1.1)):
                    return

        # A daemon, for Consul may hang and the process still has to end in time.
        threading.Thread(target=ask, name="lictor consul token", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _ask(self) -> Validity | None:
        """From when until when the token is valid; as it was known where Consul does not say."""
        try:
            config = replace(ConsulConfig.from_env(self._environ), timeout=_LIMIT)
            if not config.token:
                return None
            with ConsulClient(config) as client:
                return _token_validity(client.acl_self().data)
        except DiscoveryError:
            # Consul is away, or forgot a token that ended: the watches and `lictor doctor` say so.
            return self._token
        except Exception:
            logger.exception("asking Consul for the end of the token failed unexpectedly, and goes on")
            return self._token

    def _read(self, setting: str, place: Path) -> Validity | None:
        """The end that counts among the certificates of a file, or of a folder's files."""
        try:
            found = validities(_content(place))
        except (OSError, ValueError) as exc:
            fault = f"{setting}: it cannot be told until when {place} is valid: {exc}"
            if self._faults.get(setting) != fault:
                logger.warning("%s", fault)
            self._faults[setting] = fault
            return None
        self._faults.pop(setting, None)
        return _counting(found, setting)


def _content(place: Path) -> bytes:
    """That of a file, or of all files below a folder."""
    if not place.is_dir():
        return place.read_bytes()
    return b"\n".join(path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file())


def _counting(found: Sequence[Validity], setting: str) -> Validity:
    """The first to end. Authorities that ended may stay in their file beside those that followed them."""
    if setting == _CLIENT:
        return min(found, key=_end)
    now = time.time()
    return min((one for one in found if one.ends > now), key=_end, default=max(found, key=_end))


def _end(validity: Validity) -> float:
    return validity.ends


def _certificate_files(config: ConsulConfig) -> dict[str, Path]:
    if config.scheme != "https":
        return {}
    authorities = (
        ("CONSUL_CACERT", config.ca_cert) if config.ca_cert is not None else ("CONSUL_CAPATH", config.ca_path)
    )
    named = (authorities, (_CLIENT, config.client_cert))
    return {setting: place for setting, place in named if place is not None}


def _token_validity(told: Any) -> Validity | None:
    """None where the token has no end, as most have not."""
    try:
        return Validity(_moment(told["CreateTime"]), _moment(told["ExpirationTime"]))
    except (LookupError, TypeError, ValueError):
        return None


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _certificate_families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily(
            "lictor_certificate_valid_from_timestamp_seconds",
            "From when on the certificate is valid that ends first among those that a setting names, "
            "in seconds since 1970.",
            labels=["setting"],
        ),
        GaugeMetricFamily(
            "lictor_certificate_expiry_timestamp_seconds",
            "When the first of the certificates that a setting names ends, in seconds since 1970.",
            labels=["setting"],
        ),
    )


def _token_families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily(
            "lictor_consul_token_created_timestamp_seconds",
            "When the token for Consul was made, where it has an end, in seconds since 1970.",
            labels=[],
        ),
        GaugeMetricFamily(
            "lictor_consul_token_expiry_timestamp_seconds",
            "When the token for Consul ends, where it does, in seconds since 1970.",
            labels=[],
        ),
    )
