"""The Kinetix environments: the package's physics, honest interfaces, one compiled program."""

import copy
import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import jax
import kinetix
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from robostack import envs
from robostack.common.extras import MissingExtraError
from robostack.envs.kinetix import package
from robostack.envs.kinetix.env import KinetixEnv
from robostack.envs.kinetix.levels import level_names, load_level, random_level
from robostack.envs.kinetix.simulation import ACTION_HIGH, ACTION_LOW, Simulation
from robostack.envs.kinetix.vector import KinetixVectorEnv

NAME, LEVEL = "kinetix-s-h6_unicycle_right", "s/h6_unicycle_right"
NOISE = 0.1
STEPS = 60
SHIPPED = Path(kinetix.__path__[0]) / "levels"


@pytest.fixture(scope="module")
def vector() -> KinetixVectorEnv:
    """Four environments with noisy actions, whose one compiled program all tests share."""
    vector = envs.make_vector(NAME, 4, max_episode_steps=STEPS, action_noise=NOISE, render_mode="rgb_array")
    assert isinstance(vector, KinetixVectorEnv)
    return vector


@pytest.fixture(scope="module")
def single() -> KinetixEnv:
    env = envs.make(NAME, action_noise=NOISE, render_mode="rgb_array").unwrapped
    assert isinstance(env, KinetixEnv)
    return env


@pytest.fixture(scope="module")
def packages_loader():
    """kinetix.util.saving.load_from_json_file, without wandb and the networks that its package imports (10 s)."""
    stand_in = ModuleType("kinetix.util")
    stand_in.__path__ = [str(SHIPPED.parent / "util")]
    with pytest.MonkeyPatch.context() as patch, package._past_init_files():
        patch.setitem(sys.modules, "wandb", ModuleType("wandb"))
        patch.setitem(sys.modules, "kinetix.util", stand_in)
        return importlib.import_module("kinetix.util.saving").load_from_json_file


def actions_of(seed: int, steps: int = STEPS) -> np.ndarray:
    """Reaches beyond the limits of motors and thrusters."""
    return np.random.default_rng(seed).uniform(-1.2, 1.2, (steps, 6)).astype(np.float32)


def altered(states, path: str, index, value):
    """States in which one number, or what `index` picks, is another one; path as in "circle.position"."""
    holder, _, field = path.rpartition(".")
    leaves = np.array(getattr(getattr(states, holder) if holder else states, field))
    leaves[index] = value
    changed = {field: jax.numpy.asarray(leaves)}
    return states.replace(**{holder: getattr(states, holder).replace(**changed)} if holder else changed)


def assert_same_leaves(found, expected):
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=jax.tree_util.keystr(path))


def test_steps_are_the_packages(vector):
    static_params = load_level(LEVEL).static_params
    params = package.EnvParams(dense_reward_scale=1.0)
    observer = package.SymbolicObservations(params, static_params)
    peer = package.PackageEnv(package.ContinuousActions(params, static_params), observer, static_params)
    step = jax.jit(peer.step_env)
    state = vector.simulation.initial()
    vector.reset(seed=3)
    key = vector._keys[0]
    for t, action in enumerate(actions_of(0, 50)):
        noise = NOISE * jax.random.normal(jax.random.fold_in(key, t), (6,))
        expected, state, reward, done, _ = step(key, state, np.clip(action + noise, ACTION_LOW, ACTION_HIGH), params)
        observation, rewards, terminated, *_ = vector.step(np.tile(action, (4, 1)))
        # Not bit for bit: our constants are known when XLA compiles, theirs are arguments.
        np.testing.assert_allclose(observation["observation.state"][0], expected, atol=2e-6)
        np.testing.assert_allclose(rewards[0], reward, atol=2e-6)
        assert terminated[0] == done


