"""The commands: one module for each, in the order of the pipeline."""
