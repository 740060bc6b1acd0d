"""Choose how many candidates each request of a step drafts.

The number changes speed, never text: candidates are verified in index order, and those after the
first accepted one are never used.
"""
