"""The workbench beside the house: measures the gateway against direct calls and against FastMCP's own
proxies.

`uv run benchmarks/run.py` (or `python -m benchmarks`) is the way in. Nothing in the house imports this
package, and this package reaches the gateway only as its users do: through its command line, over HTTP and
pipes.

    __main__       the command line: what to measure, in which order
    measurements   what is measured: calls, listings, idle servers, start-up
    fronts         how each variant (direct, gateway, create_proxy, shared) is started for a set of backends
    processes      child processes: cores, deadlines, CPU time, memory
    driver         the load, in a process of its own; `sessions` and `wires` are its MCP and its bytes
    http_backend, stdio_backend   the cheap servers at the far end; `answers` is what both say
    fastmcp_front  FastMCP's own proxies, as a process
    report         tables, ratios, and which targets were met
"""
