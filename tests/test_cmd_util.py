import os
import re
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import run_atari
import run_mujoco
from common import cmd_util, logger
from common.monitor import load_results

PRESETS = {
    "plain": dict(env="CartPole-v1", num_timesteps=1e3, schedule="linear", gamma=0.9),
    "other": dict(env="Acrobot-v1", num_timesteps=2e3, schedule="constant", gamma=0.8),
}


def make_parser():
    parser = cmd_util.mujoco_arg_parser()
    cmd_util.add_ppo_flags(parser, PRESETS)
    return parser


def parse(*argv):
    return cmd_util.parse_args(make_parser(), PRESETS, argv)


# ---- Command lines ------------------------------------------------------------------------------


def test_the_first_preset_is_the_default_and_a_flag_beats_it():
    args = parse()
    assert (args.preset, args.env, args.gamma, args.num_timesteps) == (
        "plain", "CartPole-v1", 0.9, 1000,
    )  # fmt: skip
    args = parse("--gamma", "0.5", "--preset=other")
    assert (args.preset, args.env, args.gamma, args.max_timesteps) == (
        "other", "Acrobot-v1", 0.5, 2000,
    )  # fmt: skip


def test_underscores_aliases_and_counts_as_floats():
    args = parse("--num_timesteps", "1e6", "--env-id=a_b:C_d-v0", "--log_path=a_b", "--seed", "5")
    assert args.num_timesteps == args.max_timesteps == 1_000_000
    assert isinstance(args.max_timesteps, int)
    assert (args.env, args.seed) == ("a_b:C_d-v0", 5)  # values keep theirs
    assert args.log_path == os.path.abspath("a_b")
    assert parse("--optim-batchsize", "6.4e1").optim_batchsize == 64


@pytest.mark.parametrize("limit", ["max_iters", "max_episodes", "max_seconds"])
def test_another_limit_replaces_num_timesteps(limit):
    args = parse(cmd_util.flag(limit), "7", "--schedule", "constant")
    limits = ("max_timesteps", "max_episodes", "max_iters", "max_seconds")
    assert {name: getattr(args, name) for name in limits} == {**dict.fromkeys(limits, 0), limit: 7}
    assert args.num_timesteps == 0


def test_timesteps_factor():
    parser = cmd_util.atari_arg_parser()
    parser.set_defaults(preset="only")
    args = cmd_util.parse_args(parser, {"only": {"timesteps_factor": 1.1}}, [])
    assert (args.num_timesteps, args.max_timesteps) == (10_000_000, 11_000_000)


def test_logs_go_where_the_environment_says(monkeypatch):
    assert (parse().log_path, parse().log_format) == (None, ["stdout", "log", "csv"])
    monkeypatch.setenv("OPENAI_LOGDIR", "there")
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "csv, json")
    assert parse().log_path == os.path.abspath("there")
    assert parse().log_format == ["csv", "json"]
    args = parse("--log-path", "here", "--log-format", "stdout")
    assert (args.log_path, args.log_format) == (os.path.abspath("here"), ["stdout"])


