"""Fills the tables of benchmarks.md and README.md from results/, and draws the figures there.

    python benchmarks/report.py

A table stands between the markers `<!-- name -->` and `<!-- /name -->`, each on a line of its own.
Which page has which markers, PAGES says, at the end of this file.
"""

import re
import statistics
import textwrap
from pathlib import Path

import ablations
import language
import matplotlib.pyplot as plt
import numpy as np
from run import PEERS, RESULTS, ROOT, flags_of, read

OURS = ["reinforce", "reinforce_baseline", "a2c", "a3c", "trpo", "ppo", "ddpg", "td3", "sac"]
ORDER = [name for script in OURS for name in (script, f"sb3_{script}")]  # each beside its peer
OFF_POLICY = ["ddpg", "td3", "sac"]
MUJOCO = ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"]
CLASSIC = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"]

ENOUGH = 5  # seeds; of fewer, the bootstrap's interval is no more than their range
PUBLISHED = RESULTS / "published.csv"
EVAL_EPISODES = 100  # of each run that the tables show


# ── Returns ───────────────────────────────────────────────────────────────────────────────────────


def cells() -> dict[tuple[str, str], list[dict[str, str]]]:
    """(script, environment) → its rows in order of the seeds, those with the present flags."""
    found = {}
    for row in read(RESULTS / "runs.csv"):
        flags = flags_of(row["script"], row["env_id"])
        whole = f"--eval-episodes {EVAL_EPISODES} " in row["command"] + " "
        if whole and row["flags"] == flags and row["script"] in ORDER:
            found.setdefault((row["script"], row["env_id"]), []).append(row)
    for rows in found.values():
        rows.sort(key=lambda row: int(row["seed"]))
        seeds = [row["seed"] for row in rows]
        assert len(set(seeds)) == len(seeds), f"runs.csv has a row twice: {rows[0]['command']}"
    return found


def published() -> dict[tuple[str, str], dict[str, str]]:
    """(script, environment) → the best published final value that we know of, and its source."""
    return {(row["script"], row["env_id"]): row for row in read(PUBLISHED)}


def interval(numbers: list[float], draws: int = 10_000) -> tuple[float, float]:
    """The middle 95 % of the means of samples drawn with replacement."""
    drawn = np.random.default_rng(0).choice(numbers, (draws, len(numbers)))
    return tuple(np.quantile(drawn.mean(1), (0.025, 0.975)))


def mark(script: str, env_id: str, rows: list[dict[str, str]]) -> str:
    """✓ if our mean reaches the published value, else ✗; ≈ if the value lies in its interval."""
    best = float(published()[script, env_id]["value"])
    numbers = [float(row[published()[script, env_id]["compared_with"]]) for row in rows]
    if len(numbers) >= ENOUGH:
        low, high = interval(numbers)
        if low < best <= high:  # all equal to it: no chance in that
            return "≈"
    return "✓" if statistics.mean(numbers) >= best else "✗"


def number(x: float) -> str:
    return f"{x:,.1f}" if abs(x) < 1000 and x != int(x) else f"{x:,.0f}"


def spread(rows: list[dict[str, str]], name: str, bold: str = "") -> str:
    """Mean ± standard deviation; a single number has none."""
    numbers = [float(row[name]) for row in rows]
    mean = statistics.mean(numbers)
    text = f"{bold}{number(mean)}{bold}"
    if len(numbers) > 1:
        text += f" ± {statistics.stdev(numbers):,.{0 if abs(mean) >= 1000 else 1}f}"
    return text


def steps_label(step: float, _: int = 0) -> str:
    return f"{step / 1e6:g}M" if step >= 1e6 else f"{step / 1e3:g}k" if step else "0"


def label(script: str) -> str:
    """ppo → ppo.py, sb3_ppo → SB3 PPO"""
    return f"SB3 {script[4:].upper()}" if script in PEERS else f"{script}.py"


