"""The functions behind plot.py, one for each kind of figure; `looks` has what they share."""