@pytest.mark.parametrize(
    "command, message",
    [
        (
            "--num-timesteps 0",
            "argument --num-timesteps: need a whole number above 0, or 0 for --play",
        ),
        ("--num-timesteps -1", "need a whole number of at least 0, got '-1'"),
        ("--num-timesteps nan", "need a whole number of at least 0, got 'nan'"),
        ("--num-timesteps inf", "need a whole number of at least 0, got 'inf'"),
        ("--max-iters 0", "argument --max-iters: need a whole number above 0"),
        ("--max-seconds nan", "argument --max-seconds: need a number above 0, got 'nan'"),
        ("--max-seconds inf", "need a number above 0, got 'inf'"),
        ("--reward-scale abc", "argument --reward-scale: need a number above 0, got 'abc'"),
        ("--optim-epochs 1.5", "argument --optim-epochs: need a whole number, got '1.5'"),
        ("--optim-epochs inf", "need a whole number, got 'inf'"),
        ("--gamma abc", "argument --gamma: invalid float value: 'abc'"),
        ("--schedule cosine", "argument --schedule: invalid choice: 'cosine'"),
        ("--preset nope", "argument --preset: invalid choice: 'nope'"),
        ("--seed abc", "argument --seed: need a whole number from 0 to 4294967295, got 'abc'"),
        ("--seed -1", "got '-1'"),
        ("--seed 1.0", "got '1.0'"),
        ("--seed 4294967296", "got '4294967296'"),
        ("--env-kwargs 3", "argument --env-kwargs: need a JSON object, such as .*, got '3'"),
        *(
            (f"--env-kwargs {text}", "argument --env-kwargs: need a JSON object")
            for text in ('{"a":NaN}', '{"a":1e999}', '{"a":1,"a":2}', f'{{"a":{2**70}}}')
        ),
        ("--env-kwargs {a:1}", "--env-kwargs: need a JSON object, .* got '{a:1}'"),
        ("--max-episode-steps 0", "--max-episode-steps: need a whole number above 0, got '0'"),
        ("--log-format csv,xml", "unknown format 'xml': need some of stdout, log, csv, json"),
        ("--num-timestep 9", "unrecognized arguments: --num-timestep 9; did you mean --num-time"),
        ("--sched constant", "unrecognized arguments: --sched constant"),  # no abbreviations
        ("stray", "unrecognized arguments: stray"),
        ("--gamma", "argument --gamma: expected one argument"),
        ("--num-timesteps 9 --max-iters 9", "one limit, not both --num-timesteps and --max-iters"),
        ("--max-episodes 9 --max-iters 9", "one limit, not both --max-episodes and --max-iters"),
        ("--max-iters 9", "with --max-iters, a linear schedule .* add --schedule constant "),
        (
            "--max-seconds 9 --clip-schedule linear",
            "add --schedule constant --clip-schedule constant ",
        ),
    ],
)
def test_a_bad_command_line_gets_one_line_and_exit_code_2(command, message, capsys):
    with pytest.raises(SystemExit) as leave:
        parse(*command.split())
    assert leave.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert err.endswith("(--help lists the flags)\n")


@pytest.mark.parametrize(
    "command, advice",
    [
        ("--total-timesteps 9", "did you mean --num-timesteps?"),
        ("--learning_rate=3e-4", "did you mean --optim-stepsize?"),
        ("--gae-lambda 0.9", "did you mean --lam?"),
        ("--epochs 3", "did you mean --max-iters or --optim-epochs?"),
        ("--nminibatches 4", "did you mean --optim-batchsize (its rows, not their number)?"),
        ("--max-grad-norm 0.5", "ppo1 does not clip gradients"),
        ("--n-envs 8 --lr 1 --vf_coef -1 --colour",
         "--n-envs: did you mean --num-procs?; --lr: did you mean --optim-stepsize?; --vf-coef: "
         "the value loss always has weight 1"),
    ],
)  # fmt: skip
def test_what_other_libraries_call_a_flag_is_known(command, advice, capsys):
    with pytest.raises(SystemExit):
        parse(*command.split())
    flags = command.replace("_", "-")
    error = capsys.readouterr().err
    assert f"error: unrecognized arguments: {flags}; {advice} (--help" in error


def test_only_the_scripts_own_flags_are_suggested():
    assert run_atari.arg_parser()._hint("--network") == "did you mean --kind?"
    want = "did you mean --hid-size or --num-hid-layers?"
    assert run_mujoco.arg_parser()._hint("--network") == want


def test_the_table_of_names_is_of_flags_that_exist_and_of_none_of_ours():
    parsers = (run_mujoco.arg_parser(), run_atari.arg_parser())
    ours = {flag for parser in parsers for flag in parser._option_string_actions}
    to_come = {"--env-kwargs", "--max-episode-steps"}
    for flag, names in cmd_util.OTHER_NAMES.items():
        assert not flag.startswith("--") or flag.split()[0] in ours | to_come
        assert not ours & {f"--{name}" for name in names.split()}


