"""Image files: found, looked at once in parallel, remembered by identity, decoded when they are needed."""
