"""Learning results: every page follows from its records, and records say what was measured."""

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark_pages  # noqa: E402
import benchmark_runs  # noqa: E402
import benchmarks  # noqa: E402
import energy_composition  # noqa: E402
import kinetix_generalist  # noqa: E402

WRITERS: dict[str, Callable[[], None]] = {
    name: lambda name=name: benchmark_runs.write_benchmark_page(name, benchmarks.BENCHMARKS[name])
    for name in benchmarks.BENCHMARKS
}
WRITERS["composition"] = lambda: energy_composition.write(energy_composition.recipe(Path("runs/composition")))
WRITERS["generalist"] = kinetix_generalist.write


def write_experts() -> None:
    import expert_benchmark  # with JAX

    expert_benchmark._write()


WRITERS["experts"] = write_experts


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results to write in."""
    monkeypatch.setattr(benchmark_pages, "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", WRITERS)
def test_a_page_follows_from_its_records(name: str, results: Path) -> None:
    committed = ROOT / "docs" / "results"
    for record in committed.glob("*.json"):
        shutil.copy(record, results)
    WRITERS[name]()
    assert (results / f"{name}.md").read_text() == (committed / f"{name}.md").read_text()
    assert f"scripts/benchmark {name} --page" in (results / f"{name}.md").read_text()


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "scripts" / "benchmark", *arguments], capture_output=True, text=True)


def test_the_script_lists_what_it_runs_and_refuses_the_rest() -> None:
    listed = run_script().stdout.split("\n\n")[1].splitlines()
    assert {line.split()[0] for line in listed} == set(WRITERS) and all(len(line.split()) > 3 for line in listed)
    source = (ROOT / "scripts" / "benchmark").read_text()
    run = {name for line in re.findall(r"^  ([a-z |]+)\) program=", source, re.MULTILINE) for name in line.split(" | ")}
    assert run == set(WRITERS)
    refused = run_script("nothing")
    assert refused.returncode == 2 and refused.stdout == "" and "no benchmark 'nothing'" in refused.stderr


def record(seed: int, final: float, **more: Any) -> dict[str, Any]:
    return {
        "label": "energy, insertion",
        "training_seed": seed,
        "episodes": 100,
        "success": 1.0,
        "final": final,
        "mean_return": 100.0 * seed,
        "commit": "0123",
        **more,
    }


def test_training_seeds_are_shown_one_by_one_with_an_interval_that_knows_of_them() -> None:
    said = benchmark_pages.of_each_seed([record(2, 0.8), record(0, 0.67), record(1, 0.86)])
    assert "final 78% [67%, 87%] (67, 86, 80)" in said and "success 100% [99%, 100%] (100, 100, 100)" in said
    assert "mean return 0, 100, 200" in said and "bootstrap" in said
    assert benchmark_pages.of_each_seed([record(0, 0.5)]) == ""


def test_a_page_says_under_which_plan_of_seeds_and_from_what_tree_its_records_are() -> None:
    old = [record(seed, 0.5, commit="0123+changes" if seed else "0123") for seed in range(3)]
    said = benchmark_pages.how_made(old)
    assert (
        "3 of 3 runs were made under the old plan of seeds" in said and "2 of 3 records were made from a tree" in said
    )
    assert benchmark_pages.how_made([record(seed, 0.5, demonstration_seed=seed * 10_000) for seed in range(3)]) == ""


def test_every_training_seed_has_demonstrations_and_evaluation_seeds_of_its_own(tmp_path: Path) -> None:
    taken: dict[range, object] = {}
    for name in ("main", "policies", "returns", "optimizers", "prediction", "pixels"):
        for run in benchmarks.BENCHMARKS[name].runs(tmp_path / name):
            made = benchmark_runs.with_own_data(run).recipe
            collect = made.collect_command()
            assert collect.count("--seed") == 1
            first = int(collect[collect.index("--seed") + 1])
            taken[range(first, first + 2 * made.demonstrations)] = ("demonstrations", made.seed)
            taken[range(run.seed, run.seed + made.evaluations)] = ("evaluation", made.seed, run.tuning)
            assert str(made.data) in made.train_command() and str(made.seed) in made.data.name
    for (one, who), (other, whose) in itertools.combinations(taken.items(), 2):
        assert who == whose or one.stop <= other.start or other.stop <= one.start


def test_nothing_is_measured_that_no_commit_holds(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something was run")

    monkeypatch.setattr(benchmark_runs, "run_robostack", refuse)
    monkeypatch.setattr(benchmark_pages, "commit", lambda: "0123456789ab+changes")
    with pytest.raises(SystemExit, match="the tree has changes beyond 0123456789ab: commit them"):
        benchmark_runs.run_benchmark("main", benchmarks.BENCHMARKS["main"], [""], 1, unclean=False)
    assert list(results.iterdir()) == []
    benchmark_pages.refuse_unclean(allowed=True)


def test_results_of_the_old_plan_stay_until_their_run_is_made_anew(results: Path) -> None:
    shutil.copy(ROOT / "docs" / "results" / "main.json", results)
    runs = [benchmark_runs.with_own_data(run) for run in benchmarks.main_runs(Path("runs"))]
    earlier = benchmark_runs._earlier("main", runs)
    assert len(earlier) == 6
    changed = [{**record, "demonstration_seed": 0} for record in earlier.values()]
    benchmark_pages.write_records("main", changed)
    assert benchmark_runs._earlier("main", runs) == {}  # of another plan, or other settings