def test_an_episode_does_not_depend_on_the_batch(vector, single):
    seeds = [11, 4, 7, 11]
    actions = np.stack([actions_of(seed) for seed in seeds])
    first, _ = vector.reset(seed=seeds)
    # Up to the automatic reset at the last step and into the next episode, whose noise goes on from the seed.
    seen = [first, *(vector.step(actions[:, t])[0] for t in range(STEPS)), vector.step(actions[:, 0])[0]]
    for i, seed in enumerate(seeds[:3]):
        expected = [single.reset(seed=seed)[0], *(single.step(action)[0] for action in actions[i][:-1])]
        expected += [single.reset()[0], single.step(actions[i][0])[0]]
        for t, (batch, one) in enumerate(zip(seen, expected, strict=True)):
            np.testing.assert_array_equal(batch["observation.state"][i], one["observation.state"], err_msg=str(t))
    np.testing.assert_array_equal(seen[-1]["observation.state"][0], seen[-1]["observation.state"][3])
    assert not np.array_equal(seen[1]["observation.state"][0], seen[1]["observation.state"][1])


def test_nothing_is_compiled_twice(vector):
    # Not on the second step, as levels read by the package make it; not after a reset; not for another level.
    vector.reset(seed=0)
    for action in actions_of(0, 3):
        vector.step(np.tile(action, (4, 1)))
    vector.reset(seed=1, options={"reset_mask": np.array([True, False, False, True])})
    vector.step(np.zeros((4, 6)))
    other = envs.make_vector("kinetix-s-h7_unicycle_left", 4, max_episode_steps=STEPS, action_noise=NOISE)
    other.reset(seed=0)
    other.step(np.zeros((4, 6)))
    assert other._programs.step is vector._programs.step
    assert vector._programs.step._cache_size() == vector._programs.reset._cache_size() == 1


def test_the_end_of_time_is_a_truncation_and_resets_in_the_same_step(vector):
    first, _ = vector.reset(seed=0)
    for t in range(STEPS):
        observation, _, terminated, truncated, info = vector.step(np.zeros((4, 6)))
        assert not terminated.any() and truncated.all() == truncated.any() == (t == STEPS - 1)
        assert ("final_obs" in info) == (t == STEPS - 1)
    np.testing.assert_array_equal(observation["observation.state"], first["observation.state"])
    assert info["_final_obs"].all() and info["_final_info"].all() and info["final_info"]["_success"].all()
    assert vector.single_observation_space.contains(info["final_obs"][2])
    assert not np.array_equal(info["final_obs"][2]["observation.state"], first["observation.state"][2])
    assert np.asarray(vector.states.timestep).tolist() == [0] * 4


def test_goal_and_failure_end_the_episode_of_their_environment_alone(vector):
    first, _ = vector.reset(seed=0)
    # Both circles, of which one is green, into the middle of the blue body; which in one environment is made red.
    middle = np.asarray(vector.states.polygon.position)[1, 4]
    states = altered(vector.states, "circle.position", [1, 2], middle)
    vector.states = altered(states, "polygon_shape_roles", (2, 4), 3)
    observation, reward, terminated, truncated, info = vector.step(np.zeros((4, 6)))
    assert terminated.tolist() == [False, True, True, False] and not truncated.any()
    np.testing.assert_allclose(reward, [0, 1, -1, 0], atol=0.05)
    assert info["success"].tolist() == [False, True, False, False] and info["stage"].tolist() == [0, 1, 0, 0]
    assert info["_final_obs"].tolist() == [False, True, True, False] and info["final_obs"][0] is None
    assert info["final_info"]["success"].tolist() == [False, True, False, False]
    np.testing.assert_array_equal(observation["observation.state"][1:3], first["observation.state"][1:3])
    assert np.asarray(vector.states.timestep).tolist() == [1, 0, 0, 1]


def test_a_state_that_becomes_nan_ends_the_episode_and_is_not_observed(vector):
    vector.reset(seed=0)
    vector.states = altered(vector.states, "circle.velocity", 3, np.nan)
    observation, reward, terminated, _, info = vector.step(np.zeros((4, 6)))
    assert terminated.tolist() == info["diverged"].tolist() == [False, False, False, True]
    assert np.isfinite(info["final_obs"][3]["observation.state"]).all() and np.isfinite(reward).all()
    assert np.isfinite(observation["observation.state"]).all() and not info["success"].any()


