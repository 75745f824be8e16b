"""Fills the numbers of results/ into the pages and the scripts' headers, and draws the figures.

    python benchmarks/report.py

On a page, the lines between `<!-- name -->` and the next empty line are replaced; in a script, only
the line of its header that says what a run reaches.
"""

import re
import statistics
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ablations
import language
import matplotlib.pyplot as plt
import numpy as np
from run import CURVE_POINTS, MUJOCO, OFF_POLICY, PEERS, RESULTS, ROOT, digest, flags_of, read

OURS = ["reinforce", "reinforce_baseline", "a2c", "a3c", "trpo", "ppo", *OFF_POLICY]
ORDER = [name for script in OURS for name in (script, f"sb3_{script}")]  # each beside its peer
CLASSIC = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"]
GOAL = 5000  # training return on HalfCheetah-v4; who is first there?
ENOUGH = 5  # seeds; with fewer the bootstrap's interval is far too narrow
# (script, environment) → the best published final value that we know of, and its source.
PUBLISHED = {(row["script"], row["env_id"]): row for row in read(RESULTS / "published.csv")}
# Earlier code that gives the present numbers to the last digit: what has changed since is how often
# MuJoCo's warnings are shown, how smaller replay buffers are resumed (ddpg, td3), and the step along
# tiny gradients (trpo).
SAME = {
    "reinforce": ["7b031f3272f4"],
    "reinforce_baseline": ["5569f42c94ed"],
    "a2c": ["dd8733b7a1c6"],
    "trpo": ["0e601f02ef80", "218d5dfe109a"],
    "ppo": ["535aaa6f2a31"],
    "ddpg": ["e5d19e82fbe7", "d631e1f28e0a"],
    "td3": ["1475eb3e9dfc", "1463d6a24f05"],
}
# Of the scripts in OURS: Paul Tol's muted palette, which colour-blind readers can tell apart.
COLOURS = "#ddcc77 #88ccee #44aa99 #117733 #999933 #882255 #cc6677 #332288 #aa4499".split()


# ── Returns ───────────────────────────────────────────────────────────────────────────────────────
def cells() -> dict[tuple[str, str], list[dict[str, str]]]:
    """(script, environment) → its rows of 100 evaluations and the present flags, by the seeds."""
    found = {}
    for row in read(RESULTS / "runs.csv"):
        whole = "--eval-episodes 100 " in row["command"] + " "
        present = row["flags"] == flags_of(row["script"], row["env_id"])
        if whole and present and row["script"] in ORDER:
            found.setdefault((row["script"], row["env_id"]), []).append(row)
    for rows in found.values():
        rows.sort(key=lambda row: int(row["seed"]))
        different = {row["seed"] for row in rows}
        assert len(different) == len(rows), f"runs.csv has a row twice: {rows[0]['command']}"
    return found


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def mark(script: str, env_id: str, rows: list[dict[str, str]]) -> str:
    """✓ where the published value is below the bootstrap interval of our mean, ≈ in it, ✗ above.

    Nothing without such a value, or with fewer than ENOUGH seeds.
    """
    if not (best := PUBLISHED.get((script, env_id))) or len(rows) < ENOUGH:
        return ""
    numbers, best = column(rows, best["compared_with"]), float(best["value"])
    drawn = np.random.default_rng(0).choice(numbers, (10_000, len(numbers)))
    low, high = np.quantile(drawn.mean(1), (0.025, 0.975))
    if low < best <= high:  # all equal to it: no chance in that
        return "≈"
    return "✓" if statistics.mean(numbers) >= best else "✗"


def number(x: float) -> str:
    return f"{x:,.1f}" if abs(x) < 1000 and x != int(x) else f"{x:,.0f}"


def spread(numbers: list[float]) -> str:
    """Mean ± standard deviation; a single number has none."""
    mean = statistics.mean(numbers)
    if len(numbers) == 1:
        return number(mean)
    return f"{number(mean)} ± {statistics.stdev(numbers):,.{0 if abs(mean) >= 1000 else 1}f}"


def steps_of(rows: list[dict[str, str]]) -> int:
    """The steps that were asked for; whole rollouts have a few more."""
    return round(int(rows[0]["steps"]), -4)


def steps_label(step: float, _: int = 0) -> str:
    return f"{step / 1e6:g}M" if step >= 1e6 else f"{step / 1e3:g}k" if step else "0"


def seeds(rows: list[dict[str, str]]) -> str:
    return f"{len(rows)} seed{'s' * (len(rows) > 1)}"


def label(script: str) -> str:
    """ppo → ppo.py, sb3_ppo → SB3 PPO"""
    return f"SB3 {script[4:].upper()}" if script in PEERS else f"{script}.py"


