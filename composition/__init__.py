"""WHAT is offered: configuration in, mounts out.

Read it in this order: `settings` and `servers_file` (configuration to resources) → `registry` (resources to mounts)
→ `gateway` (the composition root, which owns every lifetime). This room imports `providers/`, never the other way.
"""
