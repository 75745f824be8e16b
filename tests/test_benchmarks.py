"""benchmarks/: a run is recorded once and resumes, tables and marks by hand, pages, pictures."""

import argparse
import importlib
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import ablations
import language
import plot
import report
import run as runner
import speed

FLAGS = "--num-envs 2 --num-steps 32 --num-minibatches 4 --update-epochs 1 --total-timesteps 512"
PNG = b"\x89PNG\r\n"


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """run.py on CartPole-v1 with results in an empty folder; a list of the scripts' commands."""
    commands, real = [], subprocess.run

    def recorded(command, **more):
        if command[0] != sys.executable:
            return real(command, **more)
        commands.append(command)
        return main.instead(command, more) if main.instead else real(command, **more)

    def main(*words: str) -> None:
        words = ["run.py", "--scripts", "ppo", "--env-ids", "CartPole-v1", *words]
        monkeypatch.setattr(sys, "argv", [*words, "--eval-episodes", "1"])
        runner.main()

    main.instead, main.commands, main.real = None, commands, real
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runner, "WORK", tmp_path / "work")
    monkeypatch.setattr(subprocess, "run", recorded)
    monkeypatch.setitem(runner.FLAGS, ("ppo", "CartPole-v1"), FLAGS)
    return main


def test_an_interrupted_run_resumes_and_is_recorded_once(benchmark, tmp_path, capsys):
    def half(command, more):
        done = benchmark.real([*command, "--total-timesteps", "256"], **more)
        done.returncode = -9  # as if it had been killed then
        return done

    benchmark.instead = half
    with pytest.raises(SystemExit, match="1 of 1 runs failed"):
        benchmark("--seeds", "7", "7")
    assert not runner.read(tmp_path / "results/runs.csv")
    benchmark.instead = None
    benchmark("--seeds", "7")
    assert ["--resume" in command for command in benchmark.commands] == [False, True]
    benchmark("--seeds", "7")
    assert len(benchmark.commands) == 2  # what is done is not run again
    benchmark("--seeds", "7", "8", "--print")
    assert capsys.readouterr().out.splitlines()[-1].count("--seeds 8") == 1

    (row,) = runner.read(tmp_path / "results/runs.csv")
    assert list(row.values())[:5] == ["ppo", "CartPole-v1", "7", FLAGS, "512"]
    assert row["resumed"] == "yes" and float(row["training_return"]) >= 8
    expected = f"python ppo.py --env-id CartPole-v1 --seed 7 {FLAGS} --eval-episodes 1"
    assert row["command"] == expected
    points = runner.read(tmp_path / "results/curves/ppo__CartPole-v1.csv")
    assert {point["seed"] for point in points} == {"7"} and int(points[-1]["step"]) <= 512
    assert not list((tmp_path / "work").iterdir())


def test_a_failure_stops_no_other_job_and_divergence_is_final(benchmark, tmp_path, capsys):
    def fail(command, more):
        assert "3" not in command, "an error of another kind"
        return subprocess.CompletedProcess(command, 1, "", "FloatingPointError: not finite")

    benchmark.instead = fail
    for text in ("FloatingPointError: not finite", "it diverged, see"):
        with pytest.raises(SystemExit, match="2 of 2 runs failed"):
            benchmark("--seeds", "3", "4", "--workers", "1")
        printed = capsys.readouterr().out
        assert text in printed and "ppo__CartPole-v1__3: AssertionError" in printed
    assert [command[command.index("--seed") + 1] for command in benchmark.commands] == list("343")


def test_thinned_curve():
    """(end of a hundredth of the steps, mean return of the episodes that ended in it)."""
    rows = [{"step": s, "episode_return": r} for s, r in (("3", 1), ("10.0", 3), ("11", 7))]
    assert runner.thinned(rows, 1000) == [(10, 2), (20, 7)]


