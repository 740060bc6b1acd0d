"""Thresholds from pilot answers, and how far a reward can be trusted on unfinished text."""
