"""Which curvature of a policy's expected return is real, and which is noise of the episodes.

A small policy on CartPole, before and after some updates by TRPO: the two extreme eigenvalues of the Hessian of the
expected return, with intervals and a test against actions that are drawn anew. Needs Gymnasium: `pip install ".[rl]"`.

    python examples/policy_hessian.py
"""

import sys

import keras

import tf_natgrad as ng

SMOKE = "--smoke" in sys.argv
EPISODES, LENGTH, STEPS = (10, 64, 256) if SMOKE else (100, 512, 8_192)

keras.utils.set_random_seed(0)
network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)])
policy = ng.rl.CategoricalPolicy(network)


def described(when):
    episodes = ng.rl.collect("CartPole-v1", policy, num_episodes=EPISODES, seed=1)
    found = ng.rl.extreme_curvature(policy, episodes, gamma=0.99, null_draws=39)
    print(f"\n{when}: mean return {episodes.returns(gamma=1.0).mean():.1f} over {EPISODES} episodes")
    for end in (0, 1):
        low, high = found.intervals[end]
        # Two ends are tested, at half the level each.
        verdict = "beyond what noise gives" if found.p_values[end] <= 0.025 else "not told apart from noise"
        name = ("smallest", "largest")[end]
        print(
            f"  {name} eigenvalue {found.eigenvalues[end]:8.1f} (95% interval {low:.1f} to {high:.1f}), "
            f"cross-fitted {found.cross_fitted[end]:.1f}, p = {found.p_values[end]:.3f}: {verdict}"
        )


described("before training")
agent = ng.rl.TRPO("CartPole-v1", policy=policy, n_envs=2, n_steps=LENGTH, seed=0)
agent.learn(total_steps=STEPS, progress=False)
described(f"after {STEPS:,} steps of TRPO")
