"""What one replica believes another: an assertion that is whole, fresh, for it, and new."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from providers.assertions import ISSUER, LIFE_SECONDS, TYPE, Assertion, Verifier, sign
from providers.identity import Identity

KEY = b"k" * 32
ADA = Identity("ada", "Ada \u00c4", frozenset({"b", "a"}), "https://login.example.com")
ASSERTION = Assertion(ADA, "box", "shared", 7)
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": "us",
    "iat": 1000,
    "exp": 1000 + LIFE_SECONDS,
    "jti": "1",
    "sub": "ada",
    "name": "Ada",
    "roles": ["a"],
    "issuer": "https://login.example.com",
    "server": "box",
    "scope": "shared",
    "lease": 7,
}


def verifier() -> Verifier:
    return Verifier("us", now=lambda: 1001.0)


def signed(claims: dict[str, Any], header: dict[str, Any] | None = None, key: bytes = KEY) -> str:
    return jwt.encode({"alg": "HS256", "typ": TYPE, **(header or {})}, claims, OctKey.import_key(key))


def test_the_identity_arrives_as_it_was() -> None:
    found = verifier().verify(sign(ASSERTION, "us", KEY, now=lambda: 1000.0), KEY)
    assert found == ASSERTION
    assert found is not None and found.identity.key == ADA.key


def test_it_is_good_once_and_what_was_let_in_may_go_on() -> None:
    one, token = verifier(), signed(CLAIMS)
    assert one.verify(token, KEY) is not None
    assert one.verify(token, KEY) is None
    assert one.verify(token, KEY, is_new=False) is not None
    assert Verifier("us", now=lambda: 99999.0).verify(token, KEY, is_new=False) is not None
    assert Verifier("them", now=lambda: 1001.0).verify(token, KEY, is_new=False) is None


@pytest.mark.parametrize(("moment", "is_good"), [(980, False), (990, True), (1030, True), (1044, True), (1046, False)])
def test_it_is_good_for_half_a_minute_and_a_little(moment: float, is_good: bool) -> None:
    assert (Verifier("us", now=lambda: moment).verify(signed(CLAIMS), KEY) is not None) is is_good


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://login.example.com"},
        {"aud": "them"},
        {"aud": ["us"]},
        {"exp": 9999},
        {"exp": "1030"},
        {"exp": 1000},
        {"iat": None},
        {"sub": ""},
        {"sub": 7},
        {"roles": "a"},
        {"roles": [7]},
        {"lease": "7"},
        {"lease": True},
        {"jti": ""},
        {"server": None},
    ],
)
def test_claims_that_are_not_just_so_are_refused(wrong: dict[str, Any]) -> None:
    assert verifier().verify(signed(CLAIMS | wrong), KEY) is None


def test_each_claim_is_needed() -> None:
    for name in CLAIMS:
        assert verifier().verify(signed({key: value for key, value in CLAIMS.items() if key != name}), KEY) is None


def test_other_keys_types_and_algorithms_are_refused() -> None:
    none = ".".join(
        urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "none", "typ": TYPE}, CLAIMS)
    )
    rsa = jwt.encode({"alg": "RS256", "typ": TYPE}, CLAIMS, RSAKey.generate_key(2048))
    strong = jwt.encode({"alg": "HS512", "typ": TYPE}, CLAIMS, OctKey.import_key(KEY), algorithms=["HS512"])
    refused = [none + ".", rsa, strong, signed(CLAIMS, {"typ": "JWT"}), signed(CLAIMS, key=b"x" * 32), "", "a.b.c", "x"]
    assert [verifier().verify(token, KEY) for token in refused] == [None] * len(refused)
    assert verifier().verify(signed(CLAIMS), b"") is None, "no key is known yet"
