"""rlhf.py and grpo.py with several penalties, DPO and best of n; reward and judge over the updates.

    python benchmarks/language.py --seeds 301 302 303 304 305

Stages 1 and 2 are run once for each seed, script and reward model. Copies of that run are resumed
with each set of flags, which gives the same numbers as runs of their own. results/language.csv gets
a row as soon as a run is done, results/language_curves.csv every fourth update. Nothing that has a
row is repeated, so after an interruption the same command goes on.
"""

import argparse
import copy
import json
import math
import os
import shutil
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from ablations import patched, start
from run import RESULTS, ROOT, WORK, append, commit, digest, read
from torch.nn import functional as F

sys.path.append(str(ROOT))  # after exercises/, if these are tested
import rlhf

ROWS, CURVES = RESULTS / "language.csv", RESULTS / "language_curves.csv"
KEY = ["script", "reward_model", "seed", "flags"]
METRICS = ["judge", "win_rate", "score", "kl", "length"]  # of updates and of the evaluation
EVALUATION = [*METRICS, "bound", "share", "rm_accuracy", "rm_loss", "judge_accuracy"]
BETA = 0.4  # of DPO and of the share of best of n
ORDER = ["1", "0.4", "0.2", "0.1", "0.05", "0"]  # β of rlhf.py
NAMES = {  # (script, reward model, flags) → its row in the table
    **{("rlhf", "transformer", f"--kl-coef {beta}"): f"rlhf.py, β = {beta}" for beta in ORDER},
    ("grpo", "transformer", "--kl-coef 0.4"): "grpo.py, β = 0.4",
    ("grpo", "transformer", "--kl-coef 0.4 --no-group-std"): "grpo.py, β = 0.4, no std",
    ("grpo", "transformer", "--kl-coef 0.4 --no-kl-in-loss"): "grpo.py, β = 0.4, KL in the reward",
    ("dpo", "transformer", "3"): "DPO, β = 0.4, 3 epochs",
    ("dpo", "transformer", "10"): "DPO, β = 0.4, 10 epochs",
    ("best-of-n", "transformer", "16"): "best of 16",
    ("best-of-n", "transformer", "256"): "best of 256",
    ("rlhf", "bag", "--kl-coef 0.4"): "rlhf.py, β = 0.4, bag",
    ("rlhf", "bag", "--kl-coef 0.05"): "rlhf.py, β = 0.05, bag",
    ("rlhf", "bag", "--kl-coef 0"): "rlhf.py, β = 0, bag",
    ("best-of-n", "bag", "256"): "best of 256, bag",
}

PARTS = """        # [impl 2] What each word adds, given the prompt and all words before it.
        parts = self.net(tokens)[:, 1:].squeeze(-1)  # (B, T)
"""
# Each word beside the prompt alone: this reward model ignores order, grammar and repetition.
BAG = """        pairs = torch.stack((tokens[:, :1].expand(-1, T), tokens[:, 1:]), -1)  # (B, T, 2)
        parts = self.net(pairs.flatten(0, 1))[:, 1].reshape(-1, T)  # T texts of two tokens
"""
PAIRS = "        pairs = [chosen, rejected]  # [L10-6c]\n"
SAVE_PAIRS = '        torch.save(pairs, run.folder / "pairs.pt")\n'
CHANGES = {"transformer": [(PAIRS, PAIRS + SAVE_PAIRS)]}  # of the text of rlhf.py or grpo.py
CHANGES["bag"] = [*CHANGES["transformer"], (PARTS, BAG)]


def row_of(job: dict, metrics: dict) -> dict:
    """A row of language.csv."""
    rounded = {name: round(float(metrics[name]), 4) for name in EVALUATION if name in metrics}
    script = "grpo.py" if job["script"] == "grpo" else "rlhf.py"
    return job | rounded | {"commit": commit(script)}


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────
def training(job: dict, script: Path, stages: Path) -> None:
    """A copy of the run that has done stages 1 and 2, resumed."""
    folder = script.parent / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(stages, folder)
    flags = job["flags"].split()
    start(script, "--resume", str(folder), "--total-responses", "25600", *flags)
    updates = read(folder / "updates.csv")[3::4]
    append(CURVES, [job | {x: row[x] for x in ("step", *METRICS)} for row in updates])
    summary = json.loads((folder / "summary.json").read_text())
    job |= {"step": summary["step"], "seconds": round(summary["seconds"])}
    append(ROWS, [row_of(job, summary)])


