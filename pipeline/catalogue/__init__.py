"""The catalogue: static pages of the caches of a remote or a workspace."""
