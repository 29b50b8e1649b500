"""A gateway as a process at debug level, with a secret in every place that may hold one, through good days and bad.

`play` lives through it once and gives back all that anybody could have read: logs, the audit, answers, the output of
commands, command lines, and the environments of backends. What a secret may be in is left out here, with a reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
from aiohttp import web

from providers.tokens import TokenFile
from tests.helpers.faults import QUICK
from tests.helpers.gateway import ROOT, GatewayProcess, gateway_process, local, remote, servers_toml
from tests.helpers.http_backend import Seen, http_backend
from tests.helpers.issuer import AUDIENCE, ISSUER, jwt_with_secret
from tests.helpers.processes import http_server
from tests.helpers.redis_server import PASSWORD, RedisServer, redis_server
from tests.security.house import VERSIONS, Json, Person

CANARIES = {
    "redis": PASSWORD,
    "jwt key": "kT9wq2LxZ7vB4nRf8cYh1sJd6gPm3uEa",
    "cookie": "canary-cookie-qmzvt",
    "other header": "canary-xheader-wbnfj",
    "userinfo": "canary-userinfo-plkzr",
    "query": "canary-query-hgfdw",
    "header": "canary-header-rtyxc",
    "env": "canary-env-zxcvb",
    "secret": "canary-secret-mnbvq",
    "argument": "canary-argument-asdfg",
    "result": "canary-result-poiuy",
    "body": "canary-body-lkjhg",
    "bad token": "canary-token-qwert",
    "their query": "canary-clientquery-vfrtg",
}
"""One for each place. The static tokens, JWTs and ids of sessions that are made on the way come to it."""

_COMMANDS = """
import contextlib, json, sys
from composition.cli import main
for words in json.load(sys.stdin):
    with contextlib.suppress(SystemExit):
        print(words[2:3], main(words), flush=True)