def best_of(n: int, scores: torch.Tensor, values: torch.Tensor) -> float:
    """E of the value of that of n samples which has the highest score; both (prompts, N)."""
    ranks = torch.arange(scores.shape[1] + 1, dtype=torch.float64) / scores.shape[1]
    chosen = (ranks**n).diff()  # P(the best of n has this rank), from low to high
    values = values.double().gather(1, scores.argsort(1))
    return (chosen * values).sum(1).mean().item()


def best_of_n(job: dict, scores: torch.Tensor, judge_scores: torch.Tensor) -> None:
    """Of n responses of the reference that with the highest r(y)."""
    rows = []
    for n in (2**k for k in range(1, 9)):
        metrics = {"kl": math.log(n) - (n - 1) / n}  # at most (Beirami et al. 2024)
        metrics["judge"] = best_of(n, scores, judge_scores)
        metrics["score"] = best_of(n, scores, scores)
        rows.append(row_of(job | {"flags": n}, metrics))
    append(ROWS, rows)


def dpo(job: dict, stages: rlhf.Stages, pairs: list[torch.Tensor]) -> None:
    """Direct preference optimization (Rafailov et al. 2023, eq. 7) on the reward model's pairs."""

    def loss(policy, chosen, rejected):
        tokens = torch.cat((chosen, rejected))
        with torch.no_grad():
            ref_log_probs = rlhf.token_log_probs(stages.reference, tokens)
        log_ratios = (rlhf.token_log_probs(policy, tokens) - ref_log_probs).sum(-1)
        better, worse = log_ratios.chunk(2)
        return -F.logsigmoid(BETA * (better - worse)).mean()

    policy = copy.deepcopy(stages.reference)
    args = rlhf.Args(supervised_lr=5e-4, kl_coef=BETA)
    rlhf.train_supervised(policy, loss, pairs, int(job["flags"]), 0.0, args)
    append(ROWS, [row_of(job, rlhf.evaluate(policy, stages, args))])


def run(script: str, reward_model: str, seed: str) -> None:
    """All runs of one seed that have no row yet."""
    job = {"script": script, "reward_model": reward_model, "seed": seed}
    done = [key_of(row) for row in read(ROWS) if row["seed"] == seed]
    kinds = ["rlhf", "dpo", "best-of-n"] if script == "rlhf" else [script]
    todo = [x for x in NAMES if x[0] in kinds and x[1] == reward_model and x not in done]
    if not todo:
        return
    work = WORK / "language" / "-".join([*job.values(), digest(f"{script}.py")])
    path = work / f"{script}.py"
    if not (work / "stages.txt").exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        path.write_text(patched((ROOT / path.name).read_text(), CHANGES[reward_model]))
        start(path, "--seed", seed, "--total-responses", "0")
        (folder,) = work.glob("runs/*")
        (work / "stages.txt").write_text(str(folder))
    folder = Path((work / "stages.txt").read_text())
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["stages"]
    torch.manual_seed(int(seed))
    if any(kind == "best-of-n" for kind, _, _ in todo):
        best_of_n(job | {"script": "best-of-n"}, state["scores"], state["judge_scores"])
    for kind, _, flags in todo:
        if kind == "dpo":
            stages = rlhf.Stages(state["scores"].shape[1])
            stages.load_state_dict(state)
            pairs = torch.load(folder / "pairs.pt", weights_only=True)
            dpo(job | {"script": kind, "flags": flags}, stages, pairs)
        elif kind == script:
            training(job | {"flags": flags}, path, folder)
    shutil.rmtree(work)


# ── Table and figure ──────────────────────────────────────────────────────────────────────────────
def key_of(row: dict[str, str]) -> tuple[str, str, str]:
    return row["script"], row["reward_model"], row["flags"]