def cell(script: str, env_id: str, rows: list[dict[str, str]]) -> str:
    if not rows:
        return "-"
    steps = round(int(rows[0]["steps"]), -4)  # of whole rollouts: a few more than were asked for
    seeds = f"{len(rows)} seed{'s' * (len(rows) > 1)}, {steps_label(steps)}"
    lines = [spread(rows, "training_return", "**")]
    lines += [f"evaluated {spread(rows, 'evaluation_return')}", seeds]
    if best := published().get((script, env_id)):
        source = ", ".join(filter(None, (best["source"], best["steps"])))
        lines.append(f"{mark(script, env_id, rows)} {number(float(best['value']))} {source}")
    return "<br>".join(lines)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def returns(env_ids: list[str]) -> str:
    """Scripts × environments."""
    found, rows = cells(), []
    for script in ORDER:
        texts = [cell(script, env_id, found.get((script, env_id), [])) for env_id in env_ids]
        rows += [[label(script), *texts]] * any(text != "-" for text in texts)
    return table(["", *env_ids], rows)


def commits() -> str:
    """The commits of the scripts that the rows were measured at."""
    found = {}
    for (script, _), rows in cells().items():
        found.setdefault(script, set()).update(row["commit"] for row in rows)
    texts = [f"{label(x)} {', '.join(sorted(found[x]))}" for x in ORDER if x in found]
    return textwrap.fill("; ".join(texts) + ".", 118, break_on_hyphens=False)


# ── Speed ─────────────────────────────────────────────────────────────────────────────────────────


def speeds(part: str, quantity: str = "steps/s") -> dict[str, dict[str, list[float]]]:
    """script → variant → the measurements, in order of the turns."""
    found = {}
    for row in read(RESULTS / "speed.csv"):
        if (row["part"], row["quantity"]) == (part, quantity):
            variants = found.setdefault(row["script"], {})
            variants.setdefault(row["variant"], []).append(float(row["value"]))
    return {script: found[script] for script in sorted(found, key=([""] + ORDER).index)}


def rounded(x: float) -> str:
    return f"{x:,.0f}" if x >= 10 else f"{x:.1f}"


def ratio(ours: list[float], theirs: list[float]) -> str:
    """The median of the turns' ratios, and their range."""
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    middle, low, high = statistics.median(ratios), ratios[0], ratios[-1]
    return f"**{middle:.2f}**" + f" ({low:.2f}–{high:.2f})" * (len(ratios) > 1)


def speed_table(part: str, columns: dict[str, str], ratios: dict[str, tuple[str, str]]) -> str:
    """A row for each script: the median of each variant, then the ratios of two.

    Args:
        columns: heading → variant
        ratios: heading → (variant, the variant that it is compared with)
    """
    found = speeds(part)
    if not found:
        return "Not measured yet."
    columns = {x: name for x, name in columns.items() if any(name in y for y in found.values())}
    ratios = {x: y for x, y in ratios.items() if {*y} <= {*columns.values()}}
    rows = []
    for script, variants in found.items():
        numbers = (variants.get(name) for name in columns.values())
        texts = [rounded(statistics.median(x)) if x else "-" for x in numbers]
        for pair in ratios.values():
            known = all(name in variants for name in pair)
            texts.append(ratio(*(variants[name] for name in pair)) if known else "-")
        rows.append([label(script), *texts])
    return table(["", *columns, *ratios], rows)


def peers() -> str:
    columns = {"eager": "eager", "`--compile`": "compile", "SB3": "SB3", "SBX": "SBX"}
    ratios = {"eager / SB3": ("eager", "SB3"), "`--compile` / SB3": ("compile", "SB3")}
    ratios |= {"eager / SBX": ("eager", "SBX"), "`--compile` / SBX": ("compile", "SBX")}
    return speed_table("peers", columns, ratios)


def against() -> str:
    names = "eager", "eager then", "compile", "compile then"
    ratios = {"eager: now / then": names[:2], "compile: now / then": names[2:]}
    return speed_table("against", {name: name for name in names}, ratios)