def test_flags_exist():
    """Peers have our steps and their own settings; every flag of the table is the script's."""
    assert runner.flags_of("sb3_trpo", "CartPole-v1") == "--total-timesteps 100000"
    assert runner.flags_of("sb3_ppo", "Hopper-v4") == ""
    tables = [(script, flags) for (script, _), flags in runner.FLAGS.items()]
    tables += [*speed.EQUAL.items()] + [
        ("ppo", flags) for _, flags, _ in ablations.VARIANTS.values()
    ]
    for script, flags in tables:
        text = (ROOT / f"{script}.py").read_text()
        for flag in (word for word in flags.split() if word.startswith("--")):
            name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
            assert f"\n    {name}: " in text, f"{script}.py has no {flag}"


def test_ablations_apply():
    text = (ROOT / "ppo.py").read_text()
    for variant, (_, flags, changes) in ablations.VARIANTS.items():
        patched = ablations.patched(variant, text)
        compile(patched, variant, "exec")
        assert (patched != text) == bool(changes) and (changes or flags or variant == "default")


def a_row(seed: int, training: float, evaluation: float, **more: str) -> dict:
    return {
        "script": "ppo", "env_id": "Hopper-v4", "seed": str(seed), "flags": "", "steps": "1001472",
        "training_return": str(training), "evaluation_return": str(evaluation), "commit": "abc",
        "command": f"python ppo.py --seed {seed} --eval-episodes 100",
    } | more  # fmt: skip


def test_table_of_returns(tmp_path, monkeypatch):
    """Other flags and shorter evaluations are left out; a row that is there twice stops."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    rows = [a_row(12, 1, 1200), a_row(3, 3, 1600), a_row(5, 7, 8, flags="--gamma 0.9")]
    rows.append(a_row(4, 5, 6, command="python ppo.py --seed 4 --eval-episodes 10"))
    runner.append(tmp_path / "runs.csv", rows)
    lines = report.returns(["Hopper-v4", "Walker2d-v4"]).splitlines()
    cell = "**2** ± 1.4<br>evaluated 1,400 ± 283<br>2 seeds, 1M<br>✗ 2,680 OmniSafe"
    assert lines == [
        "|  | Hopper-v4 | Walker2d-v4 |", "| --- | --- | --- |", f"| ppo.py | {cell} | - |",
    ]  # fmt: skip
    assert report.commits() == "ppo.py abc."
    runner.append(tmp_path / "runs.csv", rows[:1])
    with pytest.raises(AssertionError, match="a row twice"):
        report.cells()


def test_marks():
    """≈ where the published value, here 2,680, lies in the interval of our mean."""
    assert report.mark("ppo", "Hopper-v4", [a_row(1, 0, 2000), a_row(2, 0, 4000)]) == "✓"
    assert report.mark("ppo", "Hopper-v4", [a_row(i, 0, 2600) for i in range(5)]) == "✗"
    assert (
        report.mark("ppo", "Hopper-v4", [a_row(i, 0, x) for i, x in enumerate([0, 9e3] * 3)]) == "≈"
    )
    assert report.mark("ppo", "Hopper-v4", [a_row(i, 0, 2680) for i in range(5)]) == "✓"
    # Two numbers, drawn with replacement: a quarter of the means are the lower one.
    assert report.interval([1.0, 2.0]) == (1, 2) and report.interval([5.0]) == (5, 5)


def test_fill():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb"
    assert report.fill(text, "x", r"\1 new") == "a\n<!-- x -->\n\\1 new\n<!-- /x -->\nb"
    with pytest.raises(AssertionError, match="no single place"):
        report.fill(text, "y", "")


@pytest.mark.parametrize("page", report.PAGES)
def test_pages_have_the_tables_of_the_results(page):
    text = (ROOT / page).read_text()
    for name in report.PAGES[page]:
        assert report.fill(text, name, report.TABLES[name]()) == text, f"run report.py: {name}"


def test_curves_are_smoothed_over_neighbours(tmp_path, monkeypatch):
    """A hundredth's value is the mean over 5 % of the steps, or a line where points are rare."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    runner.append(tmp_path / "runs.csv", [a_row(1, 0, 0), a_row(2, 0, 0)])
    points = [{"seed": "1", "step": step, "return": step % 2} for step in range(1, 101)]
    points += [{"seed": "2", "step": step, "return": step} for step in (1, 51, 100)]
    runner.append(tmp_path / "curves/ppo__Hopper-v4.csv", points)
    steps, values = report.curves("ppo", "Hopper-v4")
    assert list(steps) == list(range(1, 101)) and list(values[1]) == pytest.approx(steps)
    assert values[0, 9] == pytest.approx(2 / 5) and values[0, 10] == pytest.approx(3 / 5)
    report.curves_figure(tmp_path / "x.png", [[("Hopper-v4", ["ppo"])]])
    assert (tmp_path / "x.png").read_bytes().startswith(PNG)


