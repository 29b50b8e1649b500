"""Every error of the gateway, one root, split by whose fault it is; this module imports nothing of ours.

Everything is a `FastMCPError`, so FastMCP passes the message to the caller as it stands and masks what is not ours.
A message says what happened, to which server, and what to do next; it never holds a secret, a stack or a URL with
credentials.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from fastmcp.exceptions import FastMCPError


class GatewayError(FastMCPError):
    """Root of everything the gateway raises on purpose."""


class ConfigurationError(GatewayError):
    """Raised when the operator's configuration is wrong; `problems` lists each one, ready to print."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))


class CallerError(GatewayError):
    """The caller asked for something that it may not have, or asked wrongly."""


class NotAuthenticated(CallerError):
    """Raised when authentication is on and the request carries no verified principal."""


class VersionConflict(CallerError):
    """Raised by a store when a record's version is not the expected one."""

    def __init__(self, name: str, expected: int | None, actual: int | None) -> None:
        self.name, self.expected, self.actual = name, expected, actual
        super().__init__(
            f"server '{name}': expected version {expected}, found {actual}. Read it again and repeat the change."
        )


class ReadOnlyServer(CallerError):
    """Raised by a store when somebody else than the operator's file would change a server that stands there."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"server '{name}' stands in servers.toml, so it is changed and removed there.")


MISSING_CAPABILITY = -32021
"""JSON-RPC code: a request needs what its client did not declare (2026-07-28)."""


class ProtocolError(CallerError):
    """A refusal that MCP prescribes: the client sees it as a JSON-RPC error with this code and data."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        self.code, self.message, self.data = code, message, data
        super().__init__(message)


class BackendError(GatewayError):
    """A backend failed, or could not be had. `server` is its name; `not_sent` is true only where it is certain that
    the backend never received the request, so that it may be sent once more."""

    is_of_server: ClassVar[bool] = True
    """Whether it says something about the server, which is left alone for a while after several such failures."""

    def __init__(self, server: str, problem: str, *, not_sent: bool = False) -> None:
        self.server, self.problem, self.not_sent = server, problem, not_sent
        super().__init__(f"server '{server}': {problem}")

    def again(self, *, not_sent: bool | None = None) -> Self:
        """The same error anew, to be kept or to be raised elsewhere: without the frames that this one came through, and
        the message that was in their hands."""
        return type(self)(self.server, self.problem, not_sent=self.not_sent if not_sent is None else not_sent)


class BackendUnavailable(BackendError):
    """Raised when no session with the backend can be opened, or an open one ended before the answer came."""


class BackendResting(BackendUnavailable):
    """Raised while a server that failed is left alone; `reason` is why it failed, and nothing else."""

    def __init__(self, server: str, problem: str, *, not_sent: bool = True, reason: str = "") -> None:
        self.reason = reason or problem
        super().__init__(server, problem, not_sent=not_sent)

    def again(self, *, not_sent: bool | None = None) -> Self:
        return type(self)(
            self.server, self.problem, not_sent=self.not_sent if not_sent is None else not_sent, reason=self.reason
        )


class BackendLost(BackendUnavailable):
    """Raised when the connection ended after a request was sent and before its answer came. The backend may have
    carried it out, so only what may be done twice is sent again."""


class ClientGone(BackendUnavailable):
    """Raised to what still waits on behalf of a client whose session ended. It tells nobody else anything."""

    is_of_server = False

    def __init__(self, server: str, problem: str = "its client has gone.", *, not_sent: bool = False) -> None:
        super().__init__(server, problem, not_sent=not_sent)


class BackendTimeout(BackendError):
    """Raised when a backend missed one of its deadlines."""


class BackendProtocolError(BackendError):
    """Raised when a backend sent something that is not MCP, or more of it than is allowed."""


class PoolExhausted(BackendError):
    """Raised when no connection became free within the acquire timeout."""

    is_of_server = False


class StoreUnavailable(GatewayError):
    """Raised when the store of servers does not answer, or not in time. A change that was under way may have been made
    or not; `store` says which store it is, without its password."""

    def __init__(self, store: str, problem: str) -> None:
        self.store, self.problem = store, problem
        super().__init__(f"the store of servers ({store}) {problem}. Read again in a moment what is stored.")


class InternalError(GatewayError):
    """Our own fault."""


class LeaseReleased(InternalError):
    """Raised when a lease is used after it was given back."""
