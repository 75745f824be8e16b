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
ORDER = sorted(BETAS, key=float, reverse=True)  # in table and figure
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
    found, lines = cells(), []
    columns = {"judge": "judge", "win rate": "win_rate", "r": "reward", "KL": "kl"}
    columns |= {"words": "length", "share of the bound": "share"}
    keys = [("rlhf", "transformer", f"--kl-coef {beta}") for beta in ORDER]
    keys += [("grpo", "transformer", f"--kl-coef 0.4{x}") for x in ("", " --no-group-std")]
    keys += [("best-of-n", "transformer", n) for n in ("16", "256")]
    keys += [("rlhf", "bag", f"--kl-coef {beta}") for beta in ORDER] + [("best-of-n", "bag", "256")]
    for key in (key for key in keys if key in found):
        script, model, flags = key
        name = f"best of {flags}" if script == "best-of-n" else f"{script}.py, β = {flags[10:]}"
        name = name.replace(" --no-group-std", ", no std") + ", bag" * (model == "bag")
        sizes = [float(row["sample_size"]) for row in found[key] if row["sample_size"]]
        texts = [spread(found[key], column) for column in columns.values()]
        texts.append(f"{min(sizes):,.0f} to {max(sizes):,.0f}" if sizes else "-")
        lines.append(f"| {name} | {len(found[key])} | {' | '.join(texts)} |")
    head = f"| | seeds | {' | '.join(columns)} | its samples |"
    return "\n".join([head, "|---" * (3 + len(columns)) + "|", *lines])


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
    """The judge's score (solid) and the reward (dashed) over the responses, and over √KL."""
    panels = [("transformer", 0), ("transformer", 1), ("bag", 1)]
    drawing, axes = plt.subplots(1, 3, figsize=(12, 4.6), layout="constrained", sharey=True)
    handles = {}
    for axis, (model, x) in zip(axes, panels):
        lines = {f"β = {beta}": mean_curves("rlhf", model, f"--kl-coef {beta}") for beta in ORDER}
        points = {}
        for row in read(ROWS):
            if (row["script"], row["reward_model"], x) == ("best-of-n", model, 1):
                numbers = [0, float(row["kl"]) ** 0.5, float(row["judge"]), float(row["reward"])]
                points.setdefault(int(row["flags"]), []).append(numbers)
        lines["best of n = 2 … 256"] = np.array([np.mean(points[n], 0) for n in sorted(points)])
        for i, (name, line) in enumerate(lines.items()):
            if len(line):
                best = i == len(ORDER)
                style = dict(color="black" if best else plt.get_cmap("plasma")(i / 6.5))
                style |= dict(marker=".", zorder=3) if best else {}
                (handles[name],) = axis.plot(line[:, x], line[:, 2], linewidth=1.8, **style)
                axis.plot(line[:, x], line[:, 3], linewidth=1, linestyle="--", **style)
        label = "square root of the KL divergence from π_ref" if x else "responses"
        axis.set(title=f"reward model: {model}", xlabel=label, ylim=(-6, 10))
        axis.set_xlim(0, 9 if x else None)
        axis.spines[["top", "right"]].set_visible(False)
        axis.axhline(0, color="grey", linewidth=0.5)
    axes[0].set_ylabel("solid: the judge's score, dashed: the learned r")
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