def test_noise_is_gaussian_and_what_is_applied_is_within_bounds():
    level = load_level(LEVEL)
    noisy, exact = Simulation(level, action_noise=NOISE), Simulation(level)
    keys = jax.random.split(jax.random.PRNGKey(0), 20_000)
    middle = jax.numpy.array([0, 0, 0, 0, 0.5, 0.5])
    off = np.asarray(jax.vmap(lambda key: noisy.applied(middle, key))(keys)) - middle
    np.testing.assert_allclose(off.std(axis=0), NOISE, rtol=0.03)
    np.testing.assert_allclose(off.mean(axis=0), 0, atol=0.005)
    np.testing.assert_allclose(np.corrcoef(off.T), np.eye(6), atol=0.04)
    wild = jax.numpy.array([-3, 3, 0.5, -0.5, -0.5, 2])
    np.testing.assert_array_equal(exact.applied(wild, keys[0]), [-1, 1, 0.5, -0.5, 0, 1])
    applied = np.asarray(jax.vmap(lambda key: noisy.applied(wild, key))(keys))
    assert (applied >= ACTION_LOW).all() and (applied <= ACTION_HIGH).all()


def test_interface_is_declared(vector, single):
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert vector.metadata["render_fps"] == single.metadata["render_fps"] == 30
    observation, info = vector.reset(seed=0)
    assert vector.observation_space.contains(observation)
    assert info["task"] == ["Make the green shape touch the blue shape, and no red one."] * 4
    assert vector.task == single.task and vector.robot == single.robot == "kinetix" and single.highest_stage == 1
    np.testing.assert_array_equal(single.action_space.low, [-1, -1, -1, -1, 0, 0])  # the package says −1 to 1 for all
    for env in (vector, single):  # what hardly varies is judged by its range, which is about 1
        assert env.feature_units == {
            "action": ("1",) * 6,
            "observation.state": ("1",) * observation["observation.state"].shape[1],
        }
    _, reward, terminated, truncated, info = vector.step(vector.action_space.sample())
    assert reward.shape == terminated.shape == truncated.shape == info["stage"].shape == info["success"].shape == (4,)
    assert not reward.flags.writeable  # JAX's own memory


@pytest.mark.filterwarnings("ignore:.*Box observation space m.*imum value is -?infinity")
def test_passes_gymnasiums_checker(single):
    check_env(single)


def test_pictures_show_the_level_upright(vector, single):
    single.reset(seed=0)
    picture = single.render()
    assert picture.shape == (500, 500, 3) and picture.dtype == np.uint8
    assert (picture[-20:] < 200).all()  # the floor
    green = (picture == [0, 204, 0]).all(axis=-1)
    x = float(single.state.circle.position[1, 0])  # from the left, in metres; 5 m are 500 pixels
    assert abs(np.argwhere(green)[:, 1].mean() - 100 * x) < 3
    vector.reset(seed=0)
    assert len(vector.render()) == 4
    np.testing.assert_allclose(vector.render()[2], picture, atol=2)


def test_bad_input_is_named_before_anything_moves(vector, single):
    vector.reset(seed=0)
    actions = np.zeros((4, 6))
    actions[1, 5] = np.nan
    with pytest.raises(ValueError, match=r"nan or inf at \[environment, dimension\] \[\[1, 5\]\]"):
        vector.step(actions)
    with pytest.raises(ValueError, match=r"shape \(4, 6\), got \(3, 6\)"):
        vector.step(np.zeros((3, 6)))
    assert np.asarray(vector.states.timestep).tolist() == [0] * 4
    single.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(6,\), got \(5,\)"):
        single.step(np.zeros(5))
    with pytest.raises(ValueError, match=r"in dimensions \[4\]"):
        single.step(np.array([0, 0, 0, 0, np.inf, 0]))
    assert int(single.state.timestep) == 0
    with pytest.raises(ValueError, match="unknown reset options"):
        single.reset(options={"object_poses": 1})
    with pytest.raises(ValueError, match="expected 4 seeds, got 3"):
        vector.reset(seed=[1, 2, 3])
    with pytest.raises(RuntimeError, match="reset the environments first"):
        envs.make_vector(NAME, 2).step(np.zeros((2, 6)))
    for wrong, line in (
        ({"observation": "flags"}, "unknown observation 'flags': known are flat, entities, pixels"),
        ({"action_noise": -0.1}, "expected action_noise finite and not negative, got -0.1"),
        ({"render_mode": "human"}, "expected render_mode None or 'rgb_array', got 'human'"),
    ):
        with pytest.raises(ValueError, match=line):
            KinetixEnv(LEVEL, **wrong)


