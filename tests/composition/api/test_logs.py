"""Logs over REST: what a container says of its secrets is shown to nobody, wherever they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from providers.resource import McpServerResource
from providers.secrets import Owner
from tests.helpers.api import SHARED, rest_api

OPERATORS, ANNS, SPELLED_OUT = "value-of-the-operator", "value-of-ann", "value-in-the-record"


@pytest.mark.parametrize("per_user", [False, True])
async def test_secrets_that_the_record_refers_to_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_user: bool
) -> None:
    async with rest_api(SHARED, state_dir=str(tmp_path / "state")) as rest:
        gateway = rest.gateway
        env = {"TOKEN": "Bearer ${secret:token}", "PLAIN": SPELLED_OUT}
        record = McpServerResource(
            name="web", docker_image="mcp/web", env=env, per_user=per_user, is_enabled=False, created_by="x/carl"
        )
        await gateway.store.upsert(record)
        gateway.secrets.set("token", ANNS if per_user else OPERATORS, Owner("x/ann", "web") if per_user else None)

        async def lines(*_: Any) -> list[str]:
            return [f"2026-01-01T00:00:00Z {word}" for word in ("hello", OPERATORS, ANNS, SPELLED_OUT)]

        monkeypatch.setattr(gateway.containers, "log_lines", lines)
        reply = await rest("GET", "/adapters/web/logs")
        assert reply.status == 200 and "hello" in reply.text and "[PLAIN]" in reply.text and "[token]" in reply.text
        assert (ANNS if per_user else OPERATORS) not in reply.text and SPELLED_OUT not in reply.text
