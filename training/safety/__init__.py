"""Rewards of a second axis: toxicity of continuations, and harmlessness of answers."""
