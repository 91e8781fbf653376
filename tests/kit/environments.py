"""Environments of known content."""

import gymnasium as gym
import numpy as np


class Counter(gym.Env):
    """Episodes of a given length; the observation is the time, the reward too. It keeps what it was told."""

    observation_space = gym.spaces.Box(0.0, 100.0, (1,))
    action_space = gym.spaces.Box(-0.5, 0.5, (1,))

    def __init__(self, length, terminates=True, reward=None):
        self.length, self.terminates, self.reward = length, terminates, reward
        self.received = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.received.append(np.array(action))
        self.time += 1
        over = self.time == self.length
        reward = float(self.time) if self.reward is None else self.reward
        return np.full(1, self.time, np.float32), reward, over and self.terminates, over and not self.terminates, {}
