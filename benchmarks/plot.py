"""Learning curves of your own runs in one picture.

    python benchmarks/plot.py runs/Hopper-v4__ppo__1__... runs/Hopper-v4__ppo__2__... --out ppo.png
    python benchmarks/plot.py runs/*            # everything that you have; writes curves.png

One panel for each environment, one colour for each script: the mean over its runs, as far as each
goes, and their range as a band. With --each, every run has a colour of its own.
"""

import argparse
import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def curve(folder: Path, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the mean return of the episodes that ended in the share of the run before each."""
    with open(folder / "episodes.csv") as file:
        rows = [(float(x["step"]), float(x["episode_return"])) for x in csv.DictReader(file)]
    steps, returns = np.array(rows).T  # several environments may end episodes at the same step
    ends, span = np.unique(steps), share * steps.max()
    return ends, np.array([returns[(steps > x - span) & (steps <= x)].mean() for x in ends])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--each", action="store_true", help="a colour for each run")
    parser.add_argument("--smooth", type=float, default=0.05, help="share of the run to average")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    options = parser.parse_args()
    panels = {}  # env_id → label → curves
    for folder in filter(lambda x: (x / "episodes.csv").exists(), options.runs):
        content = json.loads((folder / "args.json").read_text())
        name = folder.name if options.each else f"{content['script']}.py"
        groups = panels.setdefault(content["args"]["env_id"], {})
        groups.setdefault(name, []).append(curve(folder, options.smooth))
    if not panels:
        parser.error("none of these folders has an episodes.csv: no episode has ended yet")
    size = (0.5 + 5 * len(panels), 4.2)
    _, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axis, (env_id, groups) in zip(axes[0], panels.items()):
        for name, curves in groups.items():
            grid = np.linspace(max(x[0] for x, _ in curves), max(x[-1] for x, _ in curves), 200)
            values = np.array([np.interp(grid, *x, right=np.nan) for x in curves])
            (line,) = axis.plot(grid, np.nanmean(values, 0), label=f"{name} ({len(curves)} runs)")
            low, high = np.nanmin(values, 0), np.nanmax(values, 0)
            axis.fill_between(grid, low, high, color=line.get_color(), alpha=0.2)
        axis.set(title=env_id, xlabel="environment steps")
        axis.set_ylabel(f"training return, mean over {options.smooth:.0%} of the run")
        axis.legend(title="line: mean, band: range of all runs", fontsize="small")
    plt.savefig(options.out, dpi=150)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
