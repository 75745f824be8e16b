"""Writes the tables of results/ into benchmarks.md, between its markers.

    python benchmarks/report.py

Each cell has the mean ± standard deviation over the seeds of the training return (mean of the last
100 training episodes), their number, and a 95 % interval of the mean by bootstrap.
"""

import random
import re
import statistics

from run import FLAGS, RESULTS, ROOT, read

ORDER = ["reinforce", "reinforce_baseline", "a2c", "a3c", "trpo", "ppo", "ddpg", "td3", "sac"]
PAGE = ROOT / "benchmarks.md"

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


def returns() -> str:
    """One row for each script and environment."""
    head = "script | environment | seeds | training return | 95 % | evaluation | published | "
    lines = [f"| {head} each seed's training return |", "|---|---|---|---|---|---|---|---|"]
    rows = [row for row in read(RESULTS / "runs.csv")]
    cells = dict.fromkeys((row["script"], row["env_id"]) for row in rows)
    for script, env_id in sorted(cells, key=lambda cell: (ORDER.index(cell[0]), cell[1])):
        flags = FLAGS.get((script, env_id), "")
        mine = [
            row
            for row in rows
            if (row["script"], row["env_id"], row["flags"]) == (script, env_id, flags)
        ]
        mine.sort(key=lambda row: int(row["seed"]))
        training = [float(row["training_return"]) for row in mine]
        evaluation = statistics.mean(float(row["evaluation_return"]) for row in mine)
        mean, std = statistics.mean(training), statistics.stdev(training) if mine[1:] else 0.0
        low, high = interval(training)
        published, verdict = "", ""
        if (script, env_id) in PUBLISHED:
            best, source = PUBLISHED[script, env_id]
            verdict = " ✓" if mean >= best else " ✗ below"
            published = f"{best:,} ({source}){verdict}"
        lines.append(
            f"| {script} | {env_id} | {len(mine)} | **{number(mean)}** ± {number(std)} | {number(low)} to "
            f"{number(high)} | {number(evaluation)} | {published} | {' · '.join(map(number, training))} |"
        )
    return "\n".join(lines)


def fill(text: str, name: str, content: str) -> str:
    """Puts the content between <!-- name --> and <!-- /name -->."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    assert len(re.findall(pattern, text, re.DOTALL)) == 1, (
        f"{PAGE.name} has no single place for {name}"
    )
    return re.sub(
        pattern, lambda match: match[1] + content + "\n" + match[2], text, flags=re.DOTALL
    )


def main() -> None:
    text = PAGE.read_text()
    PAGE.write_text(fill(text, "returns", returns()))


if __name__ == "__main__":
    main()
