"""Plain SVG: horizontal bars of medians with a line from the least to the most. Readable on light and dark pages."""

from xml.sax.saxutils import escape

WIDTH, LABEL, VALUE, BAR, GAP = 760, 230, 150, 18, 6

# Text and lines follow the page's scheme; bars are mid-tones that stand out on both.
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .title { font-weight: 600; }
  .small { font-size: 11px; fill: #59636e; }
  .ours { fill: #2f81f7; } .theirs { fill: #9198a1; }
  .spread { stroke: #1f2328; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9198a1; } .spread { stroke: #e6edf3; }
  }
"""


def comparison(result):
    speeds = result["tokens_per_s"]
    cases = list(next(iter(speeds.values())))
    groups = []
    for case in cases:
        bars = [(name, values[case], f"{values[case]['median']:,.0f}") for name, values in speeds.items()]
        for i, (name, value, text) in enumerate(bars):
            if name in result["ratio"]:
                bars[i] = (name, value, f"{text}  ({result['ratio'][name][case]['median']:.2f}x)")
        groups.append((f"{case}, tokens per second", bars))
    return svg(groups, foot(result, "In brackets: how many times as fast baton is, median of pairs."))


def contention(result):
    groups = []
    for load in result["loads"]:
        bars = [(name, kept[load], f"{kept[load]['median']:.0%}") for name, kept in result["kept"].items()]
        groups.append((f"share of the quiet decode rate kept beside {load}", bars))
    return svg(groups, foot(result, "Medians of pairs."))


def foot(result, note):
    """Lines below the bars."""
    return [note, f"{result['date']}, {result['threads']} threads, {result['machine']}"]


def svg(groups, foot):
    """`groups`: (title, [(label, spread, text)]); each group has its own scale."""
    out, y = [], 8
    scale_width = WIDTH - LABEL - VALUE
    for title, bars in groups:
        y += 20
        out.append(f'<text class="title" x="8" y="{y}">{escape(title)}</text>')
        y += 8
        most = max(value["max"] for _, value, _ in bars)
        place = lambda x: LABEL + scale_width * x / most
        for label, value, text in bars:
            kind = "ours" if label == "baton" else "theirs"
            middle = y + BAR / 2
            width = place(value["median"]) - LABEL
            out.append(f'<text x="{LABEL - 8}" y="{middle + 4.5}" text-anchor="end">{escape(label)}</text>')
            out.append(f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>')
            least, greatest = place(value["min"]), place(value["max"])
            out.append(
                f'<path class="spread" fill="none" d="M{least:.1f} {middle}H{greatest:.1f}'
                f'M{least:.1f} {middle - 4}v8M{greatest:.1f} {middle - 4}v8"/>'
            )
            out.append(f'<text x="{max(greatest, place(value["median"])) + 8:.1f}" y="{middle + 4.5}">{escape(text)}</text>')
            y += BAR + GAP
        y += 6
    for line in foot:
        y += 14
        out.append(f'<text class="small" x="8" y="{y}">{escape(line)}</text>')
    size = f'width="{WIDTH}" height="{y + 10}" viewBox="0 0 {WIDTH} {y + 10}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n' + "\n".join(out) + "\n</svg>\n"
