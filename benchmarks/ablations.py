"""What each addition to PPO is worth: one of them at a time taken out of ppo.py.

    python benchmarks/ablations.py --seeds 1 2

A variant is a list of flags and of replacements in the text of ppo.py, each of which must match
exactly once. Results go to results/ablations.csv, one row for each run; a run with a row is not
repeated. Rows of another commit must be moved away first: variants of two codes are not comparable.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from run import RESULTS, ROOT, append, commit, read

ABLATIONS = RESULTS / "ablations.csv"
ENV_ID, FLAGS = "HalfCheetah-v4", "--total-timesteps 500000"  # half the steps, twice the runs
# 97.5 % quantiles of Student's t for 2, 3, ..., 20 seeds; the last one serves for more as well.
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
STUDENT += [2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093]

VALUES = """            with torch.no_grad():
                values, next_values = critic(observations), critic(next_observations)  # (T, N)
            advantages = gae(
                rewards, values, next_values, terminations, truncations, args.gamma, args.gae_lambda
            )
"""
OBS_NORM = "        critic.obs_norm.update(observations.flatten(0, 1))\n"
RETURN_NORM = "        critic.update_return_norm(targets.flatten())\n"
ACTOR_NORM = "        actor.obs_norm.update(observations.flatten(0, 1))\n"
ENDS = "next_observations, terminations, truncations = samples\n"

# name: (what it says in the table, flags, [(old text, new text), ...])
VARIANTS = {
    "default": ("ppo.py as it is", "", []),
    "advantages-once": ("[impl 7] advantages once per rollout, not per epoch", "", [(VALUES, "")]),
    "targets-anew": (
        "[impl 7] value targets in every epoch anew, not once per rollout",
        "",
        [(VALUES, VALUES + "            targets = advantages + values\n")],
    ),
    "no-obs-norm": (
        "[impl 1] observations not standardised",
        "",
        [(OBS_NORM, ""), (ACTOR_NORM, "")],
    ),
    "no-return-norm": (
        "[impl 4] values and their loss in the rewards' units",
        "",
        [(RETURN_NORM, "")],
    ),
    "statistics-last": (
        "[impl 4] the critic's statistics move after its fit, not before",
        "",
        [(OBS_NORM + RETURN_NORM, ""), (ACTOR_NORM, ACTOR_NORM + OBS_NORM + RETURN_NORM)],
    ),
    "no-norm-adv": ("[impl 8] advantages not standardised", "--no-norm-adv", []),
    "no-anneal-lr": ("[impl 9] constant learning rate", "--no-anneal-lr", []),
    "gamma-0.99": ("γ = 0.99, λ = 0.95", "--gamma 0.99 --gae-lambda 0.95", []),
    "lambda-0.9": ("λ = 0.9", "--gae-lambda 0.9", []),
    "std-1": ("[impl 3] σ starts at 1", "", [("-0.5))  # log σ", "0.0))  # log σ")]),
    "last-layer-1": (
        "[impl 2] the policy's last layer not scaled down",
        "",
        [("output_gain=0.01", "output_gain=1.0")],
    ),
    "critic-1": (
        "[impl 2] the critic's last layer not 0 at first",
        "",
        [("1, output_gain=0.0", "1, output_gain=1.0")],
    ),
    "no-stagger": ("[impl 6] the first episodes not cut at different times", "--no-stagger", []),
    "8x256": ("8 environments × 256 steps, not 64 × 32", "--num-envs 8 --num-steps 256", []),
    "limit-ends": (
        "[impl 5] time limits treated as terminations",
        "",
        [(ENDS, ENDS + "        terminations = terminations | truncations\n")],
    ),
}


def patched(text: str, changes: list[tuple[str, str]]) -> str:
    """The text of a script with replacements, each of which must match exactly once."""
    for old, new in changes:
        assert text.count(old) == 1, f"found {text.count(old)} times: {old}"
        text = text.replace(old, new)
    return text


def start(script: Path, *flags: str) -> None:
    command = [sys.executable, str(script), *flags]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


def run(variant: str, seed: str, compile: bool) -> None:
    """One run, in a folder of its own; adds its row."""
    _, flags, changes = VARIANTS[variant]
    revision = commit("ppo.py")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "ppo.py")
        script.write_text(patched((ROOT / "ppo.py").read_text(), changes))
        words = ["--env-id", ENV_ID, "--seed", seed, "--eval-episodes", "20", *flags.split()]
        start(script, *words, *FLAGS.split(), *["--compile"] * compile)
        (path,) = Path(folder).glob("runs/*/summary.json")
        summary = json.loads(path.read_text())
    row = {"variant": variant, "seed": seed, "steps": summary["step"]}
    row |= {name: round(summary[name], 1) for name in ("training_return", "evaluation_return")}
    row |= {"seconds": round(summary["seconds"]), "commit": revision}
    append(ABLATIONS, [row])
    print(*row.values(), flush=True)


def interval(numbers: list[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval."""
    n = len(numbers)
    return statistics.mean(numbers), STUDENT[min(n, 20) - 2] * statistics.stdev(numbers) / n**0.5


def difference(returns: dict[str, float], default: dict[str, float]) -> str:
    """The mean difference over the seeds that both have ± half of its 95 % interval (paired t)."""
    differences = [returns[seed] - default[seed] for seed in returns if seed in default]
    if len(differences) < 2:
        return "-"
    mean, half = interval(differences)
    return f"{mean:+,.0f} ± {half:,.0f}" + ", within chance" * (abs(mean) <= half)


def table() -> str:
    """Markdown: each variant's training return, seed by seed, and what differs from the default."""
    found = {}
    for row in read(ABLATIONS):
        found.setdefault(row["variant"], {})[row["seed"]] = float(row["training_return"])
    lines = [f"| {ENV_ID}, 500,000 steps | training return by seed | difference |", "|---|---|---|"]
    for variant in (name for name in VARIANTS if name in found):
        seeds = " · ".join(f"{number:,.0f}" for number in found[variant].values())
        default = found.get("default", {}) if variant != "default" else {}
        change = difference(found[variant], default)
        lines.append(f"| {VARIANTS[variant][0]} | {seeds} | {change} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", default=["1", "2"])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--compile", action="store_true", help="faster, the same within rounding")
    options = parser.parse_args()
    rows = read(ABLATIONS)
    if others := {row["commit"] for row in rows} - {commit("ppo.py")}:
        sys.exit(f"{ABLATIONS} has rows of other commits: {', '.join(others)}. Move it away first")
    done = {(row["variant"], row["seed"]) for row in rows}
    jobs = [(variant, seed) for seed in options.seeds for variant in options.variants]
    jobs = [job for job in jobs if job not in done]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(lambda job: run(*job, options.compile), jobs))


if __name__ == "__main__":
    main()
