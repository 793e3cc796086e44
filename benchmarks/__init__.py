"""Benchmarks: programs that print their rows, and RESULTS.md, which says what was measured, when and on what."""
