"""HOW one server is reached: identity in, session out.

This room holds one concern a module, each with the FastMCP middleware that adapts it. Read it in the order a call
flows: `identity` (on whose behalf) → `store` (may this identity use it?) → `pool` (a session for the length of the
call) → `backend` (the components of one server, and calls through the leased session). `client` opens a session over
one of the wires: `stdio`, `remote`, `inprocess`. `errors` and `resource` are the values all of them share.

Nothing here imports `composition/`.
"""
