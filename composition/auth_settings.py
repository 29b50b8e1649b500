"""`[gateway.auth]`: what an operator may write about who comes in over HTTP, and what is wrong with it.

`settings` comes in. What one key must be like, and which keys belong together, are plain sentences here, each for the
key that is to be corrected; no sentence holds a key or a secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field

from composition.tables import Problem
from providers.tokens import ISSUER as TOKENS_ISSUER

ALGORITHMS = tuple(f"{family}{size}" for family in ("RS", "PS", "ES", "HS") for size in (256, 384, 512))
DEFAULT_ALGORITHM = "RS256"
_OURS = ("local", "token", TOKENS_ISSUER)
"""Who vouches for identities that are no JWT's: an issuer with such a name could make the same users."""

_SECRET_BYTES = 32
_RSA_BITS = 2048
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_SAMPLES = (
    *("changeme", "change-me", "change_me", "your-256-bit", "your-secret", "your_secret", "a-string-secret"),
    *("secretsecret", "supersecret", "super-secret", "my-secret", "mysecret", "password", "placeholder"),
    *("example", "sample", "insert", "replace", "12345678", "abcdefgh", "qwerty"),
)
"""What a secret does not hold that somebody made by chance; documents and tutorials have them."""
_FEWEST_CHARACTERS = 8
"""That a secret has: `aaaa…` and `abababab…` are none."""


class AuthSettings(BaseModel):
    """Who may come in over HTTP: holders of static tokens, of JWTs of one issuer, or both."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tokens: str | None = Field(default=None, min_length=1, examples=['"tokens.json"'])
    issuer: str | None = Field(default=None, min_length=1, examples=['"https://login.example.com"'])
    audience: str | None = Field(default=None, min_length=1, examples=['"https://mcp.example.com/mcp"'])
    jwks_url: str | None = Field(default=None, min_length=1, examples=['"https://login.example.com/jwks.json"'])
    key: str | None = Field(default=None, min_length=1, repr=False, examples=['"${JWT_PUBLIC_KEY}"'])
    algorithm: str | None = Field(default=None, min_length=1, examples=['"RS256"'])
    scopes: tuple[str, ...] = Field(default=(), examples=['["mcp"]'])
    name_claim: str = Field(default="name", min_length=1, examples=['"preferred_username"'])
    roles_claim: str = Field(default="roles", min_length=1, examples=['"realm_access.roles"'])

    @property
    def is_on(self) -> bool:
        return self.tokens is not None or self.issuer is not None

    @property
    def signed_with(self) -> str:
        """The one algorithm that is taken."""
        return self.algorithm or DEFAULT_ALGORITHM


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def auth_problems(auth: AuthSettings) -> list[Problem]:
    """What is wrong with keys that each by itself are in order."""
    if auth.issuer is None:
        jwt_keys = ("audience", "jwks_url", "key", "algorithm")
        given = [key for key in jwt_keys if getattr(auth, key) is not None] + (["scopes"] if auth.scopes else [])
        advice = "is for JWTs, and needs 'issuer': who issues them, which is their 'iss'"
        return [Problem(("auth", key), advice) for key in given]
    return [Problem(("auth", key), text) for key, text in _jwt_problems(auth, auth.issuer)]


def _jwt_problems(auth: AuthSettings, issuer: str) -> Iterator[tuple[str, str]]:
    if issuer in _OURS or not issuer.isprintable():
        yield "issuer", f"must be the 'iss' of the tokens, and none of {', '.join(_OURS)}, which the gateway uses"
    if auth.audience is None:
        yield (
            "audience",
            "is missing. Write whom the tokens are meant for, which is their 'aud' and best the address of the "
            "gateway: tokens of the issuer for other services must not be taken",
        )
    if auth.jwks_url is None and auth.key is None:
        yield "jwks_url", "is missing. Write where the issuer's keys are, or the key itself as key = …"
    if auth.jwks_url is not None and auth.key is not None:
        yield "key", "stands beside 'jwks_url'. Keep one of the two"
    if auth.jwks_url is not None and (problem := _address_problem(auth.jwks_url)):
        yield "jwks_url", problem
    if auth.signed_with not in ALGORITHMS:
        yield "algorithm", f"must be one of {', '.join(ALGORITHMS)}"
    elif auth.signed_with.startswith("HS") and auth.jwks_url is not None:
        yield "algorithm", "is one with a shared secret, which no address gives away. Write the secret as key = …"
    elif auth.key is not None and (problem := _key_problem(auth.key, auth.signed_with)):
        yield "key", problem


def _address_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not host or not url.isprintable() or " " in url:
        return "must be a whole address, which begins with https://"
    if parts.username or parts.password:
        return "must hold no user and no password"
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)):
        return None
    return "must begin with https://: who can change the keys on their way can make himself anybody"


def _key_problem(key: str, algorithm: str) -> str | None:
    if algorithm.startswith("HS"):
        return _secret_problem(key)
    if "PRIVATE KEY" in key:
        return "is a private key, which only the issuer may have. Write the public one"
    try:
        public = load_pem_public_key(key.encode())
    except (ValueError, UnsupportedAlgorithm):
        return "must be the issuer's public key in PEM, which begins with -----BEGIN PUBLIC KEY-----"
    if algorithm.startswith("ES"):
        fits = isinstance(public, EllipticCurvePublicKey) and public.curve.name == _CURVES[algorithm]
        return None if fits else f"is no key for {algorithm}. Write a key on {_CURVES[algorithm]}, or another algorithm"
    if not isinstance(public, RSAPublicKey):
        return f"is no key for {algorithm}, which needs one of RSA. Write another algorithm, or another key"
    if public.key_size < _RSA_BITS:
        return f"has {public.key_size} bits; fewer than {_RSA_BITS} can be broken. Have the issuer make a longer one"
    return None


def _secret_problem(secret: str) -> str | None:
    if "-----BEGIN" in secret:
        return "is not secret: a key in PEM is for RS256 and the like. Write the algorithm that the issuer uses"
    if len(secret.encode(errors="replace")) < _SECRET_BYTES:
        return f"is shorter than {_SECRET_BYTES} bytes, so that it can be guessed. Make one: openssl rand -base64 48"
    if len(set(secret)) < _FEWEST_CHARACTERS or any(sample in secret.lower() for sample in _SAMPLES):
        return "is a sample, which everybody knows. Make one of your own: openssl rand -base64 48"
    return None
