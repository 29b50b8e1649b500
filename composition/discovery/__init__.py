"""Servers that somebody else describes: catalogs, registries and clients' own configurations, and how a description
becomes a resource of ours. Everything read here was written by strangers: it is checked, bounded, and never run.
"""
