"""The STARS algorithm: candidates in, verdicts out. It has no model and no queue.

A model drafts token ids: a `Draft`. Parsed and cut to the segment it is a `Candidate`. A candidate
that the acceptance test has judged is a `Draw` of the rollout, and in results an `Attempt`.
"""
