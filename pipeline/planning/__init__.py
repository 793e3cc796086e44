"""The plan: what a teacher's pass will cost, measured on a few rows before it is run."""
