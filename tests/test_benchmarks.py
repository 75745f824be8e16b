"""benchmarks/: a run is recorded once and resumes, tables and marks by hand, pages and headers."""

import argparse
import itertools
import math
import subprocess
import sys

import ablations
import language
import pytest
import report
import run as runner
import speed
import torch
from conftest import ROOT, main

FLAGS = "--num-envs 2 --num-steps 32 --num-minibatches 4 --update-epochs 1 --total-timesteps 512"


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """run.py on CartPole-v1 with results in an empty folder; a list of the scripts' commands."""
    commands, real = [], subprocess.run

    def recorded(command, **more):
        if command[0] != sys.executable:
            return real(command, **more)
        commands.append(command)
        return run.instead(command, more) if run.instead else real(command, **more)

    def run(*words: str) -> None:
        words = ["run.py", "--scripts", "ppo", "--env-ids", "CartPole-v1", *words]
        monkeypatch.setattr(sys, "argv", [*words, "--eval-episodes", "1"])
        runner.main()

    run.instead, run.commands, run.real = None, commands, real
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    monkeypatch.setattr(runner, "WORK", tmp_path / "work")
    monkeypatch.setattr(subprocess, "run", recorded)
    monkeypatch.setitem(runner.FLAGS, ("ppo", "CartPole-v1"), FLAGS)
    return run


def test_an_interrupted_run_resumes_and_is_recorded_once(benchmark, tmp_path, capsys):
    def half(command, more):
        benchmark.instead = None
        with pytest.raises(SystemExit):
            benchmark("--seeds", "7")  # starts no second process in the same folder
        assert "another process runs it" in capsys.readouterr().out
        done = benchmark.real([*command, "--total-timesteps", "256"], **more)
        done.returncode = -9  # as if it had been killed then
        return done

    benchmark.instead = half
    with pytest.raises(SystemExit, match="1 of 1 runs failed"):
        benchmark("--seeds", "7", "7")
    assert not runner.read(tmp_path / "runs.csv")
    for _ in range(2):  # what is done is not run again
        benchmark("--seeds", "7")
    assert ["--resume" in command for command in benchmark.commands] == [False, True]
    (row,) = runner.read(tmp_path / "runs.csv")
    assert list(row.values())[:5] == ["ppo", "CartPole-v1", "7", FLAGS, "512"]
    expected = f"python ppo.py --env-id CartPole-v1 --seed 7 {FLAGS} --eval-episodes 1"
    assert row["command"] == expected and row["digest"] == runner.digest("ppo.py")
    points = runner.read(tmp_path / "curves/ppo__CartPole-v1.csv")
    assert list(points[0]) == ["seed", "step", "return", "seconds"]
    kept = str(tmp_path / "policies/ppo__CartPole-v1")
    words = ["--resume", kept, "--total-timesteps", "0", "--eval-episodes", "1"]
    main("ppo", *words)
    printed = capsys.readouterr().out
    assert f"evaluation_return {float(row['evaluation_return']):g}\n" in printed
    assert not list((tmp_path / "work").iterdir())


def test_a_failure_stops_no_other_job_and_divergence_is_final(benchmark, capsys):
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


def test_what_is_kept_of_a_run(tmp_path, monkeypatch):
    """The policy of the lowest seed; a curve of hundredths; a digest of the code."""
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    for seed, kept in (8, 8), (9, 8), (7, 7):
        (tmp_path / "args.json").write_text(str(seed))
        (tmp_path / "checkpoint.pt").write_text(str(seed))
        job = {"script": "ppo", "env_id": "X", "seed": str(seed), "flags": ""}
        runner.keep_policy(job, tmp_path)
        runner.append(tmp_path / "runs.csv", [job])
        assert (tmp_path / "policies/ppo__X/checkpoint.pt").read_text() == str(kept)
    rows = [("3", 1, 5), ("10.0", 3, 7), ("11", 7, 9)]
    rows = [dict(zip(("step", "episode_return", "seconds"), row)) for row in rows]
    assert [[*point.values()] for point in runner.thinned(rows, 1000)] == [[10, 2, 6], [20, 7, 9]]
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    texts = '"""1"""\nx = 2', '"""3\n"""\n# why\nx = 2  # a number', '"""1"""\nx = 3'
    for name, text in zip("abc", texts):
        (tmp_path / name).write_text(text)
    assert runner.digest("a") == runner.digest("b") != runner.digest("c")


