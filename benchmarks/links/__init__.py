"""Slow links on one machine: network namespaces joined by rate-limited virtual cables (needs root, `ip` and `tc`)."""
