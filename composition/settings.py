"""`Settings`: what the operator chose for the gateway itself, from `[gateway]` of servers.toml and `APOLLOS_*` in the
environment; read once, frozen. What one server needs stands in its resource, never here.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from providers.resource import Timeouts

STDIO_MAX_CONNECTIONS = 20
SERVE_MAX_CONNECTIONS = 200


class Settings(BaseModel):
    """The gateway's own settings. `max_connections` of None means: 20, or 200 under `serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("Apollos MCP Gateway", min_length=1)
    store: str = Field("memory://", pattern=r"^memory://$")
    max_connections: PositiveInt | None = None
    acquire_timeout: PositiveFloat = Field(5.0, description="seconds a call waits for a session")
    idle_timeout: PositiveFloat = Field(300.0, description="seconds after which an idle session is closed")
    max_lifetime: PositiveFloat = Field(1800.0, description="seconds after which a session is replaced once idle")
    health_interval: PositiveFloat = Field(60.0, description="seconds between checks of idle sessions")
    refresh_interval: PositiveFloat = Field(300.0, description="seconds after which a catalogue is listed again")
    drain_timeout: PositiveFloat = Field(20.0, description="seconds that open calls get at shutdown")
    timeouts: Timeouts = Field(default_factory=Timeouts)
