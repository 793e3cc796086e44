"""Many samples in few large files: Parquet and Arrow tables, and tars, read by block in bounded memory."""