def scaling(part: str, unit: str) -> str:
    """One and two of something, a column for each script."""
    found, rows = speeds(part), []
    if not found:
        return "Not measured yet."
    names = f"1 {unit}", f"2 {unit}{'es' if unit == 'process' else 's'}"
    for name in names:
        rows.append([name, *(rounded(statistics.median(x[name])) for x in found.values())])
    one, two = ([x[name] for x in found.values()] for name in names)
    rows.append(["ratio", *(ratio(y, x) for x, y in zip(one, two))])
    return table(["", *found], rows)


def start() -> str:
    """Seconds until the first step + from there until the first update is done."""
    first, update = (speeds("start", f"until the first {x}") for x in ("step", "update"))
    rows = []
    for variant, name in ("eager", "eager"), ("compile", "`--compile`"):
        pairs = ((first[x].get(variant), update[x].get(variant)) for x in first)
        sums = (
            " + ".join(f"{statistics.median(y):.1f}" for y in x) if x[0] else "-" for x in pairs
        )
        rows.append([name, *sums])
    return table(["", *first], rows)


# ── Figures ───────────────────────────────────────────────────────────────────────────────────────


def curves(script: str, env_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (K,) and each seed's training return (seeds, K), smoothed over 5 % of the steps."""
    shown, found = {row["seed"] for row in cells().get((script, env_id), [])}, {}
    for row in read(RESULTS / "curves" / f"{script}__{env_id}.csv"):
        if row["seed"] in shown:
            found.setdefault(row["seed"], {})[int(row["step"])] = float(row["return"])
    if not found:
        return np.empty(0), np.empty((0, 0))
    end = max(max(points) for points in found.values())
    steps = np.arange(max(min(points) for points in found.values()), end + 1, end / 100)
    rows = []
    for points in found.values():
        x, y = np.array(sorted(points.items())).T
        near = [y[np.abs(x - step) <= end / 40] for step in steps]
        rows.append([y.mean() if len(y) > 1 else z for y, z in zip(near, np.interp(steps, x, y))])
    return steps, np.array(rows)


def curves_figure(path: Path, panels: list[list[tuple[str, list[str]]]]) -> None:
    """A grid of panels (environment, scripts): mean of the seeds, and the range of all seeds."""
    plt.rcParams["font.size"] = 10
    size = (10, 0.9 + 3.2 * len(panels))
    grid = dict(figsize=size, layout="constrained", squeeze=False)
    figure, axes = plt.subplots(len(panels), len(panels[0]), **grid)
    handles = {}
    for axis, (env_id, scripts) in zip(axes.flat, sum(panels, [])):
        for script in scripts:
            steps, values = curves(script, env_id)
            if not len(steps):
                continue
            peer = script in PEERS
            colour = plt.get_cmap("tab10")(OURS.index(script.removeprefix("sb3_")))
            style = dict(color=colour, linewidth=1.8, linestyle="--" if peer else "-")
            (handles[label(script)],) = axis.plot(steps, values.mean(0), **style)
            if not peer:
                band = values.min(0), values.max(0)
                axis.fill_between(steps, *band, color=colour, alpha=0.15, linewidth=0)
            if best := published().get((script, env_id)):
                place = dict(color=colour, clip_on=False, transform=axis.get_yaxis_transform())
                axis.plot(1.02, float(best["value"]), marker="<", markersize=6, **place)
        kind = "off-policy" if scripts[0].removeprefix("sb3_") in OFF_POLICY else "on-policy"
        axis.set_title(f"{env_id}, {kind}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(plt.MaxNLocator(4))
        axis.xaxis.set_major_formatter(steps_label)
        axis.margins(x=0)
    figure.supxlabel("environment steps", fontsize=10)
    figure.supylabel("training return, smoothed over 5 % of the steps", fontsize=10)
    names = sorted(handles, key=[label(x) for x in ORDER].index)
    marks = [plt.Rectangle((0, 0), 1, 1, color="grey", alpha=0.3)]
    marks.append(plt.Line2D([], [], color="grey", marker="<", linestyle=""))
    names += ["range of all seeds", "best published"]
    shown = [handles.get(name) or marks.pop(0) for name in names]
    figure.legend(shown, names, loc="outside upper center", ncols=min(len(names), 6), fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def speed_figure(path: Path) -> None:
    """Bars: medians of steps per second."""
    found = speeds("peers")
    variants = {"SB3": "#b0b6bd", "SBX": "#6d747c", "eager": "#6fa8dc", "compile": "#1c4587"}
    variants = {x: y for x, y in variants.items() if any(x in z for z in found.values())}
    names = {"eager": "ours", "compile": "ours, --compile"}
    figure, axes = plt.subplots(2, 1, figsize=(12, 7), layout="constrained")
    for axis, off_policy in zip(axes, (False, True)):
        scripts = [x for x in found if (x in OFF_POLICY) == off_policy]
        for place, script in enumerate(scripts):
            shown = [x for x in variants if x in found[script]]
            for shift, variant in enumerate(shown):
                height = statistics.median(found[script][variant])
                x = place + 0.21 * (shift - (len(shown) - 1) / 2)
                bar = axis.bar(x, height, 0.2, color=variants[variant])
                axis.bar_label(bar, [rounded(height)], fontsize=8, padding=1)
        axis.set_xticks(range(len(scripts)), [label(x) for x in scripts])
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylabel("steps per second")
        kind = "off-policy, one update a step" if off_policy else "on-policy"
        axis.set_title(f"HalfCheetah-v4, one CPU thread, {kind}", fontsize=10)
    bars = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in variants.values()]
    figure.legend(
        bars, [names.get(x, x) for x in variants], loc="outside upper center", ncols=4, fontsize=10
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


# ── Pages ─────────────────────────────────────────────────────────────────────────────────────────

TABLES = {
    "returns": lambda: returns(MUJOCO),
    "classic": lambda: returns(CLASSIC),
    "commits": commits,
    "ablations": ablations.table,
    "language": language.table,
    "peers": peers,
    "against": against,
    "torchrun": lambda: scaling("torchrun", "process"),
    "threads": lambda: scaling("threads", "thread"),
    "start": start,
}
PAGES = {"README.md": ["returns"], "notes.md": ["against", "threads", "start"]}
PAGES["benchmarks.md"] = [name for name in TABLES if name not in PAGES["notes.md"]]


def fill(text: str, name: str, content: str) -> str:
    """Puts the content between <!-- name --> and <!-- /name -->."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    assert len(re.findall(pattern, text, re.S)) == 1, f"there is no single place for {name}"
    return re.sub(pattern, lambda match: match[1] + content + "\n" + match[2], text, flags=re.S)


def main() -> None:
    off_policy = [script for script in ORDER if script.removeprefix("sb3_") in OFF_POLICY]
    on_policy = [script for script in ORDER if script not in off_policy]
    kinds = on_policy, off_policy
    curves_figure(RESULTS / "halfcheetah.png", [[(MUJOCO[0], scripts) for scripts in kinds]])
    mujoco = [[(env_id, scripts) for env_id in MUJOCO] for scripts in kinds]
    curves_figure(RESULTS / "returns.png", mujoco)
    classic = [[("CartPole-v1", on_policy), ("Acrobot-v1", on_policy)]]
    classic += [[("Pendulum-v1", scripts) for scripts in kinds]]
    curves_figure(RESULTS / "classic_control.png", classic)
    speed_figure(RESULTS / "speed.png")
    language.figure(RESULTS / "language.png")
    for page, names in PAGES.items():
        text = (ROOT / page).read_text()
        for name in names:
            text = fill(text, name, TABLES[name]())
        (ROOT / page).write_text(text)


if __name__ == "__main__":
    main()
