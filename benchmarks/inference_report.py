"""python benchmarks/inference_report.py: README table and `docs/inference.png`, of what `inference.py` found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from facts import RESULTS
from inference import EAGER

from svd_hub.training.saving import write_text

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- inference -->\n", "<!-- /inference -->"


def table(result: dict[str, Any]) -> str:
    """Return the ratios to eager as Markdown, with date and machine."""
    shapes = list(result["shapes"])
    ways = sorted(result["shapes"][shapes[0]], key=lambda way: -result["shapes"][shapes[0]][way].get("ratio", 99.0))
    lines = [f"| way | {' | '.join(shapes)} | difference |", "|---" * (len(shapes) + 2) + "|"]
    for way in ways:
        found = [result["shapes"][shape][way] for shape in shapes]
        cells = [f"{one['ratio']:.2f}" if "ratio" in one else "not here" for one in found]
        worst = [one["difference"] for one in found if "difference" in one]
        lines.append(f"| {way} | {' | '.join(cells)} | {f'{max(worst):.0e}' if worst else '-'} |")
    base = ", ".join(f"{result['shapes'][shape][EAGER]['process_s'] * 1e3:.0f}" for shape in shapes)
    told = machine(result["machine"])
    rounds = result["shapes"][shapes[0]][EAGER]["rounds"]
    how = f"Eager fp32 takes {base} ms of processor time; medians of {rounds} rounds in turn. {told}."
    return "\n".join([*lines, "", how, ""])


def machine(facts: dict[str, Any]) -> str:
    """Return where and when, in a line."""
    bits = [flag for flag in ("avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if flag in facts["flags"]]
    threads = "one thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    return ", ".join([facts["date"], threads, f"torch {facts['torch']}", f"processor with {', '.join(bits)}"])


def picture(result: dict[str, Any], file: Path) -> None:
    """Draw the ratios, a group of bars for each shape."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shapes = list(result["shapes"])
    ways = [way for way in result["shapes"][shapes[0]] if "ratio" in result["shapes"][shapes[0]][way]]
    figure, axes = plt.subplots(1, len(shapes), figsize=(11, 0.34 * len(ways) + 1.2), sharey=True, layout="constrained")
    for ax, shape in zip(axes, shapes, strict=True):
        ratios = [result["shapes"][shape][way]["ratio"] for way in ways]
        bars = ax.barh(ways, ratios, color=["0.6" if way == EAGER else "#2b6ca3" for way in ways])
        ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        ax.set(title=shape, xlim=(0, 1.18 * max(ratios)))
        ax.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.supxlabel(f"processor time, ratio to {EAGER}: less is faster", fontsize=9)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Write both."""
    result = json.loads((RESULTS / "inference.json").read_text())
    readme = (ROOT / "README.md").read_text()
    head, rest = readme.split(BEGIN)
    write_text(ROOT / "README.md", head + BEGIN + table(result) + END + rest.split(END, 1)[1])
    picture(result, ROOT / "docs" / "inference.png")


if __name__ == "__main__":
    main()