def dagger(script: str, rows: list[dict[str, str]]) -> str:
    """† if the script's code has changed since a row was measured, in more than SAME says."""
    same = [digest(f"{script}.py"), *SAME.get(script, [])] if script not in PEERS else []
    return " †" if same and any(row["digest"] not in same for row in rows) else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(script: str, env_id: str, rows: list[dict[str, str]]) -> str:
    """The README's cell: the evaluated return; its steps if not 1M; few seeds, or a mark; †."""
    text, steps = spread(column(rows, "evaluation_return")), steps_label(steps_of(rows))
    told = [steps] * (steps != "1M") + [seeds(rows)] * (len(rows) < ENOUGH)
    text += f" ({', '.join(told)})" if told else ""
    return f"{text} {mark(script, env_id, rows)}".strip() + dagger(script, rows)


def long(script: str, env_id: str, rows: list[dict[str, str]]) -> str:
    """The cell of benchmarks.md."""
    lines = [f"**{spread(column(rows, 'evaluation_return'))}**"]
    lines.append(f"training {spread(column(rows, 'training_return'))}")
    lines.append(f"{seeds(rows)}, {steps_label(steps_of(rows))}{dagger(script, rows)}")
    if best := PUBLISHED.get((script, env_id)):
        source = ", ".join(filter(None, (best["source"], best["steps"])))
        compared = f"{mark(script, env_id, rows)} {number(float(best['value']))} {source}"
        lines.append(compared.strip())
    return "<br>".join(lines)


def returns(scripts: list[str], env_ids: list[str], cell: Callable, head: str = "") -> str:
    """Scripts × environments; empty if there are no rows."""
    found, rows = cells(), []
    for script in scripts:
        row = [cell(script, x, found[script, x]) if (script, x) in found else "-" for x in env_ids]
        if set(row) != {"-"}:
            rows.append([label(script), *row])
    return table([head, *env_ids], rows) if rows else ""


def codes() -> str:
    """The digests of the code that the rows were measured with; commits of rows without one."""
    found = {script: set() for script in ORDER}
    for (script, _), rows in cells().items():
        found[script].update(row["digest"] or row["commit"] for row in rows)
    text = "; ".join(f"{label(x)} {', '.join(sorted(found[x]))}" for x in ORDER if found[x])
    return textwrap.fill(f"{text}.", 118, break_on_hyphens=False)


def run_line(script: str) -> str:
    """The line of a script's header that says what a run with the defaults reaches."""
    if script in ("rlhf", "grpo"):
        default = script, "transformer", "--kl-coef 0.4"
        rows = [row for row in read(language.ROWS) if language.key_of(row) == default]
        reached = f"the judge's score rises from 0.8 to {spread(column(rows, 'judge'))}"
    else:
        rows = cells()[script, MUJOCO[0]]
        mean = spread(column(rows, "evaluation_return"))
        reached = f"evaluated {mean} after {steps_of(rows):,} steps"
    return f"    {reached} ({seeds(rows)}, see benchmarks.md)"


def better(ours: list[float], theirs: list[float]) -> float:
    """P(a random one of ours is higher than a random one of theirs), a draw as one half."""
    return statistics.mean((a > b) + (a == b) / 2 for a in ours for b in theirs)


def probabilities() -> str:
    """Rows × columns: `better` in per cent, mean over the environments that both have."""
    found = {}
    for (script, env_id), rows in cells().items():
        if env_id in MUJOCO and len(rows) > 1 and steps_of(rows) == 1_000_000:
            found.setdefault(script, {})[env_id] = column(rows, "evaluation_return")
    scripts = [script for script in ORDER if script in found]
    rows = [[label(script)] for script in scripts]
    for row, script in zip(rows, scripts):
        for other in scripts:
            both = found[script].keys() & found[other].keys()
            shares = [better(found[script][x], found[other][x]) for x in both]
            known = shares and script != other
            row.append(f"{100 * statistics.mean(shares):.0f}" if known else "")
    return table(["", *(label(script).removesuffix(".py") for script in scripts)], rows)


# ── Speed ─────────────────────────────────────────────────────────────────────────────────────────
SPEED = {  # part: the pairs of variants to compare
    "peers": [(x, peer) for peer in ("SB3", "SBX") for x in ("eager", "compile")],
    "torchrun": [(f"2 processes{x}", f"1 process{x}") for x in ("", ", compile")],
}


