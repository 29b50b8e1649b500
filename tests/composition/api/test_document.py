"""docs/api.md: its examples run, in their order, against a gateway; its routes are those that there are."""

from __future__ import annotations

import re
import shutil

import anyio
import pytest

from composition.api.routes import ROUTES
from tests.helpers.api import rest_api
from tests.helpers.gateway import ROOT
from tests.helpers.people import token

PAGE = (ROOT / "docs" / "api.md").read_text()
EXAMPLES = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)


def test_every_route_is_named() -> None:
    named = set(re.findall(r"^\| `([A-Z]+) (/[^`]*)` \|", PAGE, re.M))
    assert named == {(method, path) for path, methods in ROUTES.items() for method in methods}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed, which the examples of the page use")
async def test_the_examples_run() -> None:
    script = "set -euo pipefail\n" + "echo\n".join(EXAMPLES)
    async with rest_api() as rest:
        with anyio.fail_after(30):
            done = await anyio.run_process(
                ["bash", "-c", script],
                check=False,
                env={"API": rest.base, "TOKEN": token("ada"), "PATH": "/usr/bin:/bin"},
            )
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        assert await rest.gateway.store.get("time") is None
    said = done.stdout.decode()
    assert '"description":"What time it is, anywhere"' in said
    assert '"readyReplicas":0' in said and '"tokens":' in said
