"""Learning results in docs/results: what is trained, evaluated and written down, by name (`scripts/benchmark NAME`)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmark_runs import Benchmark, Run, run_benchmark, write_benchmark_page
from kinetix_benchmarks import KINETIX_BENCHMARKS

from robostack.recipes import Recipe, aloha_insertion, aloha_transfer_cube, aloha_transfer_cube_pixels

RETURNS = (0, 240, 480, 720, 960)
TASKS = {"aloha-transfer-cube": "transfer cube", "aloha-insertion": "insertion"}


def main() -> None:
    """Runs the named benchmark and writes docs/results/<name>.md and .json, anew after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at once, one thread each")
    parser.add_argument("--only", nargs="*", default=[""], help="runs whose labels begin so; others keep their results")
    parser.add_argument("--page", action="store_true", help="write the page from the records, and run nothing")
    parser.add_argument(
        "--unclean", action="store_true", help="make records of a tree with changes that no commit holds"
    )
    arguments = parser.parse_args()
    if arguments.page:
        write_benchmark_page(arguments.name, BENCHMARKS[arguments.name])
    else:
        run_benchmark(arguments.name, BENCHMARKS[arguments.name], arguments.only, arguments.jobs, arguments.unclean)


def main_runs(folder: Path) -> list[Run]:
    """Both tasks, three training seeds each."""
    recipes = [make(folder, seed) for seed in range(3) for make in (aloha_transfer_cube, aloha_insertion)]
    return [
        Run(TASKS[r.env], replace(r, data=folder / r.env / "data", run=folder / r.env / f"seed{r.seed}"))
        for r in recipes
    ]


POLICY_TRAINING: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "pi0": (2000, ("--optimizer", "muon")),
    "diffusion": (2000, ("--optimizer", "muon")),
    "act": (1500, ("--batch", "64", "--optimizer", "muon")),
    "decision_transformer": (1500, ()),
    "energy": (2000, ("--optimizer", "muon")),
}
"""Training steps of each policy from state, and flags; everything else is its defaults."""


def policy_runs(folder: Path) -> list[Run]:
    """Every policy on both tasks, three training seeds each, on 50 demonstrations of each task; and the U-Net of
    `diffusion`, whose steps take several times as long as the transformer's, with one training seed."""
    runs = [
        Run(
            f"{policy}, {TASKS[env]}",
            Recipe(policy, env, folder / env, folder / f"{policy}-{env}-{seed}", 50, steps, train=flags, seed=seed),
        )
        for seed in range(3)
        for policy, (steps, flags) in POLICY_TRAINING.items()
        for env in TASKS
    ]
    unet = ("--policy.network", "unet", "--batch", "64")
    return runs + [
        Run(
            f"U-Net of diffusion, {TASKS[env]}",
            Recipe("diffusion", env, folder / env, folder / f"unet-{env}-0", 50, 1000, train=unet),
        )
        for env in TASKS
    ]


def pixel_runs(folder: Path) -> list[Run]:
    """Cameras and joint positions: the zoomed view, gym_aloha's own top camera cropped to it, and the other task."""
    recipe = replace(aloha_transfer_cube_pixels(folder), demonstrations=100, cameras=("top_zoom:64x64", "top:136x136"))
    muon = replace(recipe, steps=2000, train=(*recipe.train, "--optimizer", "muon"))
    zoom = [
        Run(f"{policy}, transfer cube, top_zoom 64×64", replace(muon, policy=policy, eyes=("top_zoom",)))
        for policy in ("pi0", "diffusion", "act")
    ]
    crop = (*recipe.train, "--policy.encoder.crop", "64", "64")
    top = [
        Run(
            f"{policy}, transfer cube, top 136×136, its middle 64×64",
            replace(recipe, policy=policy, eyes=("top",), train=crop),
        )
        for policy in ("pi0",)
    ]
    insertion = replace(muon, env="aloha-insertion", data=folder / "insertion", cameras=("top_zoom:64x64",))
    runs = [*zoom, *top, Run("pi0, insertion, top_zoom 64×64", insertion)]
    return [replace(run, recipe=replace(run.recipe, run=folder / str(i))) for i, run in enumerate(runs)]


