"""Calibrate thresholds on pilot answers, and measure how well a reward judges unfinished text."""
