"""What the REST API answers when it refuses: problem details as of RFC 9457, in one place.

Every module of the API raises `Refusal`; `routes` comes in to make responses of them and of the gateway's own errors.
A problem says what is wrong and what to do. It never quotes a value, and what may not be read has the same bytes as
what is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from starlette.responses import JSONResponse

from providers.errors import BackendError, CallerError, GatewayError, ReadOnlyServer, StoreUnavailable

MEDIA_TYPE = "application/problem+json"
_RETRY_SECONDS = "5"
_MOST_ERRORS = 100


class Wrong(NamedTuple):
    """What is wrong with one member of a request. `text` is a predicate that reads on from `key`."""

    key: str
    text: str


class Refusal(CallerError):
    """Raised to end a request with a problem.

    Args:
        status: of HTTP.
        detail: what happened and what to do, for a person.
        errors: what is wrong, member by member.
        headers: of the response.
    """

    def __init__(
        self, status: int, detail: str, errors: Iterable[Wrong] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), dict(headers or {})
        super().__init__(detail)


def absent() -> Refusal:
    """For a server or tool that is not there, and for one that this caller may not read."""
    return Refusal(404, "There is nothing of this name that you may see.")


def invalid(errors: Iterable[Wrong]) -> Refusal:
    return Refusal(400, "The request has members that cannot be accepted; 'errors' lists them.", errors)


def taken() -> Refusal:
    """The same for every name that is taken, whoever may see the server and wherever it stands."""
    return Refusal(409, "This name is taken. Choose another.")


def changed_meanwhile() -> Refusal:
    return Refusal(409, "The server was changed at the same moment. Read it again and repeat the change.")


def response(refusal: Refusal) -> JSONResponse:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(refusal.status).phrase,
        "status": refusal.status,
        "detail": refusal.detail,
    }
    if refusal.errors:
        body["errors"] = [wrong._asdict() for wrong in refusal.errors[:_MOST_ERRORS]]
    return JSONResponse(body, refusal.status, refusal.headers, MEDIA_TYPE)


def refusal_of(error: GatewayError) -> Refusal:
    """The problem that an error of the gateway stands for."""
    match error:
        case Refusal():
            return error
        case ReadOnlyServer():
            return Refusal(409, "This server stands in servers.toml. Change it there; the gateway follows that file.")
        case StoreUnavailable():
            detail = "The store does not answer at the moment. Read again in a moment what is stored."
            return Refusal(503, detail, headers={"Retry-After": _RETRY_SECONDS})
        case BackendError():
            return Refusal(503, str(error), headers={"Retry-After": _RETRY_SECONDS})
        case _:
            return Refusal(400 if isinstance(error, CallerError) else 500, str(error))