@pytest.mark.parametrize("preset, gamma", [("plain", 0.9), ("other", 0.8)])
def test_help_shows_the_presets_defaults(preset, gamma, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as leave:
        parse("--preset", preset, "--help")
    assert leave.value.code == 0
    text = capsys.readouterr().out
    assert f"with --preset {preset}" in text
    assert f"discount ({gamma})" in text
    assert f"({int(PRESETS[preset]['num_timesteps'])})" in text
    assert "None" not in text
    assert "False" not in text
    assert max(map(len, text.splitlines())) < 80
    assert len(text.splitlines()) <= 60  # one screen


# ---- Environments by name -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new",
    [("Hopper-v2", "Hopper-v4"), ("Reacher-v1", "Reacher-v4"), ("HalfCheetah-v3", "HalfCheetah-v4"),
     ("Pusher-v2", "Pusher-v5"), ("FetchReachDense-v1", "FetchReachDense-v4")],
)  # fmt: skip
def test_an_old_version_gets_its_stand_in_with_one_line(old, new, capsys):
    assert cmd_util.resolve_env_id(old) == new
    assert capsys.readouterr() == (f"{old} no longer runs: taking {new} instead\n", "")
    assert cmd_util.resolve_env_id(new) == new
    assert capsys.readouterr() == ("", "")


def test_a_package_is_imported_and_stays_in_the_id(tmp_path, monkeypatch):
    source = "import gymnasium\ngymnasium.register('Fresh-v0', entry_point=lambda: None)\n"
    (tmp_path / "fresh_package.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fresh_package", raising=False)
    try:
        assert cmd_util.resolve_env_id("fresh_package:Fresh-v0") == "fresh_package:Fresh-v0"
        assert "Fresh-v0" in gym.registry
    finally:
        gym.registry.pop("Fresh-v0", None)