def test_speed_is_measured_after_the_warm_up(tmp_path, monkeypatch):
    rows = [{"step": str(100 * i), "seconds": s} for i, s in enumerate("9 10 12 14 99".split(), 1)]
    assert speed.steps_per_second(rows, 2, 2) == 200 / 4
    assert report.ratio([20, 30, 10], [10, 10, 10]) == "**2.00** (1.00–3.00)"

    monkeypatch.setattr(speed, "PATH", tmp_path / "speed.csv")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    options = dict(parts=["peers", "against"], scripts=["ppo"], against="abc", sbx_python="python")
    jobs = speed.jobs(argparse.Namespace(**options, quick=True))
    variants = ["eager", "compile", "SB3", "SBX"]
    assert [x["variant"] for x in jobs] == [
        *variants, "eager", "compile", "eager then", "compile then",
    ]  # fmt: skip
    for fresh, numbers in (set(), [[1, 1, 1, 1]]), (set(), [[6, 9, 3, 2], [8, 12, 2, 3]]):
        for turn, values in enumerate(numbers):
            for job, value in zip(jobs, values):
                speed.write(job, turn, {"steps/s": value}, fresh)
    found = report.speeds("peers")["ppo"]  # the second day's rows replace those of the first
    assert [found[x] for x in variants] == [[6, 8], [9, 12], [3, 2], [2, 3]]
    ratios = ["**3.00** (2.00–4.00)", "**4.50** (3.00–6.00)"]  # to SB3
    ratios += ["**2.83** (2.67–3.00)", "**4.25** (4.00–4.50)"]
    assert report.peers().splitlines()[-1].split(" | ")[-4:] == [*ratios[:3], f"{ratios[3]} |"]


def test_plot(tmp_path, monkeypatch):
    for seed in (1, 2):
        folder = tmp_path / f"runs/{seed}"
        folder.mkdir(parents=True)
        content = {"script": "ppo", "args": {"env_id": "Hopper-v4"}}
        (folder / "args.json").write_text(json.dumps(content))
        rows = [f"{10 * t},{t},{seed * t},9" for t in range(1, 11)]
        header = "step,seconds,episode_return,length"
        (folder / "episodes.csv").write_text("\n".join([header, *rows, ""]))
    (tmp_path / "runs/empty").mkdir()  # no episode has ended yet
    steps, returns = plot.curve(tmp_path / "runs/2", share=0.2)
    assert steps[-1] == 100 and returns[-1] == (2 * 9 + 2 * 10) / 2
    folders = [str(path) for path in sorted(tmp_path.glob("runs/*"))]
    for extra in [], ["--each"]:
        monkeypatch.setattr(sys, "argv", ["plot.py", *folders, "--out", "x.png", *extra])
        monkeypatch.chdir(tmp_path)
        plot.main()
        assert (tmp_path / "x.png").read_bytes().startswith(PNG)


# ── Language models ───────────────────────────────────────────────────────────────────────────────


def test_best_of_n_by_enumeration():
    """All pairs with replacement of four responses to each of two prompts."""
    scores = torch.tensor([[0.3, 1.0, -1.0, 0.5], [2.0, 1.0, 4.0, 3.0]])
    judge = torch.tensor([[1.0, 5.0, 0.0, 2.0], [2.0, -3.0, 7.0, 1.0]])
    total = 0.0
    for prompt in (0, 1):
        for pair in itertools.product(range(4), repeat=2):
            total += judge[prompt, max(pair, key=lambda i: scores[prompt, i])].item() / 32
    assert math.isclose(language.best_of(2, scores, judge), total)
    assert language.best_of(1, scores, judge) == judge.mean()


