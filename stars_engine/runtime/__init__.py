"""One thread that owns the models, and everything between it and its callers."""