def test_a_forked_process_fails_instead_of_hanging(vector, monkeypatch):
    monkeypatch.setattr(package, "_PROCESS", -1)
    with pytest.raises(RuntimeError, match="spawn or forkserver"):
        vector.reset(seed=0)


def test_every_shipped_level_has_a_name():
    assert len(level_names()) == len(list(SHIPPED.glob("*/*.json"))) == 74
    for level in level_names():
        name = f"kinetix-{level.replace('/', '-')}"
        gym_id = envs.resolve(name)
        assert gym_id == envs.resolve(gym_id) == f"robostack/Kinetix-{level.replace('/', '-')}-v0"
        spec = gym.spec(gym_id)
        assert spec.kwargs == {"level": level} and spec.max_episode_steps == 256


def test_every_shipped_level_can_be_read_and_has_a_green_and_a_blue_shape():
    for name in level_names():
        state = load_level(name).state
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)), name
        roles = [state.polygon_shape_roles[state.polygon.active], state.circle_shape_roles[state.circle.active]]
        assert {1, 2} <= set(np.concatenate(roles).tolist()), name


def test_unknown_names_get_one_line_and_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'kinetix-s-h6_unicycle_right'\?") as error:
        envs.resolve("kinetix-s-h6_unicycle_rigth")
    assert len(str(error.value)) < 250 and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"unknown Kinetix level 'h1_car_lef': did you mean '[ml]/h1_car_left'"):
        load_level("h1_car_lef")


def test_without_kinetix_its_names_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kinetix", None)
    for name in (NAME, "kinetix:mine.json"):
        with pytest.raises(MissingExtraError, match=r"robostack\[kinetix\]"):
            envs.make(name)


def test_the_rest_of_the_package_is_not_imported():
    program = (
        "import sys; from robostack import envs; assert 'jax' not in sys.modules and 'kinetix' not in sys.modules\n"
        f"envs.make('{NAME}')\n"
        "assert 'jax' in sys.modules and not {'wandb', 'distrax', 'optax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", [LEVEL, "l/chain_thrust"])
def test_levels_are_read_as_the_package_reads_them(name, packages_loader):
    state, static_params, params = packages_loader(str(SHIPPED / f"{name}.json"))
    level = load_level(name)
    assert_same_leaves(level.state, state)
    assert level.static_params == static_params and level.params == params


def test_a_level_has_the_types_that_a_step_returns():
    simulation = Simulation(load_level(LEVEL))
    start = simulation.initial()
    after = jax.eval_shape(simulation.step, start, np.zeros(6, np.float32), jax.random.PRNGKey(0)).state
    assert [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(after)] == [
        (x.shape, x.dtype, False) for x in jax.tree.leaves(start)
    ]


def test_a_level_of_ones_own_is_read_from_its_file(tmp_path):
    (tmp_path / "mine.json").write_text((SHIPPED / "m" / "h1_car_left.json").read_text())
    env = envs.make(f"kinetix:{tmp_path}/mine.json").unwrapped
    assert_same_leaves(env.simulation.level.state, load_level("m/h1_car_left").state)
    assert env.observation_space.spaces["observation.state"].shape == (247,)


def test_a_level_of_ones_own_falls_as_its_file_says(tmp_path):
    """The package takes its default for every level, without a word."""
    document = json.loads((SHIPPED / f"{LEVEL}.json").read_text())
    document["env_state"]["gravity"] = {"0": 0.0, "1": -1.2}
    (tmp_path / "moon.json").write_text(json.dumps(document))
    assert load_level(str(tmp_path / "moon.json")).state.gravity.tolist() == pytest.approx([0.0, -1.2])


def test_what_is_looked_at_is_what_the_step_showed(vector):
    vector.reset(seed=5)
    seen = vector.step(np.zeros((4, 6), np.float32))[0]["observation.state"]
    looked = vector.look({"observation.state": (140,), "observation.entities": (10, 52), "observation.depth": ()})
    assert np.array_equal(looked["observation.state"], seen)
    assert set(looked) == {"observation.state", "observation.entities"} and len(looked["observation.entities"]) == 4


