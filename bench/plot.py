"""Plots as SVG, from numbers alone: horizontal bars, and lines; the scales of times are logarithmic."""

import math
from xml.sax.saxutils import escape

COLOURS = {"light": ("#2266aa", "#bb4411", "#117744"), "dark": ("#66aaee", "#ee8855", "#55bb88")}
LINE_HEIGHT = 16


def _colours(name):
    return "".join(
        f"text.c{number},rect.c{number}{{fill:{colour}}}polyline.c{number}{{stroke:{colour}}}"
        for number, colour in enumerate(COLOURS[name])
    )


# A label has an edge in the colour of the page, lest a line of the grid runs through it.
STYLE = (
    "<style>text{font:13px sans-serif;fill:#222}.t{font-weight:bold}.g{stroke:#ccc}rect{fill:#999}"
    f".v{{paint-order:stroke;stroke:#fff;stroke-width:4px}}{_colours('light')}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.g{stroke:#555}"
    f".v{{stroke:#0d1117}}{_colours('dark')}}}</style>"
)


def bars(title, values):
    """A bar each for the values, a dict of names to milliseconds; the first is what the others are compared with."""
    left, width, height = 230, 460, 22
    low = math.floor(math.log10(min(values.values())))
    high = math.log10(max(values.values())) + 0.05
    first = next(iter(values.values()))

    def x(value):
        return left + width * (math.log10(value) - low) / (high - low)

    body = [
        f'<line class="g" x1="{x(10**n):.0f}" x2="{x(10**n):.0f}" y1="34" y2="{40 + height * len(values)}"/>'
        f'<text x="{x(10**n):.0f}" y="{56 + height * len(values)}" text-anchor="middle">{10**n:g} ms</text>'
        for n in range(low, math.ceil(high))
        if n <= high
    ]
    for number, (name, value) in enumerate(values.items()):
        y, own = 38 + height * number, ' class="c0"'
        body.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{left}" y="{y}" width="{x(value) - left:.0f}" height="{height - 6}"'
            f"{own if name.startswith('plash') else ''}/>"
            f'<text class="v" x="{x(value) + 6:.0f}" y="{y + 13}">{value / first:.1f}</text>'
        )
    return _svg(title, left + width + 60, 66 + height * len(values), body)


def lines(title, label, series):
    """A line each for the series, a dict of names to lists of pairs: a number of what label says, and milliseconds."""
    left, top, width, height = 70, 40, 520, 280
    points = [point for line in series.values() for point in line]
    most = max(number for number, _ in points)
    low = math.floor(math.log10(min(value for _, value in points)))
    high = math.ceil(math.log10(max(value for _, value in points)))

    def place(number, value):
        return left + width * number / most, top + height * (high - math.log10(value)) / (
            high - low
        )

    body = []
    for power in range(low, high + 1):
        _, y = place(0, 10**power)
        body.append(
            f'<line class="g" x1="{left}" x2="{left + width}" y1="{y:.0f}" y2="{y:.0f}"/>'
            f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{10**power:g} ms</text>'
        )
    for number in sorted({number for number, _ in points}):
        x, _ = place(number, 10**low)
        if number == 1 or number >= most / 12:
            body.append(
                f'<text x="{x:.0f}" y="{top + height + 18}" text-anchor="middle">{number}</text>'
            )
    colours = {name: number for number, name in enumerate(series)}
    below = 0.0  # the lowest label so far
    for name, line in sorted(series.items(), key=lambda each: -each[1][-1][1]):
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in line)
        x, y = place(*line[-1])
        y = below = max(y, below + LINE_HEIGHT)
        body.append(
            f'<polyline class="c{colours[name]}" points="{path}" fill="none" stroke-width="2"/>'
            f'<text class="v c{colours[name]}" x="{x + 6:.0f}" y="{y + 4:.0f}">{escape(name)}</text>'
        )
    body.append(
        f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">{escape(label)}</text>'
    )
    return _svg(title, left + width + 110, top + height + 50, body)


def _svg(title, width, height, body):
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'{STYLE}\n<text class="t" x="12" y="20">{escape(title)}</text>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )
