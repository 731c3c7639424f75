"""``python -m pykernels bench``: measures speed, memory and start-up so that one can believe the figures.

The benches check every contender's answer before they time it. They print medians, ratios and spreads, and losses as
plainly as wins. They name a package that is not installed, and skip it.
"""
