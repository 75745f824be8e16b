"""rlhf.py and grpo.py: penalties × seeds, the reward and the judge's score over updates, best-of-n.

    python benchmarks/language.py --seeds 301 302 303 304 305

The first two stages are run once for each seed, script and reward model; copies of that run are
resumed with each β, which gives the same numbers as runs of their own. Results: language.csv with
one row for each run, language_curves.csv with every fourth update. No run with a row is repeated.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from run import RESULTS, ROOT, WORK, append, commit, read

sys.path.insert(0, str(ROOT))
import rlhf  # noqa: E402

ROWS, CURVES = RESULTS / "language.csv", RESULTS / "language_curves.csv"
METRICS = "judge win_rate reward kl length bound sample_size share".split()
SAMPLES = 50_000  # responses of the reference for best-of-n
BETAS = "0.4 0.05 0 0.2 0.1 1".split()
VARIANTS = {  # script, reward model: flags of its runs
    ("rlhf", "transformer"): [f"--kl-coef {beta}" for beta in BETAS],
    ("grpo", "transformer"): ["--kl-coef 0.4", "--kl-coef 0.4 --no-group-std"],
    ("rlhf", "bag"): [f"--kl-coef {beta}" for beta in BETAS[:3]],
}


def start(script: str, *flags: str, folder: Path) -> None:
    command = [sys.executable, str(ROOT / f"{script}.py"), *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


def add_rows(job: dict, folder: Path) -> None:
    """The rows of a finished run."""
    summary = json.loads((folder / "summary.json").read_text())
    updates = read(folder / "updates.csv")
    curve = [job | {x: row[x] for x in ("step", *METRICS) if x in row} for row in updates[3::4]]
    head = list(job) + ["step", *METRICS]
    append(CURVES, [{x: row.get(x, "") for x in head} for row in curve])
    row = job | {"step": summary["step"], "seconds": round(summary["seconds"])}
    row |= {x: round(summary[x], 4) if x in summary else "" for x in METRICS}
    append(ROWS, [row | {"commit": commit(f"{job['script']}.py")}])
    print(*row.values(), flush=True)


def best_of(n: int, rewards: torch.Tensor, values: torch.Tensor) -> float:
    """E of the value of that of n samples which has the highest reward; both (N, prompts)."""
    ranks = torch.arange(len(rewards) + 1, dtype=torch.float64) / len(rewards)
    chosen = (ranks**n).diff().unsqueeze(-1)  # P(the best of n has this rank), from low to high
    values = values.double().gather(0, rewards.argsort(0))
    return round((chosen * values).sum(0).mean().item(), 4)


def best_of_n(job: dict, folder: Path) -> None:
    """Of n responses of the reference, the one with the highest reward; n = 2, 4, ..., 256."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    reference = rlhf.Transformer(len(rlhf.WORDS))
    reward_model = rlhf.RewardModel(job["reward_model"])
    reference.load_state_dict(state["reference"])
    reward_model.load_state_dict(state["reward_model"])
    torch.manual_seed(int(job["seed"]))
    with torch.no_grad():
        batches = rlhf.prompts_of(SAMPLES).split(1_000)
        tokens = torch.cat([rlhf.generate(reference, prompts) for prompts in batches])
        rewards = torch.cat([reward_model(x) for x in tokens.split(1_000)])
    rewards, judge = (x.reshape(-1, len(rlhf.TOPICS)) for x in (rewards, rlhf.judged(tokens)))
    for n in (2**k for k in range(1, 9)):
        row = job | {"script": "best-of-n", "flags": str(n), "step": "", "seconds": ""}
        row |= {x: "" for x in METRICS} | {"kl": round(math.log(n) - (n - 1) / n, 4)}
        row |= {"judge": best_of(n, rewards, judge), "reward": best_of(n, rewards, rewards)}
        append(ROWS, [row | {"commit": commit("rlhf.py")}])


def run(script: str, reward_model: str, seed: str) -> None:
    """All runs of one seed that have no row yet."""
    base = {"script": script, "reward_model": reward_model, "seed": seed}
    done = {row["flags"] for row in read(ROWS) if base.items() <= row.items()}
    work = WORK / "language" / "-".join(base.values())
    variants = [flags for flags in VARIANTS[script, reward_model] if flags not in done]
    if not variants:
        return
    if not (work / "stages.txt").exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        words = ["--seed", seed, "--reward-model", reward_model, "--total-responses", "0"]
        start(script, *words, folder=work)
        (stages,) = work.glob("runs/*")
        (work / "stages.txt").write_text(str(stages))
        if script == "rlhf":
            best_of_n(base, stages)
    stages = Path((work / "stages.txt").read_text())
    for flags in variants:
        folder = work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stages, folder)
        words = ["--resume", str(folder), "--total-responses", "25600", *flags.split()]
        start(script, *words, folder=work)
        add_rows(base | {"flags": flags}, folder)
    shutil.rmtree(work)


