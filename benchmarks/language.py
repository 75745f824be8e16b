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
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from run import RESULTS, ROOT, WORK, append, commit, read

sys.path.insert(0, str(ROOT))
import rlhf  # noqa: E402

ROWS, CURVES = RESULTS / "language.csv", RESULTS / "language_curves.csv"
METRICS = "judge win_rate reward kl length bound sample_size share".split()
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


def best_of_n(job: dict, folder: Path) -> None:
    """Of n responses of the reference, the one with the highest reward; n = 2, 4, ..., 256."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    reference = rlhf.Transformer(len(rlhf.WORDS))
    reward_model = rlhf.RewardModel(job["reward_model"])
    reference.load_state_dict(state["reference"])
    reward_model.load_state_dict(state["reward_model"])
    torch.manual_seed(int(job["seed"]))
    with torch.no_grad():
        batches = rlhf.prompts_of(50_000).split(1_000)
        tokens = torch.cat([rlhf.write(reference, prompts) for prompts in batches])
        rewards = torch.cat([reward_model(x) for x in tokens.split(1_000)])
    shape = -1, len(rlhf.TOPICS)
    rewards, order = rewards.reshape(shape).double().sort(0)  # (N, prompts), from low to high
    judge = rlhf.judged(tokens).reshape(shape).double().gather(0, order)
    ranks = torch.arange(len(rewards) + 1, dtype=torch.float64) / len(rewards)
    for n in (2**k for k in range(1, 9)):
        chosen = (ranks**n).diff().unsqueeze(-1)  # P(the best of n has this rank)
        row = job | {"script": "best-of-n", "flags": str(n), "step": "", "seconds": ""}
        row |= {x: "" for x in METRICS} | {"kl": round(math.log(n) - (n - 1) / n, 4)}
        row |= {"judge": round((chosen * judge).sum(0).mean().item(), 4)}
        row |= {"reward": round((chosen * rewards).sum(0).mean().item(), 4)}
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