def test_the_shells_folder_is_searched_last_for_a_package(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    for name, source in {
        "shell_cart": "import gymnasium\ngymnasium.register('Cart-v0', entry_point=lambda: None)\n",
        "shell_needs": "import not_installed_here",
        "shell_common": "from common import helpers",
        "shell_helpers": "import common.helpers",
        "logging": "",  # must not hide Python's
    }.items():
        (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").touch()
    (tmp_path / "common" / "helpers.py").touch()
    try:
        assert cmd_util.resolve_env_id("shell_cart:Cart-v0") == "shell_cart:Cart-v0"
    finally:
        gym.registry.pop("Cart-v0", None)
    assert sys.path[-1] == str(tmp_path)
    with pytest.raises(ValueError, match="'not_installed_here' is missing: pip install not_inst"):
        cmd_util.resolve_env_id("shell_needs:Cart-v0")
    ours = os.path.dirname(cmd_util.__file__)
    for name in ("shell_common", "shell_helpers"):
        want = (
            f"; 'common' is ppo1's, in {ours}, and hides the one in {tmp_path}/common: rename that"
        )
        with pytest.raises(ValueError, match=re.escape(want)):
            cmd_util.resolve_env_id(f"{name}:Cart-v0")


@pytest.mark.parametrize(
    "env_id, message",
    [
        ("Hoper-v4", "^unknown environment 'Hoper-v4'; did you mean Hopper-v4 or Hopper-v5"),
        ("hopper-V4", "did you mean Hopper-v4\\?$"),
        ("Ant", "did you mean Ant-v"),
        ("FecthReach-v4", "did you mean FetchReach-v4"),  # not of Gymnasium's own
        ("FetchReach-v9", "did you mean FetchReach-v4"),
        ("Qwzxkjy-v0", "^unknown environment 'Qwzxkjy-v0'$"),
        ("tests.envs:toy/raise-v0", "did you mean toy/raises-v0"),
        (
            "nopackage:A-v0",
            "'nopackage:A-v0': no module 'nopackage' in /.* or on Python's path: sta",
        ),
        (
            "tests.nomodule:A-v0",
            "no module 'tests.nomodule' in /.*: start in its folder, set PYTHON",
        ),
        (":A-v0", "environment ':A-v0': Empty module name"),
    ],
)
def test_an_unknown_environment_gets_near_names(env_id, message):
    with pytest.raises(ValueError, match=message):
        cmd_util.resolve_env_id(env_id)


def test_an_id_of_a_provider_is_found_by_any_name():
    assert cmd_util.resolve_env_id("Pong-v4") == "Pong-v4"


def test_a_game_must_show_each_frame_as_an_image():
    assert cmd_util.resolve_game_id("PongNoFrameskip-v4") == "PongNoFrameskip-v4"
    for env_id in ("Pong-v4", "ALE/Pong-v5", "Pong-ramNoFrameskip-v4", "PongDeterministic-v4",
                   "PongNoFrameskip-v7", "pong", "Pnog"):  # fmt: skip
        want = f"{env_id}' does not fit: .* NoFrameskip.*; did you mean PongNoFrameskip-v4\\?$"
        with pytest.raises(ValueError, match=want):
            cmd_util.resolve_game_id(env_id)
    with pytest.raises(ValueError, match="did you mean SpaceInvadersNoFrameskip-v4\\?"):
        cmd_util.resolve_game_id("space_invaders")
    with pytest.raises(ValueError, match="'Hopper-v4' does not fit: need an Atari game"):
        cmd_util.resolve_game_id("Hopper-v4")


@pytest.mark.parametrize("module, package", [("gymnasium_robotics", "gymnasium-robotics"),
                                             ("ale_py", "ale-py")])  # fmt: skip
def test_a_missing_provider_is_named(module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    env_ids = {"gymnasium_robotics": "FetchReach-v4", "ale_py": "ALE/Pong-v5"}
    want = f"environment '{env_ids[module]}': module '{module}' is missing: pip install {package}$"
    with pytest.raises(ValueError, match=want):
        cmd_util.resolve_env_id(env_ids[module])
    with pytest.raises(ValueError, match="did you mean Hopper-v4"):  # no need of it here
        cmd_util.resolve_env_id("Hoper-v4")


# ---- Environments -------------------------------------------------------------------------------


def wrappers(env):
    names = []
    while env is not env.unwrapped:
        names.append(type(env).__name__)
        env = env.env
    return names


def test_mujoco_env_learns_from_scaled_rewards_and_monitors_raw_ones(tmp_path):
    plain = gym.make("InvertedPendulum-v5", disable_env_checker=True)
    plain.reset(seed=3)  # as when an environment is made; then, as when a generator starts:
    want, _ = plain.reset()
    logger.configure(tmp_path, [])
    env = cmd_util.make_mujoco_env("InvertedPendulum-v5", 3, reward_scale=0.25)
    ob, _ = env.reset()
    assert np.random.get_state()[1][0] == 3
    assert ob.dtype == np.float64
    assert "PassiveEnvChecker" not in wrappers(env)
    total, over = 0.0, False
    while not over:
        np.testing.assert_array_equal(ob, want)
        want, raw, terminated, truncated, _ = plain.step(np.float32([0.5]))
        ob, reward, _, _, _ = env.step(np.float32([0.5]))
        assert reward == 0.25 * raw
        total += raw
        over = terminated or truncated
    env.close()
    _, columns, row = (tmp_path / "0.monitor.csv").read_text().splitlines()
    assert columns == "r,l,t"
    assert float(row.split(",")[0]) == total


def test_a_v4_and_its_seeds_make_no_noise(capfd):
    env = cmd_util.make_mujoco_env("Hopper-v4", None)  # warnings are errors here
    assert env.spec.id == "Hopper-v4"
    assert "TransformReward" not in wrappers(env)
    assert capfd.readouterr() == ("", "")


def test_robotics_env_is_goal_then_observation(tmp_path):
    logger.configure(tmp_path, [])
    env = cmd_util.make_robotics_env("FetchReach-v4", 7, rank=2)
    goals = gym.make("FetchReach-v4", disable_env_checker=True)
    goals.reset(seed=7)  # this rank's own seed, as given
    assert env.observation_space.shape == (13,)
    (ob, _), (want, _) = env.reset(), goals.reset()
    for _ in range(50):
        np.testing.assert_array_equal(ob, [*want["desired_goal"], *want["observation"]])
        assert ob.dtype == np.float64
        action = np.float32([0.3, -0.2, 0.1, 0.0])
        ob, *_ = env.step(action)
        want, _, _, truncated, info = goals.step(action)
    assert truncated
    env.close()
    _, columns, row = (tmp_path / "2.monitor.csv").read_text().splitlines()
    assert columns == "r,l,t,is_success"
    assert float(row.split(",")[3]) == info["is_success"]


def test_robotics_env_needs_goals():
    with pytest.raises(ValueError, match="'CartPole-v1' has no goals: need .* 'desired_goal', got"):
        cmd_util.make_robotics_env("CartPole-v1", 0)


def test_observations_become_vectors():
    env = cmd_util.make_mujoco_env("tests.envs:toy/dict-v0", 0)
    assert isinstance(env.observation_space, spaces.Box)
    raw = env.unwrapped.observation_space
    raw.seed(5)
    ob, _ = env.reset()
    raw.seed(5)
    sample = raw.sample()
    np.testing.assert_array_equal(ob, [*np.eye(3)[sample["a"]], *sample["b"][0].ravel()])
    discrete = cmd_util.make_mujoco_env("FrozenLake-v1", 0)
    np.testing.assert_array_equal(discrete.reset()[0], np.eye(16)[0])


def test_observations_without_a_fixed_size_are_refused():
    with pytest.raises(ValueError, match="unsupported observation space Sequence.*no fixed size"):
        cmd_util.make_mujoco_env("tests.envs:toy/sequence-v0", 0)


@pytest.mark.parametrize(
    "name, message",
    [
        ("vectors", "a single one .*not a vector.*: The environment must .*CartPoleVectorEnv'>$"),
        ("old-vector", "^OldAPI is a vector environment of 4: learn takes a .*mpirun -np N"),
        ("old-spaces", "^action_space .* belongs to the old package gym, OldAPI with it"),
        ("old-seed", r"^OldAPI.reset\(\) takes no seed, as in gym before 0.26: Gymnasium's reset"),
        ("old-reset", r"^OldAPI.reset\(\) returned an observation alone, as in gym before 0.26"),
        ("old-dict", r"reset\(\) returned \{.*: Gymnasium's"),  # which a wrapper would unpack
    ],
)
def test_what_is_not_one_environment_of_todays_api_gets_a_sentence(name, message):
    with pytest.raises(ValueError, match=message):
        cmd_util.make_mujoco_env(f"tests.envs:toy/{name}-v0", 0)


# ---- Options of environments --------------------------------------------------------------------


def test_arguments_of_an_environment():
    kwargs = {"sutton_barto_reward": True}
    args = parse("--env-kwargs", '{"sutton_barto_reward": true}', "--max-episode-steps", "3")
    options = cmd_util.env_options(args)
    assert options == {"max_episode_steps": 3, "env_kwargs": kwargs, "clip_actions": None}
    env = cmd_util.make_mujoco_env(args.env, 0, **options)
    env.reset()
    steps = [env.step(0) for _ in range(3)]
    assert [step[1:4] for step in steps] == [(0.0, False, i == 2) for i in range(3)]
    assert env.episode_lengths == [3]


def test_a_limit_takes_the_place_of_the_environments_own():
    env = cmd_util.make_mujoco_env("Pendulum-v1", 0, max_episode_steps=300)  # its own is 200
    env.reset()
    lengths = [i for i in range(300) if env.step(np.zeros(1, np.float32))[3]]
    assert lengths == [299]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"mass": 1}, "TypeError: .*__init__.. got an unexpected keyword argument 'mass'"),
        ({"render_mode": "holo", "max_episode_steps": 3}, "multiple values for .*'max_episode_s"),
    ],
)
def test_arguments_that_an_environment_does_not_take(kwargs, message):
    with pytest.raises(ValueError, match="^environment 'CartPole-v1' with --env-kwargs {") as error:
        cmd_util.make_mujoco_env("CartPole-v1", 0, env_kwargs=kwargs)
    assert re.search(message, str(error.value))