def broken(*path, value=None):
    """A change to a level's JSON: `value` at `path`, or without one, nothing there."""

    def change(document):
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        if value is None:
            del holder[path[-1]]
        else:
            holder[path[-1]] = value

    return change


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"0": value}
    return value


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (broken("env_params"), "env_params is missing"),
        (broken("env_state", "joint"), "env_state.joint is missing"),
        (broken("env_state", "circle", 1, "radius"), r"env_state.circle\[1\].radius is missing"),
        (broken("env_state", "circle", 1), "expected env_state.circle a list of 2 entries"),
        (broken("env_state", "circle", 0, "radius", value=float("nan")), r"circle\[0\].radius is not finite"),
        (broken("env_state", "circle", 0, "radius", value="big"), r"circle\[0\].radius is not an array of numbers"),
        (broken("env_state", "polygon", 4, "position", value={"0": 1.0}), r"position of shape \(2,\), got \(1,\)"),
        (broken("env_state", "polygon", 4, "position", value={"x": 1, "y": 2}), "position is not an array of numbers"),
        (broken("env_state", "polygon", 4, "role", value=9), r"polygon\[4\].role from 0 to 3, got 9"),
        (broken("env_state", "joint", 0, "a_index", value=70), r"joint\[0\].a_index from 0 to 6, got 70"),
        (broken("env_state", value=[]), "env_state.polygon is missing"),
        (broken("static_env_params", "num_circles", value=1.5), "static_env_params.num_circles like 12, .*, got 1.5"),
        (broken("static_env_params", "num_motor_bindings", value=5), "num_motor_bindings 4, got 5"),
        (broken("env_params", "dt", value="fast"), "env_params.dt like .*, got 'fast'"),
        (broken("env_params", "dt", value=0), "env_params.dt like .*, from 1e-06 to 1, got 0"),
        (broken("env_params", "slop", value=10**400), "env_params.slop like .*, got 1000"),
        (broken("env_params", "slop", value=float("nan")), "env_params.slop like .*, got nan"),
        (broken("env_params", "slop", value=["x" * 100_000]), "env_params.slop like .*, got .'xxx"),
        (broken("static_env_params", "frame_skip", value=10**9), "frame_skip like .*, from 1 to 100, got 1000000000"),
        (broken("static_env_params", "num_solver_iterations", value=10**7), "num_solver_iterations like .* to 100"),
        (broken("static_env_params", "num_joints", value=10**9), "num_joints like .* to 64"),
        (broken("env_state", "circle", 0, "radius", value=10**400), r"circle\[0\].radius is not an array of numbers"),
        (broken("env_state", "circle", 0, "radius", value=1e300), r"circle\[0\].radius as float32, got 1e\+300"),
        (broken("env_state", "polygon", 4, "n_vertices", value=2**40), r"polygon\[4\].n_vertices as int32"),
        (broken("env_state", "polygon", 4, "n_vertices", value=3.5), r"polygon\[4\].n_vertices as int32, got 3.5"),
        (broken("env_state", "polygon", 4, "position", value=nested(600)), "position is not an array of numbers"),
    ],
)
def test_malformed_levels_get_one_line(change, line, tmp_path):
    document = copy.deepcopy(json.loads((SHIPPED / f"{LEVEL}.json").read_text()))
    change(document)
    (tmp_path / "level.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"level.json: .*{line}") as error:
        load_level(f"{tmp_path}/level.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", " is not JSON"),
        ("", ": expected one JSON value, got 0"),
        ("[1]", ": env_state is missing"),
        ("[" * 100_000, " is no JSON that can be read"),
        ("1" * 5000, " is no JSON that can be read"),
        ("\ud800", " is not UTF-8 text"),
        (" " * (16 << 20) + "{}", " has 16,777,218 bytes, expected at most 16,777,216"),
        (None, " does not exist"),
    ],
)
def test_files_that_are_no_levels_get_one_line(text, line, tmp_path):
    if text is not None:
        (tmp_path / "level.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=f"level.json{line}") as error:
        load_level(f"{tmp_path}/level.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["random/s/4294967296", "random/xl/1", "random/s/" + "9" * 5000, "random/s/-1"])
def test_random_levels_that_there_are_not_get_one_line(name):
    with pytest.raises(ValueError, match=r"random level|unknown Kinetix level") as error:
        load_level(name)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_not_opened_as_a_level(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")  # to open it would wait for a writer
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "null.json").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "null"):
        with pytest.raises(ValueError, match=f"level file .*{name}.json is no regular file"):
            load_level(f"{tmp_path}/{name}.json")


def test_an_environment_goes_on_in_another_process(tmp_path):
    env = envs.make(NAME).unwrapped
    env.reset(seed=3)
    env.step(np.zeros(6))
    (tmp_path / "env.pickle").write_bytes(pickle.dumps(env))
    script = "import pickle, sys, numpy as np; env = pickle.load(open(sys.argv[1], 'rb'))"
    script += "; print(env.step(np.zeros(6))[0]['observation.state'].tobytes().hex())"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "env.pickle")], capture_output=True, text=True)
    assert done.stdout.strip() == env.step(np.zeros(6))[0]["observation.state"].tobytes().hex(), done.stderr