def return_runs(folder: Path) -> list[Run]:
    """A decision transformer asked for several returns, and the same network that is not told any."""
    recipe = Recipe(
        "decision_transformer",
        "aloha-transfer-cube",
        folder / "data",
        folder / "run",
        demonstrations=200,
        steps=2000,
        collect=("--noise", "0", "0.01", "0.02", "0.04", "0.08"),
        evaluations=50,
    )
    runs = []
    for seed in range(3):
        told = replace(recipe, run=folder / f"told-{seed}", seed=seed)
        runs += [Run(f"asked {asked}", told, evaluate=("--target-return", str(asked))) for asked in RETURNS]
        cloned = replace(recipe, run=folder / f"cloned-{seed}", seed=seed, train=("--policy.no-conditioned",))
        runs.append(Run("behaviour cloning", cloned))
    return runs


def prediction_runs(folder: Path) -> list[Run]:
    """Data or velocity, by token width and actions a token."""
    velocity = ("--policy.prediction", "velocity", "--policy.weighting", "velocity")
    wide = ("--policy.expert-width", "256", "--policy.heads", "8")
    single = ("--policy.actions-per-token", "1")
    variants: list[tuple[str, int, tuple[str, ...]]] = [
        ("data", 1000, ()),
        ("velocity", 1000, velocity),
        ("velocity, width 256 and 8 heads", 1000, (*velocity, *wide)),
        ("velocity, one action a token", 300, (*velocity, *single)),
    ]
    return [
        Run(
            label,
            replace(aloha_transfer_cube(folder), run=folder / str(i), steps=steps, train=flags, evaluations=50),
            tuning=True,
        )
        for i, (label, steps, flags) in enumerate(variants)
    ]


def optimizer_runs(folder: Path) -> list[Run]:
    """AdamW and Muon on the same runs."""
    return [
        Run(
            f"{optimizer}, {TASKS[env]}",
            Recipe("pi0", env, folder / env, folder / f"{optimizer}-{env}", 50, 1000, train=("--optimizer", optimizer)),
            tuning=True,
        )
        for env in TASKS
        for optimizer in ("adamw", "muon")
    ]


BENCHMARKS: dict[str, Benchmark] = {
    "main": Benchmark(
        main_runs,
        "# The main job: ALOHA from joint positions and object poses\n\n"
        "π0 (flow matching, data prediction), 150 demonstrations, 100 evaluation seeds that nothing was "
        "trained or tuned on, three training seeds.",
    ),
    "policies": Benchmark(
        policy_runs,
        "# Every policy on ALOHA, from joint positions and object poses\n\n"
        "50 demonstrations of each task, 100 evaluation seeds that nothing was trained or tuned on, three training "
        "seeds; the U-Net one. Beside steps, optimiser and batch (`policies.json` has the commands), settings are each "
        "policy's defaults.",
    ),
    "pixels": Benchmark(
        pixel_runs,
        "# From one camera and joint positions\n\n"
        "100 demonstrations, 100 evaluation seeds that nothing was trained or tuned on, one training seed. A policy "
        "sees 14 joint positions and one image, never an object's pose, in training neither. `top_zoom` is gym_aloha's "
        "`top` camera narrowed from 78° to 42°; `top` is that camera as it is, of which the policy looks at the middle "
        "(which shows what `top_zoom` shows).",
    ),
    "optimizers": Benchmark(
        optimizer_runs,
        "# AdamW and Muon\n\nπ0 from joints and object poses, 50 demonstrations, 1000 steps, the same learning rate "
        "(Muon's step is scaled to AdamW's size), one training seed, 100 tuning seeds.",
    ),
    "returns": Benchmark(
        return_runs,
        "# A decision transformer follows the return it is asked for\n\n"
        "Transfer cube from joints and the cube's pose. 200 demonstrations of mixed quality: the expert with a smooth "
        "disturbance of its joints, of 0, 0.01, 0.02, 0.04 and 0.08 rad in turn; the largest return among them is "
        "about 960. The policy sees one decision (K = 1: cloning conditioned on the return rather than a sequence "
        "model). 50 evaluation seeds, three training seeds. Behaviour cloning is the same network without the return.",
    ),
    "prediction": Benchmark(
        prediction_runs,
        "# Data or velocity prediction\n\n"
        "Transfer cube from joints and the cube's pose, 150 demonstrations, one training seed, 50 tuning seeds.",
    ),
    **KINETIX_BENCHMARKS,
}


if __name__ == "__main__":
    main()