# ── Table and figure ──────────────────────────────────────────────────────────────────────────────


def cells() -> dict[tuple[str, str, str], list[dict[str, str]]]:
    """(script, reward model, flags) → its rows, one for each seed."""
    found = {}
    for row in read(ROWS):
        found.setdefault((row["script"], row["reward_model"], row["flags"]), []).append(row)
    return found


def spread(rows: list[dict[str, str]], name: str) -> str:
    """Mean ± standard deviation over the seeds that have the number."""
    values = [float(row[name]) for row in rows if row[name]]
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def table() -> str:
    """Markdown: a row for each kind of run, evaluated with 2,000 responses after training."""
    found = cells()
    columns = {"judge": "judge", "win rate": "win_rate", "r": "reward", "KL": "kl"}
    columns |= {"words": "length", "share of the bound": "share", "its samples": "sample_size"}
    lines = [f"| | seeds | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    keys = [(*key, flags) for key, variants in VARIANTS.items() for flags in variants]
    keys += [("best-of-n", model, n) for model in ("transformer", "bag") for n in ("16", "256")]
    for key in sorted(
        keys, key=lambda key: [*VARIANTS].index(key[:2]) if key[:2] in VARIANTS else 9
    ):
        if rows := found.get(key):
            script, model, flags = key
            name = f"best of {flags}" if script == "best-of-n" else f"{script}.py {flags}"
            name = name.replace("--kl-coef", "β =").replace("--no-group-std", ", without std")
            name += ", bag" * (model == "bag")
            texts = [spread(rows, column) for column in columns.values()]
            lines.append(f"| {name.replace(' ,', ',')} | {len(rows)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def mean_curves(script: str, model: str, flags: str) -> np.ndarray:
    """(updates, 4): step, √KL, the judge's score and the reward, means over the seeds."""
    rows = [
        x
        for x in read(CURVES)
        if (x["script"], x["reward_model"], x["flags"]) == (script, model, flags)
    ]
    steps = {}
    for row in rows:
        steps.setdefault(int(row["step"]), []).append(
            [float(row[x]) for x in ("kl", "judge", "reward")]
        )
    means = [(step, *np.mean(values, 0)) for step, values in sorted(steps.items())]
    return np.array([(step, max(kl, 0) ** 0.5, judge, r) for step, kl, judge, r in means])


def figure(path: Path) -> None:
    """The reward (dashed) and the judge's score (solid) over the responses, and over √KL."""
    panels = [("transformer", 0, "responses"), ("transformer", 1, "√KL"), ("bag", 1, "√KL")]
    drawing, axes = plt.subplots(1, 3, figsize=(12, 4.6), layout="constrained")
    handles, order = {}, sorted(BETAS, key=float, reverse=True)
    for axis, (model, x, label) in zip(axes, panels):
        for beta in order:
            curves = mean_curves("rlhf", model, f"--kl-coef {beta}")
            if not len(curves):
                continue
            colour = plt.get_cmap("viridis")(order.index(beta) / len(order))
            (handles[f"β = {beta}"],) = axis.plot(curves[:, x], curves[:, 2], color=colour)
            axis.plot(curves[:, x], curves[:, 3], color=colour, linestyle="--", linewidth=1)
        points = {}
        for row in read(ROWS):
            if (row["script"], row["reward_model"], x) == ("best-of-n", model, 1):
                numbers = [float(row[y]) for y in ("kl", "judge", "reward")]
                points.setdefault(int(row["flags"]), []).append(numbers)
        if points:
            best = np.array([np.mean(points[n], 0) for n in sorted(points)])
            style = dict(color="crimson", marker=".", linewidth=1)
            (handles["best of n = 2 … 256"],) = axis.plot(best[:, 0] ** 0.5, best[:, 1], **style)
            axis.plot(best[:, 0] ** 0.5, best[:, 2], linestyle="--", **style)
        axis.set(title=f"reward model: {model}", xlabel=label, ylim=(-6, 10))
        axis.spines[["top", "right"]].set_visible(False)
        axis.axhline(0, color="grey", linewidth=0.5)
    axes[0].set_ylabel("solid: the judge's score; dashed: the learned reward r")
    drawing.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles))
    drawing.savefig(path, dpi=150)
    plt.close(drawing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", default=["301", "302", "303", "304", "305"])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    jobs = [(*variant, seed) for variant in VARIANTS for seed in options.seeds]
    with ProcessPoolExecutor(options.workers) as pool:
        list(pool.map(run, *zip(*jobs)))


if __name__ == "__main__":
    main()