def speeds(part: str) -> dict[str, dict[str, list[float]]]:
    """script → variant → steps per second, in order of the turns."""
    found = {}
    for row in read(RESULTS / "speed.csv"):
        if (row["part"], row["quantity"]) == (part, "steps/s"):
            variants = found.setdefault(row["script"], {})
            variants.setdefault(row["variant"], []).append(float(row["value"]))
    return {script: found[script] for script in ORDER if script in found}


def speed_table(part: str) -> str:
    """Of each script the median of each variant, and the median and range of the turns' ratios."""
    variants, rows = sorted({x for pair in SPEED[part] for x in pair}), []
    for script, found in speeds(part).items():
        row = [label(script)]
        row += [f"{statistics.median(found[x]):,.0f}" if x in found else "-" for x in variants]
        for ours, theirs in SPEED[part]:
            x = sorted(a / b for a, b in zip(found.get(ours, []), found.get(theirs, [])))
            row.append(f"**{statistics.median(x):.2f}** ({x[0]:.2f}–{x[-1]:.2f})" if x else "-")
        rows.append(row)
    return table(["", *variants, *map(" / ".join, SPEED[part])], rows)


# ── Curves ────────────────────────────────────────────────────────────────────────────────────────
def points(script: str, env_id: str) -> list[np.ndarray]:
    """For each seed (points, 3): steps, seconds, and the mean training return in a hundredth."""
    runs = {row["seed"]: row for row in cells().get((script, env_id), [])}
    found = {}
    for row in read(RESULTS / "curves" / f"{script}__{env_id}.csv"):
        if run := runs.get(row["seed"]):
            step = float(row["step"])
            # Older curves have no seconds: all steps of the run then count as equally long.
            seconds = row.get("seconds") or step / float(run["steps"]) * float(run["seconds"])
            found.setdefault(row["seed"], []).append((step, float(seconds), float(row["return"])))
    longest = max(map(len, found.values()), default=0)
    assert longest <= CURVE_POINTS, f"{script} {env_id}: a curve twice"
    return [np.array(sorted(rows)) for rows in found.values()]


def on_the_way(script: str, env_id: str, rows: list[dict[str, str]]) -> str:
    """A cell: the training return on the way, of runs of 1,000,000 steps."""
    lines = []
    for step in (200_000, 300_000, 500_000):
        numbers = [run[run[:, 0] <= step][-1, 2] for run in points(script, env_id)]
        lines.append(f"{steps_label(step)}: {spread(numbers)}")
    return "<br>".join(lines) if steps_of(rows) >= 1_000_000 else "-"


