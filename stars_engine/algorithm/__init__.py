"""The STARS algorithm: candidates in, verdicts out. It has no model and no queue."""
