"""One colour a granularity, the same in pages, charts and pictures: Okabe and Ito's palette, whose colours stay apart
for colour-blind readers (jfly.uni-koeln.de/color). A colour never stands alone: a word or a mark says the same.

site/stylesheets/extra.css has the same values as custom properties (`--weight`, `--n-m`, ...); a test compares them.
"""

# Yellow, the eighth colour, is hardly seen on white; darkened it is orange to a reader without red cones. So rank is
# black there and yellow on dark.
LIGHT = {
    "weight": "#0072b2",  # blue
    "N:M": "#56b4e9",  # sky blue
    "neuron": "#d55e00",  # vermilion
    "channel": "#e69f00",  # orange
    "head": "#009e73",  # bluish green
    "block": "#cc79a7",  # reddish purple
    "rank": "#000000",
}
DARK = LIGHT | {"rank": "#f0e442"}
OTHER = {"light": "#6b6b6b", "dark": "#a8a8a8"}  # what has no granularity, or is not the point of a chart


def colour(granularity: str, scheme: str = "light") -> str:
    """The colour of a granularity; any N:M pattern (`2:4`) has that of N:M, an unknown one the grey."""
    key = "N:M" if ":" in granularity else granularity
    return (DARK if scheme == "dark" else LIGHT).get(key, OTHER[scheme])


def variable(granularity: str) -> str:
    """Name of the custom property of a granularity: `--n-m`."""
    key = "N:M" if ":" in granularity else granularity
    return "--" + (key.lower().replace(":", "-") if key in LIGHT else "other-unit")
