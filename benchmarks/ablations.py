"""What each addition to PPO is worth: ppo.py with one of them taken out at a time.

    python benchmarks/ablations.py --seeds 1 2 3 --workers 2

A variant is a list of flags and of replacements in the text of ppo.py, each of which must match
exactly once. Results go to benchmarks/results/ppo.csv, one row for each variant, environment and
seed; what stands there already is not run again. --table prints them as the README shows them.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "ppo.csv"

# name: (what it says in the table, flags, [(old text, new text), ...])
VARIANTS = {
    "default": ("ppo.py as it is", [], []),
    "advantages-once": (
        "advantages computed once per rollout, not in every epoch",
        [],
        [
            ("        for _ in range(args.update_epochs):", "        for epoch in range(args.update_epochs):"),
            ("            with torch.no_grad():\n                values, next", "            if epoch == 0:\n              with torch.no_grad():\n                values, next"),
        ],
    ),
    "no-obs-norm": (
        "observations not standardised",
        [],
        [
            ("        actor.obs_norm.update(observations.flatten(0, 1))\n", ""),
            ("        critic.obs_norm.update(observations.flatten(0, 1))\n", ""),
        ],
    ),
    "no-return-norm": (
        "values and their loss in the rewards' own units",
        [],
        [("        critic.return_norm.update(targets.flatten())\n", "")],
    ),
    "no-norm-adv": ("advantages not standardised", ["--no-norm-adv"], []),
    "no-anneal-lr": ("constant step size", ["--no-anneal-lr"], []),
    "std-1": ("σ starts at 1", [], [("torch.full((outputs,), -0.5)", "torch.zeros(outputs)")]),
    "last-layer-1": ("the policy's last layer not scaled down", [], [("output_gain=0.01", "output_gain=1.0")]),
    "8x256": ("8 environments × 256 steps, not 64 × 32", ["--num-envs", "8", "--num-steps", "256"], []),
    "limit-ends": (
        "a time limit taken for an end",
        [],
        [("ends = terminations, truncations", "ends = terminations | truncations, truncations")],
    ),
}  # fmt: skip

# Flags of the environments that want others than the defaults, which are for MuJoCo.
ENV_FLAGS = {
    "CartPole-v1": "--total-timesteps 100000",
    "Acrobot-v1": "--total-timesteps 500000",
    "Pendulum-v1": "--total-timesteps 300000 --learning-rate 1e-3 --gamma 0.9 --num-envs 8 --num-steps 256",
}


def patched(variant: str) -> str:
    """The text of ppo.py with the variant's replacements."""
    text = (ROOT / "ppo.py").read_text()
    for old, new in VARIANTS[variant][2]:
        assert text.count(old) == 1, f"{variant}: found {text.count(old)} times: {old}"
        text = text.replace(old, new)
    return text


def read_results() -> list[dict]:
    if not RESULTS.exists():
        return []
    with open(RESULTS) as file:
        return list(csv.DictReader(file))


def commit() -> str:
    """The commit that the results belong to; refuses scripts that differ from it."""
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "ppo.py"]).returncode:
        sys.exit("ppo.py has changes that are not committed; commit them first")
    return subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()


def run(variant: str, env_id: str, seed: int, revision: str) -> dict:
    """One run, in a folder of its own; returns its row."""
    flags = [*VARIANTS[variant][1], *ENV_FLAGS.get(env_id, "").split()]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ppo.py").write_text(patched(variant))
        command = [
            sys.executable,
            "-W",
            "ignore",
            "ppo.py",
            "--env-id",
            env_id,
            "--seed",
            str(seed),
        ]
        command += ["--eval-episodes", "100", *flags]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{variant} {env_id} {seed}: {done.stderr}")
        (path,) = Path(folder).glob("runs/*/summary.json")
        summary = json.loads(path.read_text())
    return {
        "variant": variant, "env_id": env_id, "seed": seed, "flags": " ".join(flags), "steps": summary["step"],
        "training_return": round(summary["training_return"], 1),
        "evaluation_return": round(summary["evaluation_return"], 1),
        "seconds": round(summary["seconds"]), "commit": revision,
    }  # fmt: skip


def print_table(env_id: str) -> None:
    rows = [row for row in read_results() if row["env_id"] == env_id]
    print("| variant | training return, each seed | mean | evaluation, mean |\n|---|---|---|---|")
    for variant, (title, _, _) in VARIANTS.items():
        found = [row for row in rows if row["variant"] == variant]
        if found:
            returns = [float(row["training_return"]) for row in found]
            evaluation = statistics.mean(float(row["evaluation_return"]) for row in found)
            each = " · ".join(f"{x:,.0f}" for x in returns)
            print(f"| {title} | {each} | {statistics.mean(returns):,.0f} | {evaluation:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--env-ids", nargs="+", default=["HalfCheetah-v4"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if options.table:
        for env_id in options.env_ids:
            print_table(env_id)
        return
    revision, lock = commit(), threading.Lock()
    done = {(row["variant"], row["env_id"], row["seed"]) for row in read_results()}
    jobs = [
        (variant, env_id, seed)
        for variant in options.variants
        for env_id in options.env_ids
        for seed in options.seeds
        if (variant, env_id, str(seed)) not in done
    ]
    os.environ["OMP_NUM_THREADS"] = "1"

    def work(job: tuple[str, str, int]) -> None:
        row = run(*job, revision)
        with lock:
            RESULTS.parent.mkdir(exist_ok=True)
            new = not RESULTS.exists()
            with open(RESULTS, "a") as file:
                writer = csv.DictWriter(file, row, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(*row.values(), flush=True)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(work, jobs))


if __name__ == "__main__":
    main()
