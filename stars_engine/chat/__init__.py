"""Convert prompts of every form to token ids, and to the prompt that the reward model reads."""