def test_flags_exist():
    """Peers have our steps and their own settings; every flag of the tables is the script's."""
    assert runner.flags_of("sb3_trpo", "CartPole-v1") == "--total-timesteps 100000"
    tables = [(script, flags) for (script, _), flags in runner.FLAGS.items()]
    tables += [("ppo", flags) for _, flags, _ in ablations.VARIANTS.values()]
    for script, flags in [*tables, *speed.EQUAL.items()]:
        text = (ROOT / f"{script}.py").read_text()
        for flag in (word for word in flags.split() if word.startswith("--")):
            name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
            assert f"\n    {name}: " in text, f"{script}.py has no {flag}"


def test_ablations():
    """Each variant applies to ppo.py; a paired t interval by hand: 12.706 · √2 / √2 for (1, 3)."""
    text = (ROOT / "ppo.py").read_text()
    for variant, (_, flags, changes) in ablations.VARIANTS.items():
        patched = ablations.patched(text, changes)
        compile(patched, variant, "exec")
        assert (patched != text) == bool(changes) and (changes or flags or variant == "default")
    default = {"1": 10, "2": 20, "3": 0}
    assert ablations.difference({"1": 11, "2": 23}, default) == "+2 ± 13, within chance"
    assert ablations.difference({"1": 21, "2": 33}, default) == "+12 ± 13, within chance"
    assert ablations.difference({"1": 31, "2": 43, "4": 0}, default) == "+22 ± 13"


BEST = {"value": "2680", "source": "OmniSafe", "steps": "", "compared_with": "evaluation_return"}


def a_row(seed: int, training: float, evaluation: float, **more: str) -> dict:
    row = {"script": "ppo", "env_id": "Hopper-v4", "seed": str(seed), "flags": "", "seconds": "500"}
    row |= {"steps": "1001472", "training_return": training, "evaluation_return": evaluation}
    command = f"python ppo.py --seed {seed} --eval-episodes 100"
    return row | {"command": command, "commit": "abc", "digest": runner.digest("ppo.py")} | more


