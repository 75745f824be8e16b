"""What each addition to PPO is worth: one of them taken out of ppo.py at a time.

    python benchmarks/ablations.py --seeds 1 2
    python benchmarks/ablations.py --table

A variant is a list of flags and of replacements in the text of ppo.py, each of which must match
exactly once. Results go to benchmarks/results/ablations.csv, one row for each run; what stands there
already is not run again, so an interrupted benchmark goes on where it was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from run import RESULTS, ROOT, append, code_hash, commit, read
from same_code import as_present

ABLATIONS = RESULTS / "ablations.csv"
ENV_ID, FLAGS = "HalfCheetah-v4", "--total-timesteps 500000"  # half the steps, twice the runs

ADVANTAGES = (
    "                advantages = gae(*transitions, args.gamma, args.gae_lambda)  # (T, N)\n"
)
STATISTICS = """        critic.obs_norm.update(everyone)
        critic.update_return_norm(of_all(targets.flatten()))
"""

# name: (what it says in the table, flags, [(old text, new text), ...])
VARIANTS = {
    "default": ("ppo.py as it is", [], []),
    "advantages-once": (
        "advantages computed once per rollout, not in every epoch",
        [],
        [
            (
                "                values, next_values = critic(observations), critic(next_observations)  # (T, N)\n                transitions = rewards, values,",
                "                transitions = rewards, old_values,",
            ),
        ],
    ),
    "targets-anew": (
        "value targets computed in every epoch anew, not once per rollout",
        [],
        [(ADVANTAGES, ADVANTAGES + "                targets = advantages + values\n")],
    ),
    "no-obs-norm": (
        "observations not standardised",
        [],
        [
            ("        actor.obs_norm.update(everyone)\n", ""),
            ("        critic.obs_norm.update(everyone)\n", ""),
        ],
    ),
    "no-return-norm": (
        "values and their loss in the rewards' own units",
        [],
        [("        critic.update_return_norm(of_all(targets.flatten()))\n", "")],
    ),
    "statistics-last": (
        "the critic's statistics move after its fit, not before",
        [],
        [(STATISTICS, ""), ("        # 6. Discard", STATISTICS + "        # 6. Discard")],
    ),
    "no-norm-adv": ("advantages not standardised", ["--no-norm-adv"], []),
    "no-anneal-lr": ("constant step size", ["--no-anneal-lr"], []),
    "gamma-0.99": ("γ = 0.99, λ = 0.95", ["--gamma", "0.99", "--gae-lambda", "0.95"], []),
    "lambda-0.9": ("λ = 0.9", ["--gae-lambda", "0.9"], []),
    "std-1": ("σ starts at 1", [], [("torch.full((outputs,), -0.5)", "torch.zeros(outputs)")]),
    "last-layer-1": ("the policy's last layer not scaled down", [], [("output_gain=0.01", "output_gain=1.0")]),
    "8x256": ("8 environments × 256 steps, not 64 × 32", ["--num-envs", "8", "--num-steps", "256"], []),
    "limit-ends": (
        "time limits treated as terminations",
        [],
        [
            (f"{values}, next_values, terminations, truncations\n", f"{values}, next_values, terminations | truncations, truncations\n")
            for values in ("old_values", " values")
        ],
    ),
}  # fmt: skip


def patched(variant: str, text: str) -> str:
    """The text of ppo.py with the variant's replacements."""
    for old, new in VARIANTS[variant][2]:
        assert text.count(old) == 1, f"{variant}: found {text.count(old)} times: {old}"
        text = text.replace(old, new)
    return text


def run(variant: str, seed: str, text: str, compiled: bool, revision: str) -> dict:
    """One run, in a folder of its own; returns its row."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ppo.py").write_text(patched(variant, text))
        command = [sys.executable, "-W", "ignore", "ppo.py", "--env-id", ENV_ID, "--seed", seed]
        command += ["--eval-episodes", "20", *VARIANTS[variant][1], *FLAGS.split()]
        command += ["--compile"] * compiled
        done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{variant} {seed}: {done.stderr}")
        (path,) = Path(folder).glob("runs/*/summary.json")
        summary = json.loads(path.read_text())
    return {
        "variant": variant, "seed": seed, "steps": summary["step"],
        "training_return": round(summary["training_return"], 1),
        "evaluation_return": round(summary["evaluation_return"], 1),
        "seconds": round(summary["seconds"]), "commit": revision,
    }  # fmt: skip


def code_at(revision: str) -> str:
    """The digest of ppo.py at a commit; of nothing if this clone does not have the commit."""
    show = ["git", "-C", str(ROOT), "show", f"{revision}:ppo.py"]
    return code_hash(subprocess.run(show, check=False, capture_output=True, text=True).stdout)


def table() -> str:
    """Markdown: each variant's training return, seed by seed, its mean, and its mean change."""
    found, lines = {}, []
    for row in read(ABLATIONS):
        found.setdefault(row["variant"], {})[row["seed"]] = float(row["training_return"])
    for variant in (name for name in VARIANTS if name in found):
        returns, default = found[variant], found.get("default", {})
        # Of the seeds that both have: seeds differ by more than most variants do.
        changes = [returns[seed] - default[seed] for seed in returns if seed in default]
        change = f"{statistics.mean(changes):+,.0f}" if changes else "-"
        seeds = " · ".join(f"{number:,.0f}" for number in returns.values())
        mean = statistics.mean(returns.values())
        lines.append(f"| {VARIANTS[variant][0]} | {seeds} | {mean:,.0f} | {change} |")
    head = f"| {ENV_ID}, 500,000 steps | training return, seed by seed | mean | change |"
    return "\n".join([head, "|---|---|---|---|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", default=["1", "2"])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--compile", action="store_true", help="faster, the same within rounding")
    parser.add_argument("--table", action="store_true", help="print the results, run nothing")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    rows = read(ABLATIONS)
    done = {(row["variant"], row["seed"]) for row in rows}
    jobs = [(variant, seed) for seed in options.seeds for variant in options.variants]
    revision, text, lock = commit(["ppo"]), (ROOT / "ppo.py").read_text(), threading.Lock()
    same, commits = as_present("ppo"), sorted({row["commit"] for row in rows})
    if older := [other for other in commits if code_at(other) not in same]:
        sys.exit(
            f"{ABLATIONS} has rows of commits whose ppo.py may do something else: "
            f"{' '.join(older)}. Changes can be compared within one version only. If just its "
            "plumbing differs, run same_code.py; else move the file away, and run all anew"
        )
    os.environ["OMP_NUM_THREADS"] = "1"

    def work(job: tuple[str, str]) -> None:
        row = run(*job, text, options.compile, revision)
        with lock:
            append(ABLATIONS, [row])
            print(*row.values(), flush=True)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(work, (job for job in jobs if job not in done)))


if __name__ == "__main__":
    main()
