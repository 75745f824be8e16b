"""Returns of ppo.py, and what each addition to PPO is worth: one of them taken out at a time.

    python benchmarks/ablations.py returns --env-ids HalfCheetah-v4 Hopper-v4 --seeds 1 2 3
    python benchmarks/ablations.py ablations --seeds 1 2
    python benchmarks/ablations.py tables

A variant is a list of flags and of replacements in the text of ppo.py, each of which must match
exactly once. Results go to benchmarks/results/ppo.csv, one row for each run; what stands there
already is not run again, so an interrupted benchmark goes on where it was.
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
    "lambda-0.95": ("λ = 0.95", ["--gae-lambda", "0.95"], []),
    "std-1": ("σ starts at 1", [], [("torch.full((outputs,), -0.5)", "torch.zeros(outputs)")]),
    "last-layer-1": ("the policy's last layer not scaled down", [], [("output_gain=0.01", "output_gain=1.0")]),
    "8x256": ("8 environments × 256 steps, not 64 × 32", ["--num-envs", "8", "--num-steps", "256"], []),
    "limit-ends": (
        "a time limit taken for an end",
        [],
        [("next_values, terminations, truncations\n                adv", "next_values, terminations | truncations, truncations\n                adv")],
    ),
}  # fmt: skip

# Flags of the environments that want others than the defaults, which are for MuJoCo.
ENV_FLAGS = {
    "CartPole-v1": "--total-timesteps 100000",
    "Acrobot-v1": "--total-timesteps 500000",
    "Pendulum-v1": "--total-timesteps 300000 --learning-rate 1e-3 --gamma 0.9 --num-envs 8 --num-steps 256",
}

ABLATION_FLAGS = "--total-timesteps 500000"  # half the steps, twice the runs


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


def run(variant: str, env_id: str, seed: str, flags: str, revision: str) -> dict:
    """One run, in a folder of its own; returns its row."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ppo.py").write_text(patched(variant))
        command = [sys.executable, "-W", "ignore", "ppo.py", "--env-id", env_id, "--seed", seed]
        command += ["--eval-episodes", "100", *VARIANTS[variant][1], *flags.split()]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{variant} {env_id} {seed}: {done.stderr}")
        (path,) = Path(folder).glob("runs/*/summary.json")
        summary = json.loads(path.read_text())
    return {
        "variant": variant, "env_id": env_id, "seed": seed, "flags": flags, "steps": summary["step"],
        "training_return": round(summary["training_return"], 1),
        "evaluation_return": round(summary["evaluation_return"], 1),
        "seconds": round(summary["seconds"]), "commit": revision,
    }  # fmt: skip


def cells(rows: list[dict], column: str) -> str:
    """Each seed's return, and their mean, as two cells of a table."""
    numbers = [float(row[column]) for row in rows]
    return " · ".join(f"{x:,.0f}" for x in numbers) + f" | **{statistics.mean(numbers):,.0f}**"


def print_tables() -> None:
    """Markdown: returns with the defaults on each environment, and the ablations."""
    results = read_results()
    head = "training return, seed by seed | mean | evaluation, seed by seed | mean |"
    print(f"| environment | flags | {head}\n|---|---|---|---|---|---|")
    for env_id in dict.fromkeys(row["env_id"] for row in results):
        flags = ENV_FLAGS.get(env_id, "")
        key = env_id, "default", flags
        rows = [row for row in results if (row["env_id"], row["variant"], row["flags"]) == key]
        if rows:
            training, evaluation = (cells(rows, f"{x}_return") for x in ("training", "evaluation"))
            print(f"| {env_id} | {f'`{flags}`' if flags else ''} | {training} | {evaluation} |")
    print(f"\n| HalfCheetah-v4, 500,000 steps | {head}\n|---|---|---|---|---|")
    for variant, (title, _, _) in VARIANTS.items():
        key = variant, ABLATION_FLAGS
        rows = [row for row in results if (row["variant"], row["flags"]) == key]
        if rows:
            training, evaluation = (cells(rows, f"{x}_return") for x in ("training", "evaluation"))
            print(f"| {title} | {training} | {evaluation} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["returns", "ablations", "tables"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--env-ids", nargs="+", default=["HalfCheetah-v4"])
    parser.add_argument("--seeds", nargs="+", default=["1", "2", "3"])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.what == "tables":
        print_tables()
        return
    if options.what == "returns":
        jobs = [
            ("default", env_id, seed, ENV_FLAGS.get(env_id, ""))
            for seed in options.seeds
            for env_id in options.env_ids
        ]
    else:
        jobs = [
            (variant, "HalfCheetah-v4", seed, ABLATION_FLAGS)
            for seed in options.seeds
            for variant in options.variants
        ]
    names = "variant", "env_id", "seed", "flags"
    done = {tuple(row[name] for name in names) for row in read_results()}
    revision, lock = commit(), threading.Lock()
    os.environ["OMP_NUM_THREADS"] = "1"

    def work(job: tuple[str, str, str, str]) -> None:
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
        list(pool.map(work, (job for job in jobs if job not in done)))


if __name__ == "__main__":
    main()
