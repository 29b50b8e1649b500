"""The records of a running gateway, over its REST API.

The commands come in (`registering`), with the gateway's address and a token. The gateway decides who may see and change
what; here its answers become the same errors as those of the store, in sentences for a person.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pydantic.alias_generators import to_camel

from composition.api.shapes import image_parts
from composition.gateway_address import NamedGateway, refused, unreached
from composition.records import Records
from providers.endpoint import Answer, HttpClient, exchange
from providers.errors import CallerError, ConfigurationError
from providers.lines import Json

_SECONDS = 30.0
_MERGE_PATCH = "application/merge-patch+json"


class RemoteRecords(Records):
    """
    Args:
        gateway: where it is, and who asks.
    """

    def __init__(self, client: HttpClient, gateway: NamedGateway) -> None:
        self._client, self._gateway = client, gateway

    async def all(self) -> list[Json]:
        found = self._read(await self._ask("GET", "/adapters"), list)
        return [each for each in found if isinstance(each, dict)]

    async def get(self, name: str) -> Json:
        return (await self._known(name))[0]

    async def add(self, fields: Mapping[str, Any]) -> Json:
        answer = await self._ask("POST", "/adapters", body=_body(fields))
        return dict(self._read(answer, dict))

    async def switch(self, name: str, *, is_enabled: bool) -> Json:
        _, tag = await self._known(name)
        answer = await self._ask("PATCH", _path(name), body={"isEnabled": is_enabled}, only_if=tag)
        return dict(self._read(answer, dict))

    async def remove(self, name: str) -> None:
        _, tag = await self._known(name)
        self._check(await self._ask("DELETE", _path(name), only_if=tag), name)

    async def _known(self, name: str) -> tuple[Json, str | None]:
        """A server, and the tag of its version."""
        answer = await self._ask("GET", _path(name))
        if answer.status == 404:
            raise CallerError(f"there is no server '{name}'")
        return dict(self._read(answer, dict)), answer.headers.get("etag")

    async def _ask(self, method: str, path: str, *, body: Any = None, only_if: str | None = None) -> Answer:
        headers = {"Accept": "application/json, application/problem+json", "Accept-Encoding": "identity"}
        if self._gateway.token is not None:
            headers["Authorization"] = f"Bearer {self._gateway.token}"
        if only_if is not None:
            headers["If-Match"] = only_if
        if body is not None:
            headers["Content-Type"] = _MERGE_PATCH if method == "PATCH" else "application/json"
        sent = None if body is None else json.dumps(body).encode()
        try:
            return await exchange(
                self._client, method, self._gateway.address + path, headers=headers, body=sent, seconds=_SECONDS
            )
        except OSError as error:
            raise unreached(self._gateway, error) from None

    def _read(self, answer: Answer, kind: type[Any]) -> Any:
        self._check(answer)
        value = _json(answer)
        if not isinstance(value, kind):
            raise self._stranger()
        return value

    def _check(self, answer: Answer, name: str | None = None) -> None:
        """
        Raises:
            CallerError: the gateway refused.
            ConfigurationError: it refused what was written, and says why.
        """
        if answer.status < 300:
            return
        problem = _json(answer)
        is_told = isinstance(problem, dict) and isinstance(problem.get("detail"), str)
        if (answer.status == 401 or not is_told) and (error := refused(self._gateway, answer.status)):
            raise error
        if not is_told:
            raise self._stranger()
        detail = problem["detail"]
        wrong = [f"{each.get('key') or 'the server'}: {each.get('text')}" for each in _errors(problem)]
        if answer.status == 400 and wrong:
            raise ConfigurationError(wrong)
        raise CallerError("\n".join(["the gateway refused this:", *wrong]) if wrong else detail)

    def _stranger(self) -> CallerError:
        return CallerError(f"what answers at {self._gateway.address} does not look like a gateway. Check the address")


def _path(name: str) -> str:
    return f"/adapters/{quote(name, safe='')}"


def _json(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except ValueError:
        return None


def _errors(problem: Json) -> list[Json]:
    errors = problem.get("errors")
    return [each for each in errors if isinstance(each, dict)] if isinstance(errors, list) else []


def _body(fields: Mapping[str, Any]) -> Json:
    """A record's fields in the words of the API."""
    body = {to_camel(key): value for key, value in fields.items() if value is not None and value not in ((), {}, [])}
    if "env" in body:
        body["environmentVariables"] = body.pop("env")
    if image := body.pop("dockerImage", None):
        name, version = image_parts(image)
        body |= {"imageName": name} | ({"imageVersion": version} if version else {})
    return body
