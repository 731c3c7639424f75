"""``python -m pykernels bench``: speed, memory and start-up, measured so that the figures can be believed.

Every contender's answer is checked before it is timed; medians, ratios and spreads are quoted; losses are printed as
plainly as wins; a package that is not installed is named and skipped.
"""
