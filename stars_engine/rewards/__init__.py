"""Reward models: prompts and whole completions in, one number each out."""
