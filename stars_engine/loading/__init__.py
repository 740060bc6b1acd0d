"""Load transformers checkpoints from the hub, a directory, the package itself, or memory."""
