"""Host names to addresses, for names that any user may have chosen: in threads of their own.

The REST API comes in when a `url` is written, `endpoint` when it connects to such a one. A name server that never
answers holds a thread until the system gives up; the event loop's few threads, which everybody else's look-ups need,
are left alone.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

_THREADS = ThreadPoolExecutor(max_workers=8, thread_name_prefix="apollos-lookup")
"""Those that are busy are waited for; how long is for the caller's deadline to say."""


async def look_up(host: str, port: int, family: int = socket.AF_UNSPEC) -> list[tuple[Any, ...]]:
    """The addresses of a host, as `socket.getaddrinfo` gives them.

    Raises:
        OSError: there is none.
        UnicodeError: it is no name.
    """
    ask = partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, ask)
