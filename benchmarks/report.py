"""Writes the tables of results/ into benchmarks.md and README.md, between their markers, the line of
figures in each script's header, and charts.

    python benchmarks/report.py

Each cell has the mean ± standard deviation over the seeds of the training return (mean of the last
100 training episodes), their number, and, from 5 seeds on, a 95 % interval of the mean by bootstrap.
"""

import random
import re
import statistics
from pathlib import Path

import ablations
from run import FLAGS, RESULTS, ROOT, read

OURS = ["reinforce", "reinforce_baseline", "a2c", "a3c", "trpo", "ppo", "ddpg", "td3", "sac"]
ORDER = [name for script in OURS for name in (script, f"sb3_{script}")]  # each beside its peer
OFF_POLICY = ["ddpg", "td3", "sac"]
MUJOCO = ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"]

# The best published final value over several seeds that we know of, and its source.
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
    ("trpo", "HalfCheetah-v4"): (4403, "tianshou, sb3-contrib"),
    ("trpo", "Hopper-v4"): (3372, "sb3-contrib"),
    ("trpo", "Walker2d-v4"): (4502, "sb3-contrib"),
    ("ppo", "HalfCheetah-v4"): (5780, "tianshou"),
    ("ppo", "Hopper-v4"): (2383, "CleanRL"),
    ("ppo", "Walker2d-v4"): (3674, "tianshou"),
    # Off-policy our runs have 200,000 steps: the middle between the published 100,000 and 300,000.
    ("ddpg", "HalfCheetah-v4"): ((6308 + 9137) // 2, "tianshou, 100k to 300k"),
    ("td3", "HalfCheetah-v4"): ((5514 + 7697) // 2, "tianshou, 100k to 300k"),
    ("sac", "HalfCheetah-v4"): ((6515 + 9059) // 2, "tianshou, 100k to 300k"),
    ("sac", "Hopper-v4"): ((2613 + 3388) // 2, "tianshou, 100k to 300k"),
    ("sac", "Walker2d-v4"): ((1305 + 3387) // 2, "tianshou, 100k to 300k"),
    # Classic control: single runs, evaluated over many episodes, with settings for each environment.
    ("a2c", "CartPole-v1"): (500, "RL Zoo"),
    ("trpo", "CartPole-v1"): (500, "RL Zoo"),
    ("ppo", "CartPole-v1"): (500, "RL Zoo"),
    ("a2c", "Acrobot-v1"): (-83.4, "RL Zoo"),
    ("trpo", "Acrobot-v1"): (-83.1, "RL Zoo, 100k"),
    ("ppo", "Acrobot-v1"): (-73.5, "RL Zoo, 1M"),
    ("a2c", "Pendulum-v1"): (-163, "RL Zoo"),
    ("trpo", "Pendulum-v1"): (-175, "RL Zoo, 100k"),
    ("ppo", "Pendulum-v1"): (-172, "RL Zoo, 100k"),
    ("ddpg", "Pendulum-v1"): (-152, "RL Zoo"),
    ("td3", "Pendulum-v1"): (-152, "RL Zoo"),
    ("sac", "Pendulum-v1"): (-157, "RL Zoo"),
}


# These report training episodes; the others, as far as we know, deterministic evaluations.
OF_TRAINING = "CleanRL", "Spinning Up"
ENOUGH = 5  # seeds; of fewer, the bootstrap's interval is no more than their range


def verdict(script: str, env_id: str, rows: list[dict[str, str]]) -> str:
    """The best published value, its source, and whether the like mean of ours reaches it."""
    if (script, env_id) not in PUBLISHED:
        return ""
    best, source = PUBLISHED[script, env_id]
    kind = "training_return" if source in OF_TRAINING else "evaluation_return"
    reached = statistics.mean(float(row[kind]) for row in rows) >= best
    return f"{best:,} ({source}) {'✓' if reached else '✗ below'}"


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
    """(script, environment) → its rows in order of the seeds, with the flags that are current."""
    found = {}
    for row in read(RESULTS / "runs.csv"):
        if row["flags"] == FLAGS.get((row["script"], row["env_id"]), ""):
            found.setdefault((row["script"], row["env_id"]), []).append(row)
    for rows in found.values():
        rows.sort(key=lambda row: int(row["seed"]))
    return dict(sorted(found.items(), key=lambda item: (ORDER.index(item[0][0]), item[0][1])))


def spread(numbers: list[float]) -> str:
    mean = statistics.mean(numbers)
    if not numbers[1:]:  # one seed has no spread
        return f"**{number(mean)}**"
    return f"**{number(mean)}** ± {statistics.stdev(numbers):,.{0 if abs(mean) >= 1000 else 1}f}"


def returns() -> str:
    """One row for each script and environment."""
    head = "script | environment | seeds | training return | 95 % | evaluation | published |"
    lines = [f"| {head} each seed's training return |", "|---|---|---|---|---|---|---|---|"]
    for (script, env_id), rows in cells().items():
        training = [float(row["training_return"]) for row in rows]
        evaluation = [float(row["evaluation_return"]) for row in rows]
        low, high = map(number, interval(training))
        bounds = f"{low} to {high}" if len(rows) >= ENOUGH else "-"
        published = verdict(script, env_id, rows)
        lines.append(
            f"| {label(script)} | {env_id} | {len(rows)} | {spread(training)} | {bounds} | "
            f"{spread(evaluation)} | {published} | {' · '.join(map(number, training))} |"
        )
    return "\n".join(lines)


def headline() -> str:
    """Scripts × MuJoCo environments: training return; evaluation (seeds), the best published value."""
    found, lines = cells(), [f"| | {' | '.join(MUJOCO)} |", "|---|" + "---|" * len(MUJOCO)]
    for script in OURS:
        texts = []
        for env_id in MUJOCO:
            rows = found.get((script, env_id), [])
            training, evaluation = (
                [float(row[f"{name}_return"]) for row in rows]
                for name in ("training", "evaluation")
            )
            best = PUBLISHED.get((script, env_id))
            text = "-"
            if training:
                text = f"{spread(training)}; {number(statistics.mean(evaluation))} ({len(rows)})"
            texts.append(text + (f", published {best[0]:,}" if best else ""))
        if any(text[0] != "-" for text in texts):
            steps = " (200,000 steps)" if script in OFF_POLICY else ""
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
        low, high = stratified_interval(strata)
        mean = interquartile_mean(sum(strata, []))
        steps, count = int(runs[0][0]["steps"]), sum(map(len, runs))
        lines.append(
            f"| {label(script)} | {steps:,} | {count} | **{mean:.2f}** | {low:.2f} to {high:.2f} |"
        )
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


def curves_chart(env_ids: list[str], path: Path) -> None:
    """Training returns over steps: mean and 95 % interval, of few seeds their range; each seed thin.

    Dashed: the mean of Stable-Baselines3's agents. The short lines at the end of the curves are the
    best published final values, in their script's colour.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1,
        len(env_ids),
        figsize=(2.5 + 4.5 * len(env_ids), 4.6),
        layout="constrained",
        squeeze=False,
    )
    handles = {}
    for axis, env_id in zip(axes[0], env_ids):
        for script in ORDER:
            curves = smoothed_curves(script, env_id)
            if not curves:
                continue
            peer = script not in OURS
            colour = plt.get_cmap("tab10")(OURS.index(script.removeprefix("sb3_")))
            for points in curves.values():
                axis.plot(*zip(*points), color=colour, linewidth=0.5, alpha=0.2 if peer else 0.4)
            common = sorted(set.intersection(*({step for step, _ in x} for x in curves.values())))
            values = [[dict(points)[step] for points in curves.values()] for step in common]
            means = [statistics.mean(x) for x in values]
            style = "--" if peer else "-"
            (handles[script],) = axis.plot(common, means, style, color=colour, linewidth=1.8)
            if len(curves) > 1 and not peer:
                enough = len(curves) >= ENOUGH
                ranges = (interval(x, 400) if enough else (min(x), max(x)) for x in values)
                low, high = zip(*ranges)
                axis.fill_between(common, low, high, color=colour, alpha=0.15, linewidth=0)
            if best := PUBLISHED.get((script, env_id)):
                end = 0.2e6 if script in OFF_POLICY else 1e6
                axis.plot([end + 2e4, end + 7e4], [best[0]] * 2, color=colour, linewidth=2.5)
        axis.set_title(env_id, fontsize=10)
        axis.set_xlabel("environment steps")
        axis.spines[["top", "right"]].set_visible(False)
        axis.ticklabel_format(axis="x", style="plain")
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x else "0")
    axes[0][0].set_ylabel("training return")
    names = [label(script) for script in handles]
    figure.legend(handles.values(), names, loc="outside right center", fontsize=8)
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


def main() -> None:
    places = {
        "benchmarks.md": {
            "returns": returns(), "ablations": ablations.table(), "across": across(), "peers": peers(), "profiles": profiles(), "start": start(),
            "envs": sweep("envs"), "threads": sweep("threads"), "buffer": sweep("buffer"), "processes": sweep("processes"),
        },
        "README.md": {"headline": headline(), "peers": peers()},
    }  # fmt: skip
    curves_chart(MUJOCO, RESULTS / "returns.png")
    curves_chart(MUJOCO[:1], RESULTS / "halfcheetah.png")
    if speeds("peers") and speeds("limits", "matrix products, GFLOP/s"):
        speed_chart(RESULTS / "speed.png")
    for page, contents in places.items():
        text = (ROOT / page).read_text()
        for name, content in contents.items():
            text = fill(text, name, content)
        (ROOT / page).write_text(text)
    for script in OURS:
        if (script, "HalfCheetah-v4") in cells():
            path = ROOT / f"{script}.py"
            path.write_text(fill_header(path.read_text(), script))


if __name__ == "__main__":
    main()