def curves(script: str, env_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Steps (K,), seconds (K,), and returns (seeds, K), smoothed over 5 % of the steps."""
    found = points(script, env_id)
    if not found:
        return None
    end = max(x[-1, 0] for x in found)
    steps = np.arange(max(x[0, 0] for x in found), end + 1, end / 100)
    seconds = np.mean([np.interp(steps, x[:, 0], x[:, 1]) for x in found], 0)
    returns = [np.interp(steps, x[:, 0], x[:, 2]) for x in found]
    padded = np.pad(returns, ((0, 0), (2, 2)), "reflect")
    return steps, seconds, np.lib.stride_tricks.sliding_window_view(padded, 5, axis=1).mean(-1)


def draw(axis: plt.Axes, x: np.ndarray, y: np.ndarray, script: str) -> str:
    """A line in the script's colour, dashed for its peer; returns the colour."""
    colour = COLOURS[OURS.index(script.removeprefix("sb3_"))]
    axis.plot(x, y, "--" if script in PEERS else "-", color=colour, label=label(script))
    axis.spines[["top", "right"]].set_visible(False)
    return colour


def curves_figure(path: Path, panels: list[list[tuple[str, list[str]]]]) -> None:
    """A grid of panels (environment, scripts): mean of the seeds, and the range of all seeds."""
    size, shape = (10, 0.9 + 3.2 * len(panels)), (len(panels), len(panels[0]))
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    shown = {}
    for axis, (env_id, scripts) in zip(axes.flat, [panel for row in panels for panel in row]):
        for script in scripts:
            if not (found := curves(script, env_id)):
                continue
            steps, _, values = found
            colour = draw(axis, steps, values.mean(0), script)
            if script not in PEERS:
                band = values.min(0), values.max(0)
                axis.fill_between(steps, *band, color=colour, alpha=0.15, linewidth=0)
            if best := PUBLISHED.get((script, env_id)):
                place = {"clip_on": False, "transform": axis.get_yaxis_transform()}
                axis.plot(1.02, float(best["value"]), "<", color=colour, **place)
        shown |= dict(zip(*reversed(axis.get_legend_handles_labels())))
        kind = "off" if scripts[0] in OFF_POLICY else "on"
        axis.set_title(f"{env_id}, {kind}-policy", fontsize=10)
        axis.xaxis.set_major_locator(plt.MaxNLocator(4))
        axis.xaxis.set_major_formatter(steps_label)
        axis.margins(x=0)
    figure.supxlabel("environment steps", fontsize=10)
    figure.supylabel("training return, smoothed over 5 % of the steps", fontsize=10)
    shown["range of all seeds"] = plt.Rectangle((0, 0), 1, 1, color="grey", alpha=0.3)
    shown["best published"] = plt.Line2D([], [], color="grey", marker="<", linestyle="")
    figure.legend(shown.values(), shown, loc="outside upper center", ncols=min(len(shown), 6))
    figure.savefig(path, dpi=150)


def steps_and_seconds(env_id: str) -> list[tuple[float, float, str]]:
    """Draws mean training returns over steps and over time; (steps, minutes, script) to GOAL."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained", sharey=True)
    reached = []
    for script in OURS:
        if found := curves(script, env_id):
            steps, seconds, values = found
            draw(axes[0], steps, values.mean(0), script)
            draw(axes[1], seconds / 60, values.mean(0), script)
            if values.mean(0).max() >= GOAL:
                first = np.argmax(values.mean(0) >= GOAL)
                reached.append((steps[first], seconds[first] / 60, label(script)))
    steps, _, by_steps = min(reached)
    _, minutes, by_time = min(reached, key=lambda x: x[1])
    figure.suptitle(
        f"To a return of {GOAL:,} on {env_id}, {by_steps} needs the fewest steps\n"
        f"({steps_label(round(steps, -3))}), {by_time} the least time ({minutes:.1f} minutes)"
    )
    axes[0].set(xlabel="environment steps", ylabel="training return")
    axes[0].xaxis.set_major_formatter(steps_label)
    axes[1].set(xlabel="minutes of training", xscale="log")
    axes[1].xaxis.set_major_formatter("{x:g}")
    for axis in axes:
        axis.axhline(GOAL, color="grey", linewidth=0.8, linestyle=":")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(RESULTS / "steps_and_seconds.png", dpi=150)
    return reached


# ── Pages and headers ─────────────────────────────────────────────────────────────────────────────
WAY = "on the way: training return of the episodes that ended in the last 10,000 steps"
TABLES = {
    "evaluated": lambda: returns(OURS, MUJOCO, short),
    "returns": lambda: returns(ORDER, MUJOCO, long),
    "classic": lambda: returns(ORDER, CLASSIC, long),
    "codes": codes,
    "on_the_way": lambda: returns(OFF_POLICY, MUJOCO, on_the_way, WAY),
    "probabilities": probabilities,
    "ablations": ablations.table,
    "language": language.table,
}
TABLES |= {part: partial(speed_table, part) for part in SPEED}
PAGES = ["README.md", "benchmarks.md", "notes.md"]
PAGES += [f"{script}.py" for script in (*OURS, "rlhf", "grpo")]
RUN_LINE = r"(?m)^    (evaluated|the judge's score rises) .* \(\d+ seeds?, see benchmarks\.md\)$"


def replaced(pattern: str, new: str, text: str) -> str:
    assert len(re.findall(pattern, text)) == 1, f"there is no single place for: {new}"
    return re.sub(pattern, lambda match: new, text)


def filled(page: str) -> str:
    """The page's text with what results/ have now: a script's line, or the tables of a page."""
    text = (ROOT / page).read_text()
    if page.endswith(".py"):
        return replaced(RUN_LINE, run_line(page.removesuffix(".py")), text)
    for name in re.findall(r"(?m)^<!-- (\w+) -->$", text):
        text = replaced(rf"(?<=<!-- {name} -->\n)(.+\n)*", f"{TABLES[name]()}\n".lstrip(), text)
    return text


def main() -> None:
    off_policy = [script for script in ORDER if script.removeprefix("sb3_") in OFF_POLICY]
    kinds = [script for script in ORDER if script not in off_policy], off_policy
    mujoco = [[(env_id, scripts) for env_id in MUJOCO] for scripts in kinds]
    classic = [[(env_id, kinds[0]) for env_id in CLASSIC[:2]]]
    classic += [[(CLASSIC[2], scripts) for scripts in kinds]]
    curves_figure(RESULTS / "halfcheetah.png", [[(MUJOCO[0], scripts) for scripts in kinds]])
    curves_figure(RESULTS / "returns.png", mujoco)
    curves_figure(RESULTS / "classic_control.png", classic)
    steps_and_seconds(MUJOCO[0])
    language.figure(RESULTS / "language.png")
    for page in PAGES:
        (ROOT / page).write_text(filled(page))


if __name__ == "__main__":
    main()
