"""The REST control plane: servers are listed, made, changed and removed at `/adapters`, tools are shown at `/tools`.

`routes` is its door; each concern has a module.
"""
