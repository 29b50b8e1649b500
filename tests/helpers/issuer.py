"""An issuer of JWTs for tests, which also makes those that no issuer would, and its keys at an address."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.helpers.http_backend import always, http_backend

ISSUER = "https://login.example.com"
AUDIENCE = "https://mcp.example.com/mcp"
KEY_ID = "key-1"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@cache
def _key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_key(name: str = "issuer") -> str:
    """The key of that name in PEM; one that nobody asked for before is made."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return _key(name).public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def claims(**changed: Any) -> dict[str, Any]:
    """Claims of a token that is in order, with some of them changed; None takes one away."""
    usual = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": int(time.time()) + 300}
    return {name: value for name, value in (usual | changed).items() if value is not None}


def jwt(*, signed_by: str = "issuer", header: dict[str, Any] | None = None, **changed: Any) -> str:
    """A token with those claims.

    Args:
        signed_by: the name of a key.
        header: what differs from the usual header.
    """
    unsigned = _unsigned({"alg": "RS256", "typ": "JWT", "kid": KEY_ID} | (header or {}), claims(**changed))
    return f"{unsigned}.{_encoded(_key(signed_by).sign(unsigned.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def unsigned_jwt(algorithm: str = "none") -> str:
    """A token that says of itself that it needs no signature."""
    return _unsigned({"alg": algorithm}, claims()) + "."


def jwt_with_secret(secret: str, **changed: Any) -> str:
    """A token signed with HS256; `secret` may be a public key, which is the confusion of algorithms."""
    unsigned = _unsigned({"alg": "HS256", "kid": KEY_ID}, claims(**changed))
    return f"{unsigned}.{_encoded(hmac.new(secret.encode(), unsigned.encode(), hashlib.sha256).digest())}"


def _unsigned(header: dict[str, Any], body: dict[str, Any]) -> str:
    return f"{_encoded(json.dumps(header).encode())}.{_encoded(json.dumps(body).encode())}"


@asynccontextmanager
async def issuer_keys() -> AsyncIterator[str]:
    """The address at which the issuer's public keys are."""
    numbers = _key("issuer").public_key().public_numbers()
    key = {"kty": "RSA", "kid": KEY_ID, "use": "sig", "alg": "RS256"}
    key |= {name: _encoded(value.to_bytes((value.bit_length() + 7) // 8)) for name, value in _parts(numbers)}
    async with http_backend("/jwks.json", GET=always(lambda seen: web.json_response({"keys": [key]}))) as server:
        yield server.url


def _parts(numbers: rsa.RSAPublicNumbers) -> list[tuple[str, int]]:
    return [("n", numbers.n), ("e", numbers.e)]
