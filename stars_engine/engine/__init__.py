"""The public engine: prompts in, results out."""
