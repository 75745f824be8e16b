"""Writes the tables of results/ into benchmarks.md and README.md, between their markers, the line of
figures in each script's header, and charts.

    python benchmarks/report.py

Each cell has the mean ± standard deviation over the seeds of the training return (mean of the last
100 training episodes), their number, and, from 5 seeds on, a 95 % interval of the mean by bootstrap.
"""

import random
import re
import statistics
from collections import Counter
from pathlib import Path

import ablations
from run import RESULTS, ROOT, flags_of, read
from same_code import as_present, present

OURS = ["reinforce", "reinforce_baseline", "a2c", "a3c", "trpo", "ppo", "ddpg", "td3", "sac"]
ORDER = [name for script in OURS for name in (script, f"sb3_{script}")]  # each beside its peer
OFF_POLICY = ["ddpg", "td3", "sac"]
MUJOCO = ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"]

# Where published values are from: the quantity that is comparable, the protocol, the address.
SOURCES = {
    "tianshou": (
        "evaluation_return",
        "10 seeds, v3, evaluated over 10 episodes; the last value up to 1,000,000 steps, off-policy here that "
        "at 200,000, which leaves out 25,000 random steps (SAC 10,000) before the count; ours count all",
        "https://github.com/thu-ml/tianshou/tree/master/examples/mujoco",
    ),
    "sb3-contrib": (
        "evaluation_return",
        "3 seeds, v3, evaluated over 20 episodes",
        "https://sb3-contrib.readthedocs.io/en/master/modules/trpo.html",
    ),
    "CleanRL": (
        "training_return",
        "3 seeds, v4, the last 100 training episodes",
        "https://docs.cleanrl.dev/rl-algorithms/ppo/",
    ),
    "Spinning Up": (
        "training_return",
        "10 seeds, VPG (with GAE), training episodes",
        "https://spinningup.openai.com/en/latest/spinningup/bench.html",
    ),
    "RL Zoo": (
        "evaluation_return",
        "a single run, settings of its own for each environment, evaluated over 150,000 steps",
        "https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/benchmark.md",
    ),
}
# The best published final value that we know of, its source, and its steps where they are not ours.
# On MuJoCo of several seeds: RL Zoo's single runs are left out, as benchmarks.md says.
PUBLISHED = {
    ("reinforce", "HalfCheetah-v4"): (512, "tianshou"),
    ("reinforce", "Hopper-v4"): (390, "tianshou"),
    ("reinforce", "Walker2d-v4"): (354, "tianshou"),
    ("reinforce_baseline", "HalfCheetah-v4"): (-49, "Spinning Up"),
    ("reinforce_baseline", "Hopper-v4"): (421, "Spinning Up"),
    ("reinforce_baseline", "Walker2d-v4"): (293, "Spinning Up"),
    ("a2c", "HalfCheetah-v4"): (1936, "tianshou"),
    ("a2c", "Hopper-v4"): (1224, "tianshou"),
    ("a2c", "Walker2d-v4"): (1219, "tianshou"),
    ("trpo", "HalfCheetah-v4"): (4403, "tianshou"),
    ("trpo", "Hopper-v4"): (3372, "sb3-contrib"),
    ("trpo", "Walker2d-v4"): (4502, "sb3-contrib"),
    ("ppo", "HalfCheetah-v4"): (5780, "tianshou"),
    ("ppo", "Hopper-v4"): (2383, "CleanRL"),
    ("ppo", "Walker2d-v4"): (3494, "tianshou"),
    # At 200,000 steps: benchmark/<environment>/<algorithm>/test_rew_10seeds.csv
    ("ddpg", "HalfCheetah-v4"): (7914, "tianshou"),
    ("ddpg", "Hopper-v4"): (1272, "tianshou"),
    ("ddpg", "Walker2d-v4"): (132, "tianshou"),
    ("td3", "HalfCheetah-v4"): (6721, "tianshou"),
    ("td3", "Hopper-v4"): (887, "tianshou"),
    ("td3", "Walker2d-v4"): (941, "tianshou"),
    ("sac", "HalfCheetah-v4"): (8208, "tianshou"),
    ("sac", "Hopper-v4"): (3234, "tianshou"),
    ("sac", "Walker2d-v4"): (2531, "tianshou"),
    ("a2c", "CartPole-v1"): (500, "RL Zoo"),
    ("trpo", "CartPole-v1"): (500, "RL Zoo"),
    ("ppo", "CartPole-v1"): (500, "RL Zoo"),
    ("a2c", "Acrobot-v1"): (-83.4, "RL Zoo"),
    ("trpo", "Acrobot-v1"): (-83.1, "RL Zoo", 100_000),
    ("ppo", "Acrobot-v1"): (-73.5, "RL Zoo", 1_000_000),
    ("a2c", "Pendulum-v1"): (-163, "RL Zoo"),
    ("trpo", "Pendulum-v1"): (-175, "RL Zoo", 100_000),
    ("ppo", "Pendulum-v1"): (-172, "RL Zoo", 100_000),
    ("ddpg", "Pendulum-v1"): (-152, "RL Zoo"),
    ("td3", "Pendulum-v1"): (-152, "RL Zoo"),
    ("sac", "Pendulum-v1"): (-157, "RL Zoo"),
}
ENOUGH = 5  # seeds; of fewer, the bootstrap's interval is no more than their range
EVAL_EPISODES = 100  # of each run that the tables show


