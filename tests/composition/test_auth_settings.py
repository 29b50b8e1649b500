"""`[gateway.auth]`: which keys belong together, which issuers' keys are taken, and what is said about the others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from composition.auth_settings import ALGORITHMS, AuthSettings, auth_problems
from composition.servers_file import Configuration, load_configuration
from providers.errors import ConfigurationError
from tests.helpers.issuer import AUDIENCE, ISSUER, public_key

pytestmark = pytest.mark.core

SECRET = "kT9wq2LxZ7vB4nRf8cYh1sJd6gPm3uEa"
JWTS = {"issuer": ISSUER, "audience": AUDIENCE}
URL = "https://login.example.com/jwks.json"


def pem(key: object) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    made: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, form)  # type: ignore[attr-defined]
    return made.decode()


def private_pem() -> str:
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.decode()


SHORT_RSA = pem(rsa.generate_private_key(public_exponent=65537, key_size=1024))
P256, P384 = pem(ec.generate_private_key(ec.SECP256R1())), pem(ec.generate_private_key(ec.SECP384R1()))
ED25519 = pem(ed25519.Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    "auth",
    [
        {},
        {"tokens": "tokens.json"},
        {"tokens": "tokens.json", **JWTS, "jwks_url": URL},
        {**JWTS, "jwks_url": "http://127.0.0.1:9/jwks.json"},
        {**JWTS, "jwks_url": URL, "algorithm": "ES256", "scopes": ("mcp",)},
        {**JWTS, "key": public_key()},
        {**JWTS, "key": public_key(), "algorithm": "PS512"},
        {**JWTS, "key": P256, "algorithm": "ES256"},
        {**JWTS, "key": SECRET, "algorithm": "HS256"},
    ],
)
def test_what_is_in_order_has_no_problem(auth: dict[str, str]) -> None:
    settings = AuthSettings.model_validate(auth)
    assert auth_problems(settings) == [] and settings.is_on == bool(auth)


@pytest.mark.parametrize(
    ("auth", "key", "told"),
    [
        ({"audience": AUDIENCE}, "audience", "needs 'issuer'"),
        ({"tokens": "t.json", "jwks_url": URL}, "jwks_url", "needs 'issuer'"),
        ({"tokens": "t.json", "scopes": ("mcp",)}, "scopes", "needs 'issuer'"),
        ({"issuer": ISSUER, "jwks_url": URL}, "audience", "is missing"),
        (JWTS, "jwks_url", "is missing"),
        ({**JWTS, "jwks_url": URL, "key": public_key()}, "key", "Keep one of the two"),
        ({**JWTS, "issuer": "tokens", "jwks_url": URL}, "issuer", "none of local, token, tokens"),
        ({**JWTS, "issuer": "local", "jwks_url": URL}, "issuer", "none of local"),
        ({**JWTS, "jwks_url": "http://login.example.com/jwks.json"}, "jwks_url", "must begin with https://"),
        ({**JWTS, "jwks_url": "http://127.0.0.1.example.com/k"}, "jwks_url", "must begin with https://"),
        ({**JWTS, "jwks_url": "file:///etc/passwd"}, "jwks_url", "must be a whole address"),
        ({**JWTS, "jwks_url": "https://u:p4ss@h/k"}, "jwks_url", "no user and no password"),
        ({**JWTS, "jwks_url": "https://[h/k"}, "jwks_url", "must be a whole address"),
        ({**JWTS, "jwks_url": URL, "algorithm": "none"}, "algorithm", "must be one of RS256"),
        ({**JWTS, "jwks_url": URL, "algorithm": "rs256"}, "algorithm", "must be one of RS256"),
        ({**JWTS, "jwks_url": URL, "algorithm": "HS256"}, "algorithm", "is one with a shared secret"),
        ({**JWTS, "key": public_key(), "algorithm": "HS256"}, "key", "is not secret"),
        ({**JWTS, "key": SECRET}, "key", "must be the issuer's public key in PEM"),
        ({**JWTS, "key": private_pem()}, "key", "is a private key"),
        ({**JWTS, "key": SHORT_RSA}, "key", "has 1024 bits"),
        ({**JWTS, "key": P256}, "key", "is no key for RS256"),
        ({**JWTS, "key": ED25519}, "key", "is no key for RS256"),
        ({**JWTS, "key": P384, "algorithm": "ES256"}, "key", "is no key for ES256"),
        ({**JWTS, "key": public_key(), "algorithm": "ES256"}, "key", "is no key for ES256"),
        ({**JWTS, "key": "secret", "algorithm": "HS256"}, "key", "is shorter than 32 bytes"),
        ({**JWTS, "key": SECRET[:-1], "algorithm": "HS512"}, "key", "is shorter than 32 bytes"),
        ({**JWTS, "key": "changeme" * 4, "algorithm": "HS256"}, "key", "is a sample"),
        ({**JWTS, "key": "a" * 40, "algorithm": "HS256"}, "key", "is a sample"),
        ({**JWTS, "key": "your-256-bit-secret-your-256-bit-secret", "algorithm": "HS256"}, "key", "is a sample"),
        ({**JWTS, "key": "a-string-secret-at-least-256-bits-long", "algorithm": "HS256"}, "key", "is a sample"),
    ],
)
def test_what_does_not_belong_together_is_told(auth: dict[str, str], key: str, told: str) -> None:
    [problem] = auth_problems(AuthSettings.model_validate(auth))
    assert problem.key == ("auth", key) and told in problem.text
    if (secret := auth.get("key")) is not None:
        assert secret not in problem.text.replace("secret", "" if secret == "secret" else "secret")
    assert "p4ss" not in problem.text


def test_no_algorithm_without_a_signature_is_offered() -> None:
    assert "none" not in {name.lower() for name in ALGORITHMS}


def load(file: Path, text: str, environ: Mapping[str, str] | None = None) -> Configuration:
    file.write_text(text)
    return load_configuration(file, environ or {})


def test_a_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "servers.toml"
    with pytest.raises(ConfigurationError) as caught:
        load(file, f'[gateway.auth]\nissuer = "{ISSUER}"\n\nkey = "{SECRET}"\nalgorithm = "HS1"')
    missing, unknown = caught.value.problems
    assert missing.startswith(
        f"{file}:1: [gateway] key 'auth.audience' is missing. Write whom the tokens are meant for"
    )
    assert unknown.startswith(f"{file}:5: [gateway] key 'auth.algorithm' must be one of {', '.join(ALGORITHMS)}")
    assert SECRET not in str(caught.value)


def test_a_mistake_in_a_variable_is_told_by_its_name(tmp_path: Path) -> None:
    environ = {"APOLLOS_AUTH_KEY": "changeme" * 5, "APOLLOS_AUTH_ISSUER": ISSUER, "APOLLOS_AUTH_AUDIENCE": AUDIENCE}
    with pytest.raises(ConfigurationError, match=r"^environment variable APOLLOS_AUTH_KEY is a sample"):
        load(tmp_path / "servers.toml", '[gateway.auth]\nalgorithm = "HS256"', environ)


@pytest.mark.parametrize(("written", "found"), [("t.json", "t.json"), ("in/t.json", "in/t.json")])
def test_the_file_of_tokens_lies_where_servers_toml_does(tmp_path: Path, written: str, found: str) -> None:
    configuration = load(tmp_path / "servers.toml", f'[gateway.auth]\ntokens = "{written}"')
    assert configuration.settings.auth.tokens == str(tmp_path / found)


@pytest.mark.parametrize("url", ["https://*.example.com", "https://u:p@example.com", "example.com"])
def test_a_public_url_names_one_host(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="public_url"):
        load(tmp_path / "servers.toml", f'[gateway]\npublic_url = "{url}"')
