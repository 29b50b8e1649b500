"""The errors: one root, split by whose fault it is, readable, and passed on by FastMCP as they stand."""

from __future__ import annotations

import inspect

import pytest
from fastmcp import Client, FastMCP
from fastmcp.exceptions import FastMCPError, ToolError

from providers import errors
from providers.errors import (
    BackendError,
    BackendLost,
    BackendProtocolError,
    BackendResting,
    BackendTimeout,
    BackendUnavailable,
    CallerError,
    ClientGone,
    ConfigurationError,
    GatewayError,
    InternalError,
    LeaseReleased,
    NotAuthenticated,
    PoolExhausted,
    ProtocolError,
    ReadOnlyServer,
    StoreUnavailable,
    VersionConflict,
)

pytestmark = pytest.mark.core

OURS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


def test_every_error_has_the_one_root_and_is_fastmcps() -> None:
    assert len(OURS) == 18
    assert all(issubclass(kind, GatewayError) and issubclass(kind, FastMCPError) for kind in OURS)


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        (CallerError, {NotAuthenticated, VersionConflict, ReadOnlyServer, ProtocolError}),
        (
            BackendError,
            {
                *(BackendUnavailable, BackendResting, BackendLost, BackendTimeout, BackendProtocolError),
                *(PoolExhausted, ClientGone),
            },
        ),
        (InternalError, {LeaseReleased}),
        (ConfigurationError, set()),
        (StoreUnavailable, set()),
    ],
)
def test_each_error_says_whose_fault_it_is(fault: type, kinds: set[type]) -> None:
    assert {kind for kind in OURS if issubclass(kind, fault)} == kinds | {fault}


@pytest.mark.parametrize("kind", [BackendUnavailable, BackendLost, BackendTimeout, BackendProtocolError, PoolExhausted])
def test_a_backends_error_names_the_server_first(kind: type[BackendError]) -> None:
    error = kind("files", "is down. Start it.")
    assert str(error) == "server 'files': is down. Start it."
    assert (error.server, error.problem, error.not_sent) == ("files", "is down. Start it.", False)
    assert kind("files", "is down.", not_sent=True).not_sent


def test_a_configuration_error_holds_every_problem_a_line_each() -> None:
    assert ConfigurationError("one").problems == ["one"]
    error = ConfigurationError(["one", "two"])
    assert error.problems == ["one", "two"] and str(error) == "one\ntwo"


@pytest.mark.parametrize(
    ("expected", "actual", "said"),
    [(3, 5, "expected version 3, found 5"), (0, 1, "expected version 0, found 1"), (2, None, "found None")],
)
def test_a_version_conflict_tells_both_versions(expected: int, actual: int | None, said: str) -> None:
    error = VersionConflict("files", expected, actual)
    assert (error.name, error.expected, error.actual) == ("files", expected, actual)
    assert str(error).startswith("server 'files': ") and said in str(error) and "Read it again" in str(error)


async def test_our_message_reaches_the_caller_and_nobody_elses_does() -> None:
    server: FastMCP[None] = FastMCP("front", mask_error_details=True)

    @server.tool
    def ours() -> None:
        raise BackendTimeout("files", "no answer within 5 s.")

    @server.tool
    def foreign() -> None:
        raise RuntimeError("password=hunter2")

    async with Client(server) as client:
        with pytest.raises(ToolError, match="server 'files': no answer within 5 s"):
            await client.call_tool("ours")
        with pytest.raises(ToolError) as failure:
            await client.call_tool("foreign")
    assert "hunter2" not in str(failure.value)