def mark(script: str, env_id: str, rows: list[dict[str, str]]) -> str:
    """✓ if the mean reaches the published value, else ✗; "(within)" if the value lies in its interval.

    Which mean, SOURCES says: that of the evaluations or of the training returns.
    """
    best, source, *_ = PUBLISHED[script, env_id]
    numbers = [float(row[SOURCES[source][0]]) for row in rows]
    sign = "✓" if statistics.mean(numbers) >= best else "✗"
    if len(numbers) >= ENOUGH:
        low, high = interval(numbers)
        sign += " (within)" if low < best <= high else ""  # all equal to it: no chance in that
    return sign


def published(script: str, env_id: str, rows: list[dict[str, str]]) -> str:
    """The best published value, its source and steps, and the mark of ours."""
    if (script, env_id) not in PUBLISHED:
        return ""
    best, source, *steps = PUBLISHED[script, env_id]
    budget = f", {steps[0]:,} steps" if steps else ""
    return f"{mark(script, env_id, rows)} {best:,} ({source}{budget})"


def sources() -> str:
    """Who published what, how."""
    lines = ["| source | protocol | compared with our |", "|---|---|---|"]
    for name, (kind, protocol, address) in SOURCES.items():
        quantity = kind.replace("_return", "")
        lines.append(f"| [{name}]({address}) | {protocol} | {quantity} |")
    return "\n".join(lines)


def trials() -> str:
    """How many runs were spent on each script's settings."""
    counts = Counter(row["script"] for row in read(RESULTS / "trials.csv"))
    counts["ppo"] += len(read(RESULTS / "ppo_trials.csv"))
    return ", ".join(f"{script}.py {counts[script]}" for script in OURS)


def places() -> str:
    """Versions and processors of all runs that the tables show."""
    rows = [row for rows in cells().values() for row in rows]
    versions, processors = (sorted({row[name] for row in rows}) for name in ("versions", "cpu"))
    return f"{'; '.join(versions)}. {'; '.join(processors)}, one thread a run and two runs at a time (a3c.py: two processes, alone)."