def test_the_environment_sees_clipped_actions_and_the_policy_its_own():
    seen = []
    env = cmd_util.make_mujoco_env("Pendulum-v1", 0, clip_actions=True)
    env.unwrapped.step = lambda action: (seen.append(action), np.zeros(3), 0.0, False, False, {})[
        1:
    ]
    assert env.action_space == spaces.Box(-np.inf, np.inf, (1,))
    env.reset()
    action = np.float32([-7.5])
    env.step(action)
    assert (seen, action) == ([-2.0], [-7.5])
    plain = cmd_util.make_mujoco_env("CartPole-v1", 0, clip_actions=True)
    assert plain.action_space == spaces.Discrete(2)


# ---- Seeds --------------------------------------------------------------------------------------


def episodes(env, count=2):
    """Return the observations of some episodes."""
    obs = []
    for _ in range(count):
        obs.append(env.reset()[0])
        over = False
        while not over:
            ob, _, over, *_ = env.step(0)
            obs.append(ob)
    return np.array(obs)


def test_all_that_an_environment_draws_repeats():
    one, again, other = (
        episodes(cmd_util.make_mujoco_env("tests.envs:toy/drawing-v0", seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any(axis=0).all()  # each generator has its share in this
    starts, hints, parts = one[:, 7:9], one[:, 9:11], one[:, 11:]
    assert (starts != hints).all()  # spaces that are alike have streams of their own
    assert (starts != parts).all()


def test_seeding_spaces_leaves_the_other_generators_as_they_were():
    """What was trained before spaces were seeded repeats, too."""
    env = cmd_util.make_mujoco_env("Reacher-v5", 3)
    plain = gym.make("Reacher-v5", disable_env_checker=True)
    plain.reset(seed=3)
    plain.action_space.seed(3)
    states = [each.np_random.bit_generator.state for each in (env.unwrapped, plain.unwrapped)]
    assert states[0] == states[1]
    assert env.unwrapped.np_random_seed == 3
    np.testing.assert_array_equal(env.action_space.sample(), plain.action_space.sample())
    assert np.random.rand() == np.random.RandomState(3).rand()


# ---- Two environments of one process ------------------------------------------------------------


def test_a_second_environment_leaves_the_firsts_file_alone(tmp_path, capsys):
    logger.configure(tmp_path, ["stdout"])
    first = cmd_util.make_mujoco_env("tests.envs:toy/drawing-v0", 0)
    episodes(first, 2)
    second = cmd_util.make_mujoco_env("tests.envs:toy/drawing-v0", 1)
    episodes(first, 1)
    episodes(second, 1)
    want = f"{tmp_path}/0.monitor.csv is another environment's, made before and not closed"
    assert want in capsys.readouterr().out
    assert len(second.episode_rewards) == 1
    assert load_results(tmp_path)["r"].tolist() == [round(x, 6) for x in first.episode_rewards]
    assert [path.name for path in tmp_path.iterdir()] == ["0.monitor.csv"]
    first.close()
    third = cmd_util.make_mujoco_env("tests.envs:toy/drawing-v0", 1)  # a new run, as always
    episodes(third, 1)
    assert len(load_results(tmp_path)) == 1
    assert capsys.readouterr().out == ""
    third.close()