"""

SILENT = {"FASTMCP_LOG_LEVEL": "CRITICAL"}
"""What a backend itself writes into its log is its own word."""


@dataclass
class Evidence:
    """All that was to be read, by where. `secrets` are the canaries by name."""

    secrets: dict[str, str] = field(default_factory=lambda: dict(CANARIES))
    texts: dict[str, str] = field(default_factory=dict)
    environments: dict[str, str] = field(default_factory=dict)
    """Of the backends, by the server."""

    def add(self, where: str, text: str) -> None:
        self.texts[where] = self.texts.get(where, "") + text + "\n"

    def hits(self) -> list[str]:
        """Where which secret is to be read, with some of what stands before it."""
        found = []
        for where, text in self.texts.items():
            for name, secret in self.secrets.items():
                if (place := text.find(secret)) >= 0:
                    found.append(f"{name} in {where}: …{text[max(0, place - 300) : place + len(secret) + 40]}")
        return found


class Play:
    def __init__(self, evidence: Evidence, redis: RedisServer, gateway: GatewayProcess, env: dict[str, str]) -> None:
        self.seen, self.redis, self.gateway, self.env = evidence, redis, gateway, env
        self.base = gateway.url.removesuffix("/mcp")
        self.file = TokenFile(gateway.path.with_name("tokens.json"))
        self.tokens: dict[str, str] = {}

    async def run(self) -> None:
        await self._make_users()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
            self.http = http
            for version in VERSIONS:
                await self._work(version)
            await self._bad_requests()
            await self._rest()
            self._look_at_processes()
            await self._commands()
            self.redis.kill()
            await self._without_redis()
            self.redis.start()
        self._look_at_processes()

    async def _make_users(self) -> None:
        for user, roles in (("ada", ["mcp.admin"]), ("bob", ["guest"])):
            self.tokens[user] = self.file.add(user, user, roles)[0]
            self.seen.secrets[f"token of {user}"] = self.tokens[user]
        self.tokens["jwt"] = jwt_with_secret(CANARIES["jwt key"], roles=["mcp.admin"])
        self.seen.secrets["JWT"] = self.tokens["jwt"].rpartition(".")[2]

    # --- MCP

    def _person(self, user: str, version: str, place: str = "/mcp") -> Person:
        url = f"{self.base}{place}?key={CANARIES['their query']}"
        person = Person(self.http, url, self.tokens[user], version)
        person.more = {"Cookie": f"session={CANARIES['cookie']}", "X-Api-Key": CANARIES["other header"]}
        return person

    async def _work(self, version: str) -> None:
        """Normal use and all faults. What a call's own caller is answered may hold its argument and its result."""
        for user, place in (("ada", "/mcp"), ("jwt", "/mcp"), ("ada", "/adapters/local/mcp")):
            person = self._person(user, version, place)
            self.seen.add("answers", (await person.shake_hands()).text)
            if person.session_id:
                self.seen.secrets[f"session {len(self.seen.secrets)}"] = person.session_id
            for method in ("tools/list", "prompts/list", "resources/list", "logging/setLevel"):
                self.seen.add("answers", (await person.ask(method, {"level": "debug"})).text)
            prefix = "" if "adapters" in place else "local_"
            calls: tuple[tuple[str, str, Json], ...] = (
                ("tools/call", "echo", {"text": CANARIES["argument"]}),
                ("prompts/get", "summarize", {"topic": CANARIES["argument"]}),
                ("tools/call", "fail", {"message": CANARIES["argument"]}),
            )
            mine = [
                await person.ask(method, {"name": f"{prefix}{name}", "arguments": arguments})
                for method, name, arguments in calls
            ]
            assert CANARIES["argument"] in mine[0].text, mine[0].text
            self.seen.add("answers to the owner", "".join(answer.text for answer in mine))
            wrong = {"text": [CANARIES["argument"]]}
            await person.ask("tools/call", {"name": f"{prefix}echo", "arguments": wrong})
        await self._faults(self._person("ada", version))

    async def _faults(self, person: Person) -> None:
        await person.shake_hands()
        told = await person.ask("tools/call", {"name": "telling_secret", "arguments": {}})
        assert CANARIES["secret"] in told.text, told.text  # it is the very server's own
        await person.ask("tools/call", {"name": "web_echo", "arguments": _argument()})
        for server in ("refused", "denied", "broken", "garbage", "dying", "hanging", "rubbish", "missing"):
            came = await person.ask("tools/call", {"name": f"{server}_echo", "arguments": _argument()})
            self.seen.add(f"the error of {server}", f"{came.headers} {came.text}")
        bob = self._person("bob", person.version)
        await bob.shake_hands()
        for method in ("tools/list", "resources/list"):
            self.seen.add("answers to bob", (await bob.ask(method)).text)

    async def _bad_requests(self) -> None:
        text = CANARIES["body"]
        rpc = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "local_echo"}}
        bodies = (
            f'{{"{text}": ',
            json.dumps([text]),
            json.dumps({**rpc, "params": {"name": {"x": text}}}),
            json.dumps({**rpc, "params": text}),
            json.dumps({**rpc, "id": {"x": text}}),
            json.dumps({**rpc, "params": {"name": "local_add", "arguments": {"a": text, "b": [text]}}}),
            json.dumps({**rpc, "method": "resources/read", "params": {"uri": [text]}}),
            json.dumps({**rpc, "method": "initialize", "params": {"protocolVersion": 5, "capabilities": text}}),
            json.dumps({**rpc, "method": "completion/complete", "params": {"ref": text}}),
        )
        for version in VERSIONS:
            person = self._person("bob", version)
            await person.shake_hands()
            for body in bodies:
                await person.send("POST", "tools/call", data=body)  # who sent it may hear it again; others may not
        forged = f"a.{CANARIES['bad token']}.c"
        for token in (forged, f"apo_{CANARIES['bad token']}", jwt_with_secret("x" * 40, jti=CANARIES["bad token"])):
            person = self._person("bob", VERSIONS[0])
            person.token = token
            came = await person.ask("tools/list")
            self.seen.add("a refusal", f"{came.headers} {came.text}")

    # --- REST, and the rest

    async def _rest(self) -> None:
        inside = f"http://u:{CANARIES['userinfo']}@169.254.169.254/"
        secret_url = f"http://ann:{CANARIES['userinfo']}@127.0.0.1:9/mcp?key={CANARIES['query']}"
        good = {
            "name": "made",
            "url": f"http://127.0.0.1:9/mcp?key={CANARIES['query']}",
            "headers": {"X-Api-Key": CANARIES["header"]},
            "requiredRoles": ["guest"],
        }
        code = {"name": "code", "command": "true", "env": {"KEY": CANARIES["env"]}, "requiredRoles": ["guest"]}
        requests: list[tuple[str, str, str, Any]] = [
            ("ada", "POST", "/adapters", good),
            ("ada", "POST", "/adapters", good | {"name": "x", "url": secret_url}),
            ("ada", "POST", "/adapters", code),
            ("bob", "POST", "/adapters", code | {"name": "other"}),
            ("ada", "POST", "/adapters", good | {"name": "No Name", "env": CANARIES["env"]}),
            ("ada", "POST", "/adapters", good | {"name": "x", "url": f"ftp://u:{CANARIES['userinfo']}@h/"}),
            (
                "ada",
                "POST",
                "/adapters",
                good | {"name": "x", "url": inside},
            ),
            ("ada", "POST", "/adapters", good | {"name": "x", "headers": {"A": [CANARIES["header"]]}}),
            ("ada", "POST", "/adapters", good | {"name": "x", "headers": {"A": f"{CANARIES['header']}\r\nB: c"}}),
            ("ada", "PATCH", "/adapters/made", {"headers": {"X-Api-Key": None, "Y": CANARIES["header"]}}),
            ("ada", "PUT", "/adapters/made", good | {"isEnabled": CANARIES["body"]}),
            ("ada", "POST", "/adapters", CANARIES["body"]),
        ]
        requests += [(user, "GET", path, None) for user in ("ada", "bob") for path in _PAGES]
        for user, method, path, body in requests:
            await self._request(user, method, path, body)
        person = self._person("bob", VERSIONS[0])
        await person.shake_hands()
        came = await person.ask("tools/call", {"name": "made_x", "arguments": {}})
        self.seen.add("the error of made", came.text)
        for path in ("/readyz", "/livez", "/openapi.json", "/docs", "/redoc"):
            await self._request("bob", "GET", path, None)

    async def _request(self, user: str, method: str, path: str, body: Any) -> int:
        headers = {"Authorization": f"Bearer {self.tokens[user]}"}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        data = None if body is None else json.dumps(body)
        async with self.http.request(method, self.base + path, data=data, headers=headers) as answer:
            self.seen.add(f"{method} {path} of {user}", f"{answer.headers} {await answer.text()}")
            return answer.status

    async def _without_redis(self) -> None:
        await self._request("ada", "POST", "/adapters", {"name": "late", "url": "http://127.0.0.1:9/"})
        await self._request("bob", "GET", "/adapters", None)
        await self._request("bob", "GET", "/readyz", None)
        await self._command(("list",))

    async def _commands(self) -> None:
        url = f"http://ann:{CANARIES['userinfo']}@127.0.0.1:9/mcp?key={CANARIES['query']}"
        wrong, outside = f"ftp{url[4:]}", f"http://u:{CANARIES['userinfo']}@127.0.0.1:9/mcp"
        commands: list[tuple[str, ...]] = [("list", "--json"), ("show", "made"), ("show", "local", "--json")]
        commands += [("secret", "list"), ("add", "again", "--url", url)]
        commands += [("add", "wrong", "--url", wrong), ("list", "--gateway", outside)]
        fastmcp = str(Path(sys.executable).with_name("fastmcp"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._command, *commands)
            tasks.start_soon(self._command, ("check",))
            tasks.start_soon(self._run, [fastmcp, "inspect", str(ROOT / "server.py"), "--format", "mcp"], "inspect")

    async def _command(self, *commands: tuple[str, ...]) -> None:
        """All in one process, as most of the time goes into its start."""
        words = [["--log-level", "debug", *command] for command in commands]
        await self._run([sys.executable, "-c", _COMMANDS], " ".join(command[0] for command in commands), words)

    async def _run(self, command: list[str], name: str, words: list[list[str]] | None = None) -> None:
        def run() -> subprocess.CompletedProcess[str]:
            given = json.dumps(words)
            return subprocess.run(
                command, env=self.env, input=given, capture_output=True, text=True, timeout=90, check=False, cwd=ROOT
            )

        done = await anyio.to_thread.run_sync(run)
        self.seen.add(f"commands {name}", f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")

    # --- processes

    def _look_at_processes(self) -> None:
        for pid in _descendants(self.gateway.pid):
            with suppress(OSError):
                command = (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (Path("/proc") / str(pid) / "environ").read_bytes().replace(b"\0", b"\n").decode()
                self.seen.add("command lines", command)
                if pid != self.gateway.pid:
                    self.environments_of(command, environment)

    def environments_of(self, command: str, environment: str) -> None:
        known = self.seen.environments
        known[command] = known.get(command, "") + environment


def _argument() -> dict[str, str]:
    return {"text": CANARIES["argument"]}


_PAGES = ("/tools", *(f"/adapters{path}" for path in ("", "/made", "/made/status", "/made/logs", "/code", "/local")))


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        with suppress(OSError):
            for task in (Path("/proc") / str(each) / "task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


async def _tells_all(seen: Seen) -> web.Response:
    """A server that fails, and shows all that it was sent."""
    return web.Response(status=500, text=f"I failed. Headers: {dict(seen.headers)}, {seen.request.url}, {seen.body!r}")


async def _denies(seen: Seen) -> web.Response:
    challenge = {"WWW-Authenticate": f'Bearer error="invalid_token", error_description="{dict(seen.headers)}"'}
    return web.Response(status=401, text=f"not with {dict(seen.headers)}", headers=challenge)


async def _is_no_mcp(seen: Seen) -> web.Response:
    return web.Response(text=f"<html>{dict(seen.headers)} {seen.request.url}</html>", content_type="text/html")


def _with_secrets(url: str) -> dict[str, Any]:
    url = url.replace("http://", f"http://ann:{CANARIES['userinfo']}@") + f"?key={CANARIES['query']}"
    headers = {"X-Api-Key": CANARIES["header"], "X-Other": "${secret:key}"}
    return remote(url, headers=headers, timeouts=QUICK)


def _local(*words: str, **more: Any) -> dict[str, Any]:
    env = {"KEY": CANARIES["env"], **SILENT}
    return local(*words, env=env, **{"timeouts": QUICK, **more})


@asynccontextmanager
async def _servers() -> AsyncIterator[dict[str, dict[str, Any]]]:
    patient = {"timeouts": {"first_start": 60.0, "list": 60.0}}
    async with (
        http_server("everything.py", "http") as web_server,
        http_backend(**dict.fromkeys(("initialize", "GET", "server/discover"), _tells_all)) as broken,
        http_backend(**dict.fromkeys(("initialize", "GET", "server/discover"), _denies)) as denied,
        http_backend(**dict.fromkeys(("initialize", "GET", "server/discover"), _is_no_mcp)) as rubbish,
    ):
        yield {
            "local": _local("everything.py", required_roles=["guest"], isolation="shared", **patient),
            "telling": local("secretive.py", env={"TOKEN": "${secret:key}", **SILENT}, isolation="shared", **patient),
            "web": _with_secrets(web_server.url) | patient,
            "refused": _with_secrets("http://127.0.0.1:9/mcp"),
            "broken": _with_secrets(broken.url),
            "denied": _with_secrets(denied.url),
            "rubbish": _with_secrets(rubbish.url),
            "garbage": _local("hang.py", "garbage"),
            "dying": _local("hang.py", "die-in-call"),
            "hanging": _local("hang.py", "call-hang"),
            "missing": {"command": "no-such-program", "env": {"KEY": CANARIES["env"]}},
        }


async def play(folder: Path) -> Evidence:
    """The whole story."""
    seen = Evidence()
    audit = folder / "audit.jsonl"
    auth = {
        **{"tokens": "tokens.json", "issuer": ISSUER, "audience": AUDIENCE},
        **{"key": "${JWT_KEY}", "algorithm": "HS256"},
    }
    with redis_server() as redis:
        async with _servers() as servers:
            settings = {"store": redis.url, "audit": "on", "audit_file": str(audit), "auth": auth}
            toml = servers_toml(servers, allowed_networks=["127.0.0.0/8"], **settings)
            env = {"JWT_KEY": CANARIES["jwt key"], "APOLLOS_SECRET_KEY": CANARIES["secret"]}
            async with gateway_process(toml, "--log-level", "debug", env=env) as gateway:
                own = {"APOLLOS_SERVERS": str(gateway.path), "XDG_STATE_HOME": str(gateway.path.with_name("state"))}
                await Play(seen, redis, gateway, {**os.environ, **own, **env}).run()
                log = gateway.log
                seen.texts["the log, while it runs"] = log.read_text(errors="replace")
                process = gateway.process
                process.terminate()
                await process.wait()
                seen.texts["the log"] = log.read_text(errors="replace")
        seen.texts["the audit"] = audit.read_text()
    return seen
