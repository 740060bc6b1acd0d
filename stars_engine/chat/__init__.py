"""Prompts of every form to token ids, and to what the reward model sees."""