def spread(rows: list[dict[str, str]], name: str) -> str:
    """Mean ± standard deviation over the seeds that have the number."""
    values = [float(row[name]) for row in rows if row.get(name)]
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def table() -> str:
    """Markdown: a row for each kind of run, evaluated with 2,000 responses after training."""
    found = sorted(read(ROWS), key=lambda row: row["seed"])
    columns = {"judge": "judge", "win rate": "win_rate", "r": "score", "KL": "kl"}
    columns |= {"words": "length", "share of the bound": "share"}
    lines = [f"| | seeds | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for (script, model, flags), name in NAMES.items():
        rows = [row for row in found if key_of(row) == (script, model, flags)]
        if script == "best-of-n":  # the bound of the same reward model, from the run with BETA
            runs = [row for row in found if key_of(row) == ("rlhf", model, f"--kl-coef {BETA}")]
            for row, same in zip(rows, runs):
                assert row["seed"] == same["seed"]
                objective = float(row["score"]) - BETA * float(row["kl"])  # or more
                row["share"] = objective / float(same["bound"])
        texts = [spread(rows, column) for column in columns.values()]
        if script == "best-of-n" and rows:
            texts[3] = f"≤ {float(rows[0]['kl']):.2f}"
        lines += [f"| {name} | {len(rows)} | {' | '.join(texts)} |"] * bool(rows)
    return "\n".join(lines)


def curve(rows: list[dict[str, str]], step: str) -> np.ndarray:
    """(points, 4): step, √KL, the judge's score and r, means over the seeds."""
    points = {}
    for row in rows:
        numbers = [float(row[x]) for x in ("kl", "judge", "score")]
        points.setdefault(int(row[step]), []).append(numbers)
    means = [(step, *np.mean(values, 0)) for step, values in sorted(points.items())]
    return np.array([(step, max(kl, 0) ** 0.5, judge, r) for step, kl, judge, r in means])


def figure(path: Path) -> None:
    """The judge's score (solid) and r (dashed) over the responses, and over √KL."""
    panels = [("transformer", 0), ("transformer", 1), ("bag", 1)]
    drawing, axes = plt.subplots(1, 3, figsize=(12, 4.6), layout="constrained", sharey=True)
    handles = {}
    for axis, (model, x) in zip(axes, panels):
        lines = {}
        for beta in ORDER:
            key = "rlhf", model, f"--kl-coef {beta}"
            rows = [row for row in read(CURVES) if key_of(row) == key]
            lines[f"β = {beta}"] = curve(rows, "step")
        best = [row for row in read(ROWS) if key_of(row)[:2] == ("best-of-n", model)]
        lines["best of n = 2 … 256"] = curve(best if x else [], "flags")
        for i, (name, line) in enumerate(lines.items()):
            if not len(line):
                continue
            style = {"color": plt.get_cmap("plasma")(i / 6.5)}
            if i == len(ORDER):
                style = {"color": "black", "marker": ".", "zorder": 3}
            (handles[name],) = axis.plot(line[:, x], line[:, 2], linewidth=1.8, **style)
            axis.plot(line[:, x], line[:, 3], linewidth=1, linestyle="--", **style)
        where = "square root of the KL divergence from π_ref" if x else "responses"
        axis.set(title=f"reward model: {model}", xlabel=where, ylim=(-6, 10))
        axis.set_xlim(0, 9 if x else None)
        axis.spines[["top", "right"]].set_visible(False)
        axis.axhline(0, color="grey", linewidth=0.5)
    axes[0].set_ylabel("solid: the judge's score, dashed: the learned r")
    drawing.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles))
    drawing.savefig(path, dpi=150)
    plt.close(drawing)


def prepare() -> None:
    """Creates the CSV files, which two processes must not do at a time."""
    rows = [*KEY, "step", "seconds", *EVALUATION, "commit"]
    for path, columns in {ROWS: rows, CURVES: [*KEY, "step", *METRICS]}.items():
        if not path.exists():
            path.write_text(",".join(columns) + "\n")
        if path.open().readline().strip().split(",") != columns:
            sys.exit(f"{path} has other columns. Move it away first")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="+", default=["301", "302", "303", "304", "305"])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    prepare()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    variants = ("rlhf", "transformer"), ("grpo", "transformer"), ("rlhf", "bag")
    jobs = [(*variant, seed) for variant in variants for seed in options.seeds]
    with ProcessPoolExecutor(options.workers) as pool:
        list(pool.map(run, *zip(*jobs)))


if __name__ == "__main__":
    main()
