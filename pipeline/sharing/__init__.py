"""Sharing target caches: remotes, pushing, pulling, streaming and finding."""
