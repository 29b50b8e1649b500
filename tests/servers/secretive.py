"""A server that knows a secret from its environment, and what it was started with."""

import os
import sys

from fastmcp import FastMCP

mcp = FastMCP("secretive")


@mcp.tool
def secret() -> str:
    return os.environ.get("TOKEN", "none")


@mcp.tool
def said() -> str:
    print("my token is", os.environ.get("TOKEN"), file=sys.stderr, flush=True)
    return " ".join(sys.argv[1:])


if __name__ == "__main__":
    mcp.run(show_banner=False)