def interval(numbers: list[float], draws: int = 10_000) -> tuple[float, float]:
    """The middle 95 % of the means of samples drawn with replacement."""
    rng = random.Random(0)
    means = sorted(statistics.mean(rng.choices(numbers, k=len(numbers))) for _ in range(draws))
    return means[draws // 40], means[-draws // 40]


def interquartile_mean(numbers: list[float]) -> float:
    """The mean of what is left without the lowest and the highest quarter (Agarwal 2021)."""
    cut = len(numbers) // 4
    return statistics.mean(sorted(numbers)[cut : len(numbers) - cut])


def stratified_interval(strata: list[list[float]], draws: int = 10_000) -> tuple[float, float]:
    """As `interval`, of the interquartile mean: each environment's seeds are drawn anew apart."""
    rng = random.Random(0)
    means = sorted(
        interquartile_mean([x for scores in strata for x in rng.choices(scores, k=len(scores))])
        for _ in range(draws)
    )
    return means[draws // 40], means[-draws // 40]


def label(script: str) -> str:
    """ppo → ppo.py, sb3_ppo → SB3 PPO"""
    peer = script.removeprefix("sb3_")
    return f"SB3 {peer.upper()}" if peer != script else f"{script}.py"


def number(x: float) -> str:
    return f"{x:,.1f}" if abs(x) < 1000 and x != int(x) else f"{x:,.0f}"


def cells() -> dict[tuple[str, str], list[dict[str, str]]]:
    """(script, environment) → its rows in order of the seeds, with the flags that are current.

    Rows of scripts that are not among ours and their peers, or of shorter evaluations, are left out.
    """
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
    return dict(sorted(found.items(), key=lambda item: (ORDER.index(item[0][0]), item[0][1])))


def spread(numbers: list[float]) -> str:
    """Mean ± standard deviation; a single number has none."""
    mean = statistics.mean(numbers)
    if not numbers[1:]:
        return f"**{number(mean)}**"
    return f"**{number(mean)}** ± {statistics.stdev(numbers):,.{0 if abs(mean) >= 1000 else 1}f}"


def spread_and_interval(numbers: list[float]) -> str:
    text = spread(numbers)
    if len(numbers) >= ENOUGH:
        low, high = map(number, interval(numbers))
        text += f"<br>{low} to {high}"
    return text


def returns() -> str:
    """One row for each script and environment."""
    head = "script | environment | steps | seeds | training return | evaluation | published |"
    lines = [f"| {head} training return of each seed |", "|---|---|---|---|---|---|---|---|"]
    for (script, env_id), rows in cells().items():
        training = [float(row["training_return"]) for row in rows]
        evaluation = [float(row["evaluation_return"]) for row in rows]
        each = " · ".join(
            f"{row['seed']}: {number(x)}{' (resumed)' * (row['resumed'] == 'yes')}"
            for row, x in zip(rows, training)
        )
        steps = int(rows[0]["steps"])  # of whole rollouts: a few more than were asked for
        lines.append(
            f"| {label(script)} | {env_id} | {round(steps, -4) or steps:,} | {len(rows)} | "
            f"{spread_and_interval(training)} | {spread_and_interval(evaluation)} | "
            f"{published(script, env_id, rows)} | {each} |"
        )
    return "\n".join(lines)


def headline() -> str:
    """Scripts × MuJoCo environments: training return, evaluation, the best published value."""
    found, lines = cells(), [f"| | {' | '.join(MUJOCO)} |", "|---|" + "---|" * len(MUJOCO)]
    for script in OURS:
        texts = []
        for env_id in MUJOCO:
            rows = found.get((script, env_id), [])
            training, evaluation = (
                [float(row[f"{name}_return"]) for row in rows]
                for name in ("training", "evaluation")
            )
            text = "-"
            if rows:
                text = f"{spread(training)}<br>evaluated {number(statistics.mean(evaluation))}"
                text += f" ({len(rows)} seed{'s' * (len(rows) > 1)})"
                if best := PUBLISHED.get((script, env_id)):
                    text += f"<br>{mark(script, env_id, rows)} {best[0]:,}"
            texts.append(text)
        if any(text != "-" for text in texts):
            steps = "<br>200,000 steps" if script in OFF_POLICY else ""
            lines.append(f"| {script}.py{steps} | {' | '.join(texts)} |")
    return "\n".join(lines)


def across() -> str:
    """Interquartile means over all seeds of all MuJoCo environments, in units of published PPO's."""
    found = cells()
    lines = ["| script | steps | runs | interquartile mean | 95 % |", "|---|---|---|---|---|"]
    for script in ORDER:
        runs = [found.get((script, env_id), []) for env_id in MUJOCO]
        if not all(runs):
            continue
        strata = [
            [float(row["training_return"]) / PUBLISHED["ppo", env_id][0] for row in rows]
            for env_id, rows in zip(MUJOCO, runs)
        ]
        mean, bounds = interquartile_mean(sum(strata, [])), "-"
        if min(map(len, strata)) >= ENOUGH:
            low, high = stratified_interval(strata)
            bounds = f"{low:.2f} to {high:.2f}"
        steps, count = int(runs[0][0]["steps"]), sum(map(len, runs))
        lines.append(f"| {label(script)} | {steps:,} | {count} | **{mean:.2f}** | {bounds} |")
    return "\n".join(lines)


def header_line(script: str) -> str:
    """The figures that stand below the command in a script's header: those of HalfCheetah-v4."""
    rows = cells()[script, "HalfCheetah-v4"]
    training = [float(row["training_return"]) for row in rows]
    minutes = sorted(max(1, round(float(row["seconds"]) / 60)) for row in rows)
    time = " to ".join(str(x) for x in sorted({minutes[0], minutes[-1]}))
    unit = "minute" if time == "1" else "minutes"
    seeds = "1 seed" if len(rows) == 1 else f"{len(rows)} seeds"
    value = spread(training).replace("*", "")
    steps = round(int(rows[0]["steps"]), -4)
    return f"{steps:,} steps in {time} {unit}; return {value} ({seeds}; more in benchmarks.md)"


def fill_header(text: str, script: str) -> str:
    """Puts the line of figures below the first command of the header's Run, once."""
    pattern = rf"(\nRun\n    python {script}\.py .*\n)(?:    [\d,]+ steps in .*\n)?"
    assert len(re.findall(pattern, text)) == 1, f"{script}.py: there is no single place for figures"
    return re.sub(pattern, lambda match: f"{match[1]}    {header_line(script)}\n", text)


def smoothed_curves(script: str, env_id: str) -> dict[str, list[tuple[int, float]]]:
    """seed → (step, return), the mean of up to five neighbouring hundredths of the steps."""
    shown, found = {row["seed"] for row in cells().get((script, env_id), [])}, {}
    for row in read(RESULTS / "curves" / f"{script}__{env_id}.csv"):
        if row["seed"] in shown:
            found.setdefault(row["seed"], []).append((int(row["step"]), float(row["return"])))
    for seed, points in found.items():
        points.sort()
        reach = 2 if len(points) > 50 else 0  # many environments end their episodes all at once
        values = [value for _, value in points]
        found[seed] = [
            (step, statistics.mean(values[max(0, i - reach) : i + reach + 1]))
            for i, (step, _) in enumerate(points)
        ]
    return found


def steps_label(step: float, _: int) -> str:
    return f"{step / 1e6:g}M" if step >= 1e6 else f"{step / 1e3:g}k" if step else "0"


def curves_chart(path: Path, rows: list[list[tuple[str, list[str]]]]) -> None:
    """Training returns over steps: mean and 95 % interval, of few seeds their range; each seed thin.

    Dashed: the mean of Stable-Baselines3's agents. Beyond the grey line, where there are no steps,
    in the curves' colours: a dot (theirs: a square) for the mean of the evaluations, a short line
    for the best published value. Where returns are negative the axis begins at the worst curve
    after a quarter of the steps: before that all are far below what is compared.

    Args:
        rows: of panels; a panel is an environment, and the scripts of which it shows the runs.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    width = max(map(len, rows))
    figure, axes = plt.subplots(
        len(rows),
        width,
        figsize=(2.5 + 4.5 * width, 0.4 + 4.2 * len(rows)),
        layout="constrained",
        squeeze=False,
    )
    handles = {}
    for axis, panel in zip(axes.flat, (panel for row in rows for panel in row), strict=True):
        env_id, scripts = panel
        curves_of = {script: smoothed_curves(script, env_id) for script in scripts}
        last = {
            script: max(step for points in curves.values() for step, _ in points)
            for script, curves in curves_of.items()
            if curves
        }
        span, bottom = max(last.values(), default=1), 0.0
        for script in last:
            curves = curves_of[script]
            peer = script not in OURS
            colour = plt.get_cmap("tab10")(OURS.index(script.removeprefix("sb3_")))
            for points in curves.values():
                axis.plot(*zip(*points), color=colour, linewidth=0.5, alpha=0.2 if peer else 0.4)
            common = sorted(set.intersection(*({step for step, _ in x} for x in curves.values())))
            if not common:  # no hundredth of the steps in which all seeds ended an episode
                continue
            values = [[dict(points)[step] for points in curves.values()] for step in common]
            means = [statistics.mean(x) for x in values]
            bottom = min([bottom, *(y for x, y in zip(common, means) if x > last[script] / 4)])
            style = "--" if peer else "-"
            (handles[script],) = axis.plot(common, means, style, color=colour, linewidth=1.8)
            if len(curves) > 1 and not peer:
                enough = len(curves) >= ENOUGH
                ranges = (interval(x, 400) if enough else (min(x), max(x)) for x in values)
                low, high = zip(*ranges)
                axis.fill_between(common, low, high, color=colour, alpha=0.15, linewidth=0)
            width = 0.22 * span / len(scripts)  # side by side
            end = 1.04 * span + width * scripts.index(script)
            if best := PUBLISHED.get((script, env_id)):
                axis.plot([end, end + width], [best[0]] * 2, color=colour, linewidth=2.5)
            mean = statistics.mean(
                float(row["evaluation_return"]) for row in cells()[script, env_id]
            )
            mark = "s" if peer else "o"
            axis.plot(end + width / 2, mean, mark, color=colour, markersize=5)
        kinds = {script.removeprefix("sb3_") in OFF_POLICY for script in last}
        kind = "" if len(kinds) != 1 else ", off-policy" if kinds.pop() else ", on-policy"
        axis.set_title(f"{env_id}{kind}", fontsize=10)
        axis.axvline(1.02 * span, color="grey", linewidth=0.6)
        if env_id in ("Acrobot-v1", "Pendulum-v1") and bottom:
            axis.set_ylim(1.1 * bottom, 0)
        axis.spines[["top", "right"]].set_visible(False)
        ticks = plt.MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0, span)
        axis.set_xticks([x for x in ticks if x < 1.02 * span])
        axis.xaxis.set_major_formatter(steps_label)
    for axis in axes[-1]:
        axis.set_xlabel("environment steps")
    for axis in axes[:, 0]:
        axis.set_ylabel("training return")
    shown = sorted(handles, key=ORDER.index)
    figure.legend(
        [handles[script] for script in shown],
        [label(script) for script in shown],
        loc="outside right center",
        fontsize=8,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


# ── Speed ─────────────────────────────────────────────────────────────────────────────────────────


def speeds(part: str, quantity: str = "steps/s") -> dict[tuple, list[float]]:
    """(script, variant, num_envs, threads, buffer_size) → the measurements, in order of the turns."""
    found = {}
    for row in read(RESULTS / "speed.csv"):
        if row["part"] == part and row["quantity"] == quantity:
            keys = "script", "variant", "num_envs", "threads", "buffer_size"
            found.setdefault(tuple(row[key] for key in keys), []).append(float(row["value"]))
    return found


def in_order(keys) -> list[tuple]:
    return sorted(
        keys, key=lambda key: (ORDER.index(key[0]), int(key[2]), int(key[3]), key[1] == "compile")
    )


def rounded(x: float) -> str:
    return f"{x:,.0f}" if x >= 10 else f"{x:.2g}"


def peers() -> str:
    """Steps per second beside SB3, the ratio of each turn's pair, and its range over the turns."""
    found = speeds("peers")
    lines = [
        "| script | environments | steps/s | with `--compile` | SB3 | ratio | with `--compile` |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for key in in_order(key for key in found if key[1] == "eager"):
        script, _, *rest = key
        eager = found[key]
        graph, peer = (found.get((script, name, *rest)) for name in ("compile", "SB3"))
        cells = [f"{script}.py", rest[0], *(rounded(statistics.median(eager)),)]
        cells += [rounded(statistics.median(x)) if x else "-" for x in (graph, peer)]
        for numbers in (eager, graph):
            ratios = sorted(a / b for a, b in zip(numbers or (), peer or ()))
            middle = f"**{statistics.median(ratios):.2f}**" if ratios else "-"
            cells.append(f"{middle} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def profiles() -> str:
    """Microseconds a step, and what bounds them."""
    names = "environment", "acting", "updates"
    found = {name: speeds("profile", name) for name in (*names, "share of matrix products")}
    operations = speeds("limits", "MFLOP/step")
    alone = speeds("limits", "environment alone, steps/s")
    rate = speeds("limits", "matrix products, GFLOP/s")
    lines = [
        "| script | environments | | µs a step | environment | acting, storing | updates, logs |"
    ]
    lines[0] += " matrix products | bound |"
    lines += ["|---|" + "---|" * 8]
    for key in in_order(found["updates"]):
        script, variant, n, threads, _ = key
        parts = [found[name][key][0] for name in names]
        share = found["share of matrix products"].get(key)
        bound = ""
        mflop = operations.get((script, "eager", n, threads, ""))
        if alone and rate:
            environment = 1e6 / statistics.median(*alone.values())
            products = mflop[0] / statistics.median(*rate.values()) * 1000 if mflop else 0
            bound = f"{environment + products:,.0f}"
        cells = [f"{script}.py", n, "`--compile`" if variant == "compile" else ""]
        cells += [f"{x:,.0f}" if x else "in updates" for x in (sum(parts), *parts)]
        cells += [f"{share[0]:.0%}" if share else "", bound]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sweep(part: str) -> str:
    """Medians of a part that varies one setting: environments, threads or the buffer's size."""
    found, memory = speeds(part), speeds(part, "memory, MB")
    if not found:
        return "Not measured yet."
    if part == "envs":
        rows = {}
        for key, numbers in found.items():
            rows.setdefault(int(key[2]), {})[key[1]] = rounded(statistics.median(numbers))
        lines = ["| environments | steps/s | with `--compile` |", "|---|---|---|"]
        lines += [f"| {n} | {row['eager']} | {row['compile']} |" for n, row in sorted(rows.items())]
    elif part == "threads":
        lines = ["| script | 1 thread | 2 threads | ratio |", "|---|---|---|---|"]
        for key in in_order(key for key in found if key[3] == "1"):
            one, two = found[key], found[(*key[:3], "2", key[4])]
            ratio = statistics.median(b / a for a, b in zip(one, two))
            numbers = (rounded(statistics.median(x)) for x in (one, two))
            lines.append(f"| {key[0]}.py | {' | '.join(numbers)} | {ratio:.2f} |")
    elif part == "processes":
        lines = ["| script | 1 process | 2 | 4 |", "|---|---|---|---|"]
        rows = {}
        for key, numbers in found.items():
            rows.setdefault(key[0], {})[key[1].split()[0]] = rounded(statistics.median(numbers))
        for script in (script for script in ORDER if script in rows):
            lines.append(f"| {script}.py | {' | '.join(rows[script].get(x, '') for x in '124')} |")
    else:
        lines = ["| full buffer of | steps/s | memory of the process, MB |", "|---|---|---|"]
        for key in sorted(found, key=lambda key: int(key[4])):
            numbers = (rounded(statistics.median(x)) for x in (found[key], memory[key]))
            lines.append(f"| {int(key[4]):,} steps | {' | '.join(numbers)} |")
    return "\n".join(lines)


def start() -> str:
    """Seconds until the first step, and from there until the first update is done."""
    first, update = (speeds("start", f"until the first {x}") for x in ("step", "update"))
    if not first:
        return "Not measured yet."
    lines = ["| script | | until the first step, s | then until the first update, s |"]
    lines += ["|---|---|---|---|"]
    for key in in_order(first):
        flag = "`--compile`" if key[1] == "compile" else ""
        lines.append(f"| {key[0]}.py | {flag} | {first[key][0]:.1f} | {update[key][0]:.1f} |")
    return "\n".join(lines)


def speed_chart(path: Path) -> None:
    """Bars of each script and SB3's; dashed: no script can be faster on this machine."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found, operations = speeds("peers"), speeds("limits", "MFLOP/step")
    (alone,) = speeds("limits", "environment alone, steps/s").values()
    (rate,) = speeds("limits", "matrix products, GFLOP/s").values()
    alone, rate = statistics.median(alone), statistics.median(rate)
    most = {}  # environments of the on-policy scripts: one number each, the last of the table
    for key in in_order(key for key in found if key[1] == "eager"):
        most[key[0]] = key[2:]
    groups = [[x for x in most if x not in OFF_POLICY], [x for x in most if x in OFF_POLICY]]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    variants = ("SB3", "#9aa0a6"), ("eager", "#6fa8dc"), ("compile", "#1c4587")
    for axis, scripts in zip(axes, groups):
        for place, script in enumerate(scripts):
            for shift, (variant, colour) in enumerate(variants):
                if numbers := found.get((script, variant, *most[script])):
                    height = statistics.median(numbers)
                    bar = axis.bar(place + 0.27 * (shift - 1), height, 0.25, color=colour)
                    axis.bar_label(bar, [rounded(height)], fontsize=6, padding=1)
            microseconds = 1e6 / alone
            if mflop := operations.get((script, "eager", *most[script])):
                microseconds += mflop[0] / rate * 1000
            reach = place - 0.42, place + 0.42
            axis.plot(reach, [1e6 / microseconds] * 2, "--", color="#b45f06", linewidth=1.2)
        axis.set_xticks(range(len(scripts)), [x.replace("_", "\n") for x in scripts], fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("environment steps per second")
    axes[0].set_title("on-policy; dashed: MuJoCo alone", fontsize=9)
    axes[1].set_title(
        "off-policy, one update a step; dashed: MuJoCo and the matrix products alone", fontsize=9
    )
    names = {"SB3": "Stable-Baselines3", "eager": "ours", "compile": "ours, --compile"}
    bars = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, colour in variants]
    figure.legend(
        bars, [names[x] for x, _ in variants], loc="outside upper center", ncols=3, fontsize=8
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


# ── Pages ─────────────────────────────────────────────────────────────────────────────────────────


def fill(text: str, name: str, content: str) -> str:
    """Puts the content between <!-- name --> and <!-- /name -->."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    assert len(re.findall(pattern, text, re.S)) == 1, f"there is no single place for {name}"
    return re.sub(pattern, lambda match: match[1] + content + "\n" + match[2], text, flags=re.S)


def of_other_code() -> list[str]:
    """The cells with rows whose script may have done something else than the present one.

    Left out are versions that trained as the present one does, to the last bit: see same_code.py.
    """
    same = {script: as_present(script) for script, _ in cells()}
    lines = []
    for (script, env_id), rows in cells().items():
        if old := [row["seed"] for row in rows if row["code"] not in same[script]]:
            lines.append(f"{script} {env_id}: seeds {' '.join(old)}")
    return lines


def code() -> str:
    """What of_other_code finds, for benchmarks.md."""
    if lines := of_other_code():
        return f"  These rows may be of a script that does something else: {'; '.join(lines)}."
    return "  No row is of a script that does something else than the present one."


def speeds_of_other_code() -> str:
    """Which speeds were measured with other versions of the scripts than the present ones."""
    now, found = {script: present(script) for script in OURS}, {}
    for row in read(RESULTS / "speed.csv"):
        if row["code"] and row["code"] != now[row["script"]]:
            found.setdefault(row["part"], set()).add(row["commit"])
    if not found:
        return "All of these are of the scripts as they are now."
    parts = "; ".join(f"{part} {' '.join(sorted(commits))}" for part, commits in found.items())
    return f"In part of older versions of the scripts, at these commits: {parts}."


def contents_of() -> dict[str, dict[str, str]]:
    """page → marker → the text between."""
    return {
        "benchmarks.md": {
            "returns": returns(), "sources": sources(), "trials": trials(), "places": places(), "code": code(), "ablations": ablations.table(), "across": across(), "peers": peers(), "profiles": profiles(), "start": start(),
            "envs": sweep("envs"), "threads": sweep("threads"), "buffer": sweep("buffer"), "processes": sweep("processes"), "speed-code": speeds_of_other_code(),
        },
        "README.md": {"headline": headline(), "peers": peers()},
    }  # fmt: skip


def main() -> None:
    off_policy = [script for script in ORDER if script.removeprefix("sb3_") in OFF_POLICY]
    on_policy = [script for script in ORDER if script not in off_policy]
    curves_chart(RESULTS / "halfcheetah.png", [[(MUJOCO[0], OURS)]])
    curves_chart(
        RESULTS / "returns.png",
        [[(env_id, scripts) for env_id in MUJOCO] for scripts in (on_policy, off_policy)],
    )
    curves_chart(
        RESULTS / "classic_control.png",
        [
            [("CartPole-v1", on_policy), ("Acrobot-v1", on_policy)],
            [("Pendulum-v1", on_policy), ("Pendulum-v1", off_policy)],
        ],
    )
    if speeds("peers") and speeds("limits", "matrix products, GFLOP/s"):
        speed_chart(RESULTS / "speed.png")
    for page, contents in contents_of().items():
        text = (ROOT / page).read_text()
        for name, content in contents.items():
            text = fill(text, name, content)
        (ROOT / page).write_text(text)
    for script in OURS:
        if (script, "HalfCheetah-v4") in cells():
            path = ROOT / f"{script}.py"
            path.write_text(fill_header(path.read_text(), script))
    print(*of_other_code(), sep="\n")


if __name__ == "__main__":
    main()