def test_entities_lose_nothing_and_have_the_same_columns_in_every_size():
    simulation = Simulation(load_level(LEVEL), observation="entities")
    start = simulation.initial()
    tokens = np.asarray(jax.jit(simulation.observe)(start)["observation.entities"])
    seen = jax.jit(simulation._features.get_obs)(start)
    assert tokens.shape == (2 + 5 + 2 * 1 + 1, 52) and tokens.dtype == np.float32
    np.testing.assert_array_equal(tokens[:, 1:5].argmax(axis=1)[:-1], [0] * 2 + [1] * 5 + [2] * 2)
    numbers = tokens[:, 32:44].reshape(-1, 2, 6) @ (2 ** np.arange(6))
    np.testing.assert_array_equal(numbers[:7, 0], [5, 6, 0, 1, 2, 3, 4])  # polygons are numbered first
    for rows, kind, present in (
        (slice(0, 2), seen.circles, seen.circle_mask),
        (slice(2, 7), seen.polygons, seen.polygon_mask),
        (slice(7, 9), seen.joints, seen.joint_mask),
        (slice(9, 10), seen.thrusters, seen.thruster_mask),
    ):
        np.testing.assert_array_equal(tokens[rows, 0], present)
        np.testing.assert_array_equal(tokens[rows, 5 : 5 + kind.shape[1]], kind * present[:, None])
    np.testing.assert_array_equal(numbers[7:9], seen.joint_indexes)
    for row in (7, 8):
        for column, number in zip((44, 48), numbers[row], strict=True):
            shape = tokens[np.flatnonzero(numbers[:7, 0] == number)[0]]
            np.testing.assert_array_equal(tokens[row, column : column + 4], shape[[5, 6, 17, 18]])
    large = Simulation(load_level("l/h17_unicycle"), observation="entities").observation_space()
    assert large.spaces["observation.entities"].shape == (4 + 12 + 2 * 6 + 2, 52)


def test_pixels_are_small_pictures():
    simulation = Simulation(load_level(LEVEL), observation="pixels")
    view = np.asarray(jax.jit(simulation.observe)(simulation.initial())["observation.images.view"])
    space = simulation.observation_space().spaces["observation.images.view"]
    assert view.shape == (125, 125, 3) and view.dtype == np.uint8 and space.contains(view)
    assert (view[-5:] < 200).all()


@pytest.mark.slow
def test_random_levels_follow_from_their_seed():
    one, again, other = random_level("s", 3), load_level("random/s/3"), random_level("s", 4)
    assert_same_leaves(one.state, again.state)
    assert not np.array_equal(one.state.polygon.position, other.state.polygon.position)
    roles = np.concatenate([one.state.polygon_shape_roles, one.state.circle_shape_roles])
    assert {1, 2} <= set(roles.tolist())
    start = load_level(LEVEL).state
    assert [x.dtype for x in jax.tree.leaves(one.state)] == [x.dtype for x in jax.tree.leaves(start)]
    with pytest.raises(ValueError, match="unknown size 'xl'"):
        random_level("xl", 0)