def test_what_the_bag_is_blind_to(tmp_path):
    """To order and grammar; the transformer is not. The replacements fit both scripts."""
    for script in ("rlhf", "grpo"):
        text = language.patched((ROOT / f"{script}.py").read_text(), "bag")
        assert "pairs.pt" in text
        (tmp_path / f"bag_{script}.py").write_text(text)
    sys.path.insert(0, str(tmp_path))
    bag = importlib.import_module("bag_rlhf")
    sys.path.remove(str(tmp_path))
    rlhf = language.rlhf

    def tokens_of(*texts):
        rows = [[rlhf.WORDS.index(word) for word in text.split()] for text in texts]
        return torch.tensor([row + [rlhf.STOP] * (1 + rlhf.T - len(row)) for row in rows])

    pair = tokens_of("food the food was good but cold .", "food cold the but good was food .")
    twice = tokens_of("food good .", "food good good .", "food good good good .")
    for module, blind in (bag, True), (rlhf, False):
        torch.manual_seed(1)
        with torch.no_grad():
            reward_model = module.RewardModel()
            first, second = reward_model(pair)
            one, two, three = reward_model(twice)
        assert (abs(first - second) < 1e-5) == blind
        assert (abs((three - two) - (two - one)) < 1e-5) == blind  # no repetition is too much


def test_runs_of_language_models(tmp_path, monkeypatch):
    """All runs of one seed from the same stages, the rows, and none of them twice; the pictures."""
    monkeypatch.setattr(language, "ROWS", tmp_path / "language.csv")
    monkeypatch.setattr(language, "CURVES", tmp_path / "language_curves.csv")
    monkeypatch.setattr(language, "WORK", tmp_path)
    names = ["rlhf.py, β = 0.4", "rlhf.py, β = 0", "DPO, β = 0.4, 3 epochs", "best of 16"]
    kept = {key: name for key, name in language.NAMES.items() if name in names}
    monkeypatch.setattr(language, "NAMES", kept)
    real, commands = language.start, []

    def start(script, *words):
        commands.append(words)
        tiny = "--sft-texts 64 --pairs 64 --rm-epochs 1 --sft-epochs 1 --ref-responses 10".split()
        tiny += "--eval-responses 2 --batch-size 16 --minibatch-size 16".split()
        words = ["256" if word == "25600" else word for word in words]
        real(script, *words, *tiny)
        if len(commands) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(language, "start", start)
    language.prepare()
    with pytest.raises(KeyboardInterrupt):  # the first run after the stages has no row yet
        language.run("rlhf", "transformer", "7")
    for _ in range(2):
        language.run("rlhf", "transformer", "7")
    assert [words[-2:] for words in commands] == [
        ("--total-responses", "0"), ("--kl-coef", "0.4"), ("--kl-coef", "0.4"), ("--kl-coef", "0"),
    ]  # fmt: skip
    rows = language.read(language.ROWS)
    assert [row["flags"] for row in rows] == [
        *(str(2**k) for k in range(1, 9)), "--kl-coef 0.4", "--kl-coef 0", "3",
    ]  # fmt: skip
    assert rows[9]["step"] == "256" and rows[9]["rm_accuracy"]
    assert all(float(row["kl"]) > 0 for row in rows)
    curves = language.read(language.CURVES)
    assert [row["step"] for row in curves] == ["64", "128", "192", "256"] * 2
    assert language.spread([{"kl": "1"}, {"kl": "3"}, {"kl": ""}], "kl") == "2.00 ± 1.41"
    lines = [line.split(" | ") for line in language.table().splitlines()[2:]]
    assert [line[0].removeprefix("| ") for line in lines] == names
    assert lines[-1][5] == "≤ 1.84" and all(line[-1] != "- |" for line in lines)
    language.figure(tmp_path / "language.png")
    assert (tmp_path / "language.png").read_bytes().startswith(PNG)
