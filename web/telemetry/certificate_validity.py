"""Reads from when until when certificates are valid; a PEM file's bytes in, times out."""

from __future__ import annotations

from typing import NamedTuple

from cryptography import x509


class Validity(NamedTuple):
    """In seconds since 1970."""

    begins: float
    ends: float


def validities(pem: bytes) -> list[Validity]:
    """Returns those of all certificates in a file. Raises ValueError where it has none, or a broken one."""
    return [
        Validity(one.not_valid_before_utc.timestamp(), one.not_valid_after_utc.timestamp())
        for one in x509.load_pem_x509_certificates(pem)
    ]
