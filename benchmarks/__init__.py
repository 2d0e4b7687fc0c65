"""Measurements against other ways to do it, printed as ratios from one run; no tests, no promises."""
