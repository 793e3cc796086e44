"""Imported teachers: weights, programs, estimators and files of outputs that were made somewhere else."""
