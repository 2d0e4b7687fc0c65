"""Measurements against other ways to do the same, printed as ratios from one run; no tests, no promises."""
