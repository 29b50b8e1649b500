"""Speaks raw JSON lines: answers each request with its own params, and a few methods with something of its own."""

import json
import os
import signal
import sys
from pathlib import Path


def answer(method: str, params: object) -> object:
    if method == "environment":
        return dict(os.environ)
    if method == "where":
        return {"pid": os.getpid(), "cwd": str(Path.cwd()), "args": sys.argv[1:]}
    if method == "say":
        print(params["text"], file=sys.stderr, flush=True)
    if method == "exit":
        sys.exit(params["code"])
    if method == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if method == "close stdout":
        os.close(1)
        signal.pause()
    return params


for line in sys.stdin:
    message = json.loads(line)
    result = answer(message["method"], message.get("params"))
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
