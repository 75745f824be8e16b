"""Draws docs/numbers/*.svg: each command of docs/numbers.md is run once, and its columns are drawn.

    pip install '.[benchmarks]' && python docs/plots.py

Takes some minutes on one core. The runs are kept in runs/plots; delete that folder to run them anew.
"""

import csv
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
# Each figure: the columns to draw, the bounds of the y axis, and a dotted line.
FIGURES = {
    "explained_variance": (["explained_variance"], (-0.6, 1), 0),
    "entropy": (["entropy"], None, 0),
    "sigma": (["entropy"], None, None),
    "approx_kl": (["approx_kl"], "log", 0.05),
    "grpo": (["score", "clipped_surrogate"], None, 0),
    "q_value": (["q_value"], None, 0),
    "return": (["episode_return"], None, 0),
}
FIGURE = re.compile(r"!\[.*\]\(numbers/(\w+)\.svg\)\n\n((?:    .*\n)+)")
plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 9}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}


def run(command: str) -> Path:
    """The folder of the command's run, which is started if there is none that has finished."""
    words = command.split()[1:]
    folder = ROOT / "runs/plots" / re.sub(r"\W+", "-", " ".join(words))
    if not any(folder.glob("runs/*/summary.json")):
        print(command)
        folder.mkdir(parents=True, exist_ok=True)
        words[0] = str(ROOT / words[0])
        subprocess.run([sys.executable, "-W", "ignore", *words], cwd=folder, check=True)
    return next(folder.glob("runs/*/summary.json")).parent


def column(folder: Path, name: str) -> tuple[list, list]:
    """Steps, and the mean of the rows of each step: several episodes may end at the same step."""
    table = "episodes" if name == "episode_return" else "updates"
    rows: dict[float, list[float]] = {}
    with open(folder / f"{table}.csv") as file:
        for row in csv.DictReader(file):
            rows.setdefault(float(row["step"]), []).append(float(row[name]))
    return [*rows], [sum(x) / len(x) for x in rows.values()]


def draw(figure: str, commands: list[str]) -> None:
    """A line for each command and column; its label is the command's comment."""
    columns, scale, level = FIGURES[figure]
    _, axis = plt.subplots(figsize=(5.4, 2.5), layout="constrained")
    for command, _, label in (line.partition("  # ") for line in commands):
        for name in columns:
            axis.plot(*column(run(command), name), label=label if len(columns) == 1 else name)
    if level is not None:
        axis.axhline(level, color="black", linestyle=":", linewidth=1)
    if scale == "log":
        axis.set_yscale("log")
    else:
        axis.set_ylim(scale)
    axis.set_xlabel("responses" if figure == "grpo" else "steps")
    axis.set_ylabel(columns[0] if len(columns) == 1 else "")
    axis.legend(frameon=False)
    path = ROOT / f"docs/numbers/{figure}.svg"
    path.parent.mkdir(exist_ok=True)
    plt.savefig(path, metadata={"Date": None})
    plt.close()


if __name__ == "__main__":
    text = (ROOT / "docs/numbers.md").read_text().replace("\\\n      ", "")  # joins lines
    for figure, lines in FIGURE.findall(text):
        draw(figure, [line.strip() for line in lines.splitlines()])
