"""The report: one HTML page that shows what ran, what came of it, and what the caches say. Drawn from records alone."""
