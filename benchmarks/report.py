"""Writes the tables of results/ into benchmarks.md and README.md, between their markers.

    python benchmarks/report.py

Each cell has the mean ± standard deviation over the seeds of the training return (mean of the last
100 training episodes), their number, and a 95 % interval of the mean by bootstrap.
"""

import random
import re
import statistics

import ablations
from run import FLAGS, RESULTS, ROOT, read

ORDER = ["reinforce", "reinforce_baseline", "a2c", "a3c", "trpo", "ppo", "ddpg", "td3", "sac"]
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
}


def interval(numbers: list[float], draws: int = 10_000) -> tuple[float, float]:
    """The middle 95 % of the means of samples drawn with replacement."""
    rng = random.Random(0)
    means = sorted(statistics.mean(rng.choices(numbers, k=len(numbers))) for _ in range(draws))
    return means[draws // 40], means[-draws // 40]


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
        low, high = interval(training)
        published = ""
        if (script, env_id) in PUBLISHED:
            best, source = PUBLISHED[script, env_id]
            verdict = "✓" if statistics.mean(training) >= best else "✗ below"
            published = f"{best:,} ({source}) {verdict}"
        lines.append(
            f"| {script} | {env_id} | {len(rows)} | {spread(training)} | {number(low)} to {number(high)} | "
            f"{spread(evaluation)} | {published} | {' · '.join(map(number, training))} |"
        )
    return "\n".join(lines)


def headline() -> str:
    """Scripts × MuJoCo environments: training return, seeds, and the best published value."""
    found, lines = cells(), [f"| | {' | '.join(MUJOCO)} |", "|---|" + "---|" * len(MUJOCO)]
    for script in ORDER:
        texts = []
        for env_id in MUJOCO:
            training = [float(row["training_return"]) for row in found.get((script, env_id), [])]
            best = PUBLISHED.get((script, env_id))
            text = f"{spread(training)} ({len(training)})" if training else "-"
            texts.append(text + (f", published {best[0]:,}" if best else ""))
        if any(text[0] != "-" for text in texts):
            lines.append(f"| {script}.py | {' | '.join(texts)} |")
    return "\n".join(lines)


def fill(text: str, name: str, content: str) -> str:
    """Puts the content between <!-- name --> and <!-- /name -->."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    assert len(re.findall(pattern, text, re.S)) == 1, f"there is no single place for {name}"
    return re.sub(pattern, lambda match: match[1] + content + "\n" + match[2], text, flags=re.S)


def main() -> None:
    places = {
        "benchmarks.md": {"returns": returns()},
        "README.md": {"headline": headline(), "ablations": ablations.table()},
    }
    for page, contents in places.items():
        text = (ROOT / page).read_text()
        for name, content in contents.items():
            text = fill(text, name, content)
        (ROOT / page).write_text(text)


if __name__ == "__main__":
    main()
