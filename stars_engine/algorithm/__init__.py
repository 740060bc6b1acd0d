"""The STARS algorithm: drafts in, verdicts out. No model, no queue."""
