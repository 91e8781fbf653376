"""Doors of reinforcement learning."""

import pathlib
import tempfile

import bad_values as bad
import gymnasium
import keras
import numpy as np
from bad_values import CLASSES, EXAMPLES, INF, NAN, WIDTH, floats, numbers
from doors import MODEL, Door, X, Y, network, products

from tf_natgrad import rl
from tf_natgrad.rl.normalization import RunningMoments

POLICY = rl.CategoricalPolicy(network())
GAUSSIAN = rl.GaussianPolicy(network())
STEPS = 3
EPISODES = rl.Episodes.from_arrays(
    np.random.default_rng(0).normal(size=(4, STEPS, WIDTH)), np.arange(12).reshape(4, STEPS) % 2, np.ones((4, STEPS))
)
CURVATURE = rl.PolicyHessian(POLICY, EPISODES)


class Field(gymnasium.Env):
    """Three numbers to see, two things to do, over after three steps."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (WIDTH,))
    action_space = gymnasium.spaces.Discrete(CLASSES)

    def reset(self, *, seed=None, options=None):
        self.left = STEPS
        return self.observation_space.low, {}

    def step(self, action):
        self.left -= 1
        return self.observation_space.low, 1.0, self.left == 0, False, {}


AGENT = rl.TRPO(Field, n_steps=4)
FOLDER = pathlib.Path(tempfile.mkdtemp())
AGENT.save(FOLDER / "agent.npz")
EPISODES.save(FOLDER / "episodes.npz")
(FOLDER / "text.npz").write_text("nothing of the kind")


def _agent_numbers():
    return {
        "env": [None, 3, "NoSuchEnv-v0", Field(), gymnasium.spaces.Discrete(2), [Field], "", bad.a_function],
        "learning_rate": numbers(0.0, exclusive=True),
        "n_steps": numbers(1, integer=True),
        "batch_size": numbers(1, integer=True),
        "gamma": numbers(0.0, maximum=1.0),
        "cg_max_steps": numbers(1, integer=True),
        "cg_damping": numbers(0.0),
        "n_critic_updates": numbers(1, integer=True),
        "gae_lambda": numbers(0.0, maximum=1.0),
        "normalize_advantage": bad.FLAGS,
        "target_kl": numbers(0.0, exclusive=True),
        "sub_sampling_factor": [*numbers(1, integer=True), 10**6],
        "n_envs": numbers(1, integer=True),
        "normalize_observations": bad.FLAGS,
        "normalize_rewards": bad.FLAGS,
        "policy": [
            "policy",
            3,
            MODEL,
            rl.CategoricalPolicy,
            bad.a_function,
            GAUSSIAN,
            rl.CategoricalPolicy(network(3)),
        ],
        "value_network": ["network", 3, MODEL, keras.Sequential, bad.a_function, [], np.zeros(2)],
        "seed": bad.SEEDS,
    }


FLAT_STEPS = {
    "observations": EPISODES.observations,
    "actions": EPISODES.actions,
    "rewards": EPISODES.rewards,
    "lengths": EPISODES.lengths,
    "terminated": EPISODES.terminated,
}
PADDED = {
    "observations": np.zeros((4, STEPS, WIDTH)),
    "actions": np.zeros((4, STEPS), int),
    "rewards": np.ones((4, STEPS)),
}
WRONG_ROWS = [v for v in bad.NOT_NUMBERS if v is not None] + [3.0, np.zeros([5, STEPS])]
OVER = np.zeros((STEPS, 2), bool)
ADVANTAGES = {
    "rewards": np.ones((STEPS, 2)),
    "values": np.ones((STEPS, 2)),
    "next_values": np.ones((STEPS, 2)),
    "terminated": OVER,
    "truncated": OVER,
}
ROWS_OF_STEPS = [*bad.NOT_NUMBERS, 3.0, np.zeros(STEPS), np.zeros([STEPS, 3]), np.ones((STEPS, 2)) * 1j]
WRONG_EPISODES = [None, "episodes", 3, FLAT_STEPS, np.zeros([4, 3]), rl.Episodes, bad.a_function]
WRONG_POLICIES = [None, "policy", 3, MODEL, rl.CategoricalPolicy, bad.a_function]
BASELINES = [
    "nonsense",
    NAN,
    True,
    [1.0],
    np.zeros(2),
    bad.Unrelated(),
    lambda o, t: np.zeros(3),
    lambda o, t: None,
    lambda o, t: np.full(12, NAN),
    lambda o, t: ["x"] * 12,
]
OBSERVATIONS = [*bad.NOT_NUMBERS, floats(2, WIDTH + 1), floats(2, 2, WIDTH), 3.0]
EPISODE_CALLS = {
    "policy": WRONG_POLICIES,
    "estimator": bad.CHOICES,
    "baseline": BASELINES,
    "gamma": numbers(0.0, maximum=1.0),
}
LEARN = {"total_steps": 0, "progress": False}


def _layer():
    layer = rl.ObservationNormalization()
    layer.build((None, WIDTH))
    return layer


AGENT_RANGES = _agent_numbers()
OWNERS = [POLICY, GAUSSIAN, AGENT.policy, AGENT.critic.network]
DOORS = [
    *products(CURVATURE, "matvec", "matmul", "quadratic_forms"),
    Door(
        "rl.TRPO",
        rl.TRPO,
        {"env": Field},
        {
            **AGENT_RANGES,
            "line_search_shrinking_factor": numbers(0.0, exclusive=True, maximum=1.0, open_above=True),
            "line_search_max_iter": numbers(1, integer=True),
        },
    ),
    Door("rl.NaturalPolicyGradient", rl.NaturalPolicyGradient, {"env": Field}, AGENT_RANGES),
    Door(
        "TRPO.learn",
        AGENT.learn,
        LEARN,
        {
            "total_steps": numbers(0, integer=True),
            "callbacks": [None, "f", 3, [3], [None], {"a": 1}],
            "progress": bad.FLAGS,
            "log_path": bad.PATHS,
            "tensorboard": bad.PATHS,
            "checkpoint": bad.PATHS,
            "checkpoint_every": numbers(1, integer=True),
        },
    ),
    Door(
        "TRPO.predict",
        AGENT.predict,
        {"observation": X},
        {
            "observation": [*OBSERVATIONS, floats(2, WIDTH, fill=NAN), floats(0, WIDTH), np.zeros([])],
            "deterministic": bad.FLAGS,
            "seed": bad.SEEDS[1:],
        },
    ),
    Door(
        "TRPO.evaluate",
        AGENT.evaluate,
        {"episodes": 1},
        {"episodes": numbers(1, integer=True), "deterministic": bad.FLAGS, "seed": [*bad.SEEDS, 2**31]},
        {"episodes": ("num_episodes",)},
    ),
    Door(
        "TRPO.collect",
        AGENT.collect,
        {"episodes": 1},
        {"episodes": numbers(1, integer=True), "deterministic": bad.FLAGS, "seed": [*bad.SEEDS, 2**31]},
        {"episodes": ("num_episodes",)},
    ),
    Door("TRPO.save", AGENT.save, {"path": FOLDER / "again.npz"}, {"path": [None, *bad.PATHS]}),
    Door(
        "TRPO.load",
        rl.TRPO.load,
        {"path": FOLDER / "agent.npz", "env": Field},
        {
            "path": [None, *bad.PATHS, FOLDER / "text.npz", FOLDER / "episodes.npz", FOLDER],
            "env": [None, 3, "NoSuchEnv-v0", Field()],
        },
    ),
    Door(
        "rl.collect",
        rl.collect,
        {"env": Field, "policy": POLICY, "num_episodes": 1},
        {
            "env": [*AGENT_RANGES["env"]],
            "policy": [*WRONG_POLICIES, GAUSSIAN],
            "num_episodes": numbers(1, integer=True),
            "seed": [*bad.SEEDS, 2**31],
            "deterministic": bad.FLAGS,
            "progress": bad.FLAGS,
        },
    ),
    Door("rl.CategoricalPolicy", rl.CategoricalPolicy, {"network": MODEL}, {"network": bad.MODELS}, free=("name",)),
    Door(
        "rl.GaussianPolicy",
        rl.GaussianPolicy,
        {"network": MODEL},
        {"network": [*bad.MODELS, keras.Sequential([keras.layers.Dense(2)])], "initial_log_std": numbers()},
        free=("name",),
    ),
    *(
        Door(
            f"{type(policy).__name__}.{name}",
            getattr(policy, name),
            {"observations": X, **more},
            {"observations": OBSERVATIONS, **wrong},
            also,
        )
        for policy, actions in ((POLICY, Y), (GAUSSIAN, floats(EXAMPLES, CLASSES)))
        for name, more, wrong, also in (
            ("distribution", {}, {}, {}),
            (
                "log_prob",
                {"actions": actions},
                {
                    "actions": [
                        *bad.NOT_NUMBERS,
                        np.zeros([5, 5]),
                        np.zeros([3, 1, 1]),
                        1j * np.ones([EXAMPLES, CLASSES]),
                    ]
                },
                {"actions": ("value",)},
            ),
            ("sample", {"seed": [0, 1]}, {"seed": [None, "x", 3, [1], [1, 2, 3], [0.5, 1.0], bad.a_function]}, {}),
        )
    ),
    *(
        Door(
            f"{type(policy).__name__}.check_action_space",
            policy.check_action_space,
            {"space": space},
            {"space": [None, 3, "x", gymnasium.spaces.Discrete(7), wrong]},
            {"space": ("policy",)},
        )
        for policy, space, wrong in (
            (POLICY, gymnasium.spaces.Discrete(2), gymnasium.spaces.Box(-1, 1, (2,))),
            (GAUSSIAN, gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)),
        )
    ),
    Door(
        "rl.Episodes",
        rl.Episodes,
        FLAT_STEPS,
        {
            "observations": [*bad.NOT_NUMBERS, floats(11, WIDTH), floats(12, WIDTH, fill=NAN), 3.0],
            "actions": [*bad.NOT_NUMBERS, np.zeros(11, int), np.full(12, NAN), 3, np.zeros(12, complex)],
            "rewards": [*bad.NOT_NUMBERS, np.ones(11), np.full(12, INF), 3.0, np.ones([12, 1]), np.zeros(12, complex)],
            "lengths": [
                *bad.NOT_NUMBERS,
                [],
                [3, 3, 3, 0],
                [3, 3, 3, -1],
                [3.0, 3.0, 3.0, 2.5],
                12,
                [[3, 3, 3, 3]],
                [5, 5],
                [NAN] * 4,
            ],
            "terminated": [*bad.NOT_NUMBERS[1:], [True], True, [0.5] * 4, [[True] * 4]],
            "final_observations": [*bad.NOT_NUMBERS[1:], np.zeros([3, WIDTH]), np.zeros([4, WIDTH + 1]), 3.0],
            "weights": [*bad.NOT_NUMBERS[1:], np.ones(3), np.full(4, NAN), 3.0, np.ones([4, 1]), np.ones(4) * 1j],
        },
        {"lengths": ("observations",)},
    ),
    Door(
        "Episodes.from_arrays",
        rl.Episodes.from_arrays,
        PADDED,
        {
            "observations": [None, *WRONG_ROWS, np.full((4, STEPS, WIDTH), NAN)],
            "actions": [None, *WRONG_ROWS, np.full((4, STEPS), NAN)],
            "rewards": [None, *WRONG_ROWS, np.zeros(3), np.full((4, STEPS), NAN)],
            "lengths": [*WRONG_ROWS, [3], [1, 1, 1, 9], [1, 1, 1, 0], [1, 1, 1, 2.5], [NAN] * 4],
            "weights": [*WRONG_ROWS, np.ones(3), np.full(4, NAN)],
            "terminated": [*WRONG_ROWS, [True], ["no"] * 4, [0.5] * 4],
        },
        {"rewards": ("observations",)},
    ),
    Door("Episodes.rewards_to_go", EPISODES.rewards_to_go, {"gamma": 1.0}, {"gamma": numbers(0.0, maximum=1.0)}),
    Door("Episodes.returns", EPISODES.returns, {"gamma": 1.0}, {"gamma": numbers(0.0, maximum=1.0)}),
    Door(
        "Episodes.select",
        EPISODES.select,
        {"chosen": [0, 2]},
        {"chosen": [*bad.NOT_NUMBERS, [], [4], [-5], [0.5], 1, [[0]], [True, False, True, False], [NAN]]},
    ),
    Door("Episodes.save", EPISODES.save, {"path": FOLDER / "more.npz"}, {"path": [None, *bad.PATHS]}),
    Door(
        "Episodes.load",
        rl.Episodes.load,
        {"path": FOLDER / "episodes.npz"},
        {"path": [None, *bad.PATHS, FOLDER / "text.npz", FOLDER / "agent.npz"]},
    ),
    Door(
        "rl.PolicyHessian",
        rl.PolicyHessian,
        {"policy": POLICY, "episodes": EPISODES},
        {
            **EPISODE_CALLS,
            "policy": [*WRONG_POLICIES, GAUSSIAN],
            "episodes": WRONG_EPISODES,
            "chunk_steps": numbers(1, integer=True, optional=True),
        },
    ),
    Door(
        "rl.extreme_curvature",
        rl.extreme_curvature,
        {"policy": POLICY, "episodes": EPISODES, "null_draws": 0},
        {
            **EPISODE_CALLS,
            "estimator": [*bad.CHOICES, "algorithm1"],
            "episodes": [*WRONG_EPISODES, EPISODES.select([0, 1])],
            "level": numbers(0.0, exclusive=True, maximum=1.0, open_above=True),
            "null_draws": [*numbers(0, integer=True), 5],
            "method": bad.CHOICES,
            "tol": numbers(0.0),
            "seed": bad.SEEDS,
        },
        {"estimator": ("operator",)},
    ),
    Door(
        "rl.step_weights",
        rl.step_weights,
        {"episodes": EPISODES, "estimator": "causal", "baseline": None, "gamma": 1.0},
        {
            "episodes": WRONG_EPISODES,
            "estimator": bad.CHOICES,
            "baseline": BASELINES,
            "gamma": numbers(0.0, maximum=1.0),
        },
    ),
    Door(
        "rl.generalized_advantages",
        rl.generalized_advantages,
        ADVANTAGES,
        {
            "rewards": [*ROWS_OF_STEPS, np.full((STEPS, 2), NAN)],
            "values": ROWS_OF_STEPS,
            "next_values": ROWS_OF_STEPS,
            "terminated": [*ROWS_OF_STEPS, np.full((STEPS, 2), "no"), np.full((STEPS, 2), 0.5)],
            "truncated": [*ROWS_OF_STEPS, np.full((STEPS, 2), "no"), np.full((STEPS, 2), 0.5)],
            "gamma": numbers(0.0, maximum=1.0),
            "gae_lambda": numbers(0.0, maximum=1.0),
        },
        {"rewards": ("values",)},
    ),
    Door(
        "ObservationNormalization.set_moments",
        lambda moments: _layer().set_moments(moments),
        {"moments": RunningMoments((WIDTH,))},
        {"moments": [None, 3, "x", np.zeros(WIDTH), RunningMoments((WIDTH + 1,))]},
    ),
]