def test_tables_by_hand(tmp_path, monkeypatch):
    """Other flags and shorter evaluations are left out; † marks older code; a row that is there
    twice stops."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setitem(report.PUBLISHED, ("ppo", "Hopper-v4"), BEST)
    rows = [a_row(12, 1, 1200), a_row(3, 3, 1600), a_row(5, 7, 8, flags="--gamma 0.9")]
    rows.append(a_row(4, 5, 6, command="python ppo.py --seed 4 --eval-episodes 10"))
    rows += [a_row(seed, 0, 1400, script="trpo", digest="0123456789ab") for seed in (1, 2)]
    runner.append(tmp_path / "runs.csv", rows)
    table = report.returns(["a2c", "ppo"], ["Hopper-v4", "Walker2d-v4"], report.long)
    cell = "**1,400 ± 283**<br>training 2 ± 1.4<br>2 seeds, 1M<br>2,680 OmniSafe"
    assert table.splitlines()[2:] == [f"| ppo.py | {cell} | - |"]
    assert report.returns(["ppo"], ["Hopper-v4"], report.short).endswith(
        "| 1,400 ± 283 (2 seeds) |"
    )
    older = [a_row(1, 0, 7, steps="200704")] * 4 + [a_row(1, 0, 7, digest="")]
    assert report.short("ppo", "Hopper-v4", older) == "7 ± 0.0 (200k) ✗ †"
    assert "<br>2 seeds, 1M †<br>" in report.long("trpo", "Hopper-v4", rows[-2:])
    assert report.long("sb3_ppo", "Hopper-v4", older).endswith("5 seeds, 200k")
    runner.append(tmp_path / "runs.csv", [a_row(7, 2, 1400, digest="")])
    digest = runner.digest("ppo.py")
    assert report.codes() == f"trpo.py 0123456789ab; ppo.py {', '.join(sorted([digest, 'abc']))}."
    shorter = [a_row(seed, 0, 1, script="a2c", steps="200704") for seed in (1, 2)]
    runner.append(tmp_path / "runs.csv", shorter)  # not in the matrix
    elsewhere = [a_row(seed, 0, 1, script="a3c", env_id="Walker2d-v4") for seed in (1, 2)]
    runner.append(tmp_path / "runs.csv", elsewhere)  # no environment that the others have
    matrix = ["| a3c.py |  |  |  |", "| trpo.py |  |  | 50 |", "| ppo.py |  | 50 |  |"]
    assert report.probabilities().splitlines()[2:] == matrix
    points = [{"seed": "12", "step": step, "return": step / 1000} for step in (150_000, 250_000)]
    runner.append(tmp_path / "curves/ppo__Hopper-v4.csv", points)
    assert report.points("ppo", "Hopper-v4")[0][0, 1] == pytest.approx(150_000 / 1001472 * 500)
    expected = "200k: 150<br>300k: 250<br>500k: 250"
    assert report.on_the_way("ppo", "Hopper-v4", rows[:1]) == expected
    runner.append(tmp_path / "runs.csv", rows[:1])
    with pytest.raises(AssertionError, match="a row twice"):
        report.cells()


def test_marks(monkeypatch):
    """≈ where the published value, here 2,680, lies in the interval of our mean; 5 seeds or none."""
    monkeypatch.setitem(report.PUBLISHED, ("ppo", "Hopper-v4"), BEST)
    cases = ("", [2690] * 4), ("✗", [2600] * 5), ("≈", [0, 9000] * 3), ("✓", [2680] * 5)
    for expected, numbers in cases:
        rows = [a_row(seed, 0, x) for seed, x in enumerate(numbers)]
        assert report.mark("ppo", "Hopper-v4", rows) == expected
    assert report.better([1, 3], [2, 3]) == (0 + 0 + 1 + 0.5) / 4


@pytest.mark.parametrize("page", report.PAGES)
def test_pages_and_headers_have_the_numbers_of_the_results(page):
    assert report.filled(page) == (ROOT / page).read_text(), "run benchmarks/report.py"


def test_speed(tmp_path, monkeypatch):
    """After the warm-up; the second day's rows replace those of the first; ratios of each turn."""
    rows = [{"step": str(100 * i), "seconds": s} for i, s in enumerate("9 10 12 14 99".split(), 1)]
    assert speed.steps_per_second(rows, 2, 2) == 200 / 4
    monkeypatch.setattr(speed, "PATH", tmp_path / "speed.csv")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    jobs = speed.jobs(argparse.Namespace(parts=["peers"], scripts=["a2c"], sbx_python="python"))
    for fresh, turns in (set(), [(1, 1)]), (set(), [(6, 3), (8, 2)]):
        for turn, values in enumerate(turns):
            for job, value in zip(jobs, values, strict=True):
                speed.write(job, turn, value, "", "", fresh)
    line = "| a2c.py | 2 | - | - | 7 | **3.00** (2.00–4.00) | - | - | - |"
    assert report.speed_table("peers").splitlines()[-1] == line


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


def test_what_the_bag_is_blind_to():
    """To order and grammar; the transformer is not. The replacements fit both scripts."""
    for script in ("grpo", "rlhf"):
        text = language.patched((ROOT / f"{script}.py").read_text(), language.CHANGES["bag"])
        assert "pairs.pt" in text
    exec(text, bag := {"__name__": "bag"})
    rlhf = language.rlhf

    def tokens_of(*texts):
        rows = [[rlhf.WORDS.index(word) for word in text.split()] for text in texts]
        return torch.tensor([row + [rlhf.STOP] * (1 + rlhf.T - len(row)) for row in rows])

    pair = tokens_of("food the food was good but cold .", "food cold the but good was food .")
    twice = tokens_of("food good .", "food good good .", "food good good good .")
    for kind, blind in (bag["RewardModel"], True), (rlhf.RewardModel, False):
        torch.manual_seed(1)
        with torch.no_grad():
            reward_model = kind()
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
        if commands[1:]:
            main("rlhf", *words, *tiny)
        else:
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
    assert (tmp_path / "language.png").read_bytes().startswith(b"\x89PNG")
