"""Policies that need no learning: random smooth actions, and one script per reference world for recording.

A policy is made for one episode from the reset env and a generator, and is then called once per step:
`policy()` is the next action, in the env's own space. Scripts read the reference world's exact state, which
no agent sees.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from envs.action_spaces import REPEAT, draw_choice, from_unit
from envs.lab import Lab
from envs.mujoco_world import CONTROL_STEP_S, MujocoWorld
from envs.room import PUSH_RANGE_M, YAW_DEG_S, Room
from envs.scenes import ROOM_HALF_M

Policy = Callable[[], Any]

HOLD_STEPS = (4, 14)
SMOOTHING = 0.45


def smooth(env: gymnasium.Env, rng: np.random.Generator, scale: float = 1.0) -> Policy:
    """Random targets in [-1, 1], each held for a while and approached smoothly; reaches the whole range."""
    size = int(np.prod(env.action_space.shape or ()))
    target, action, left = np.zeros(size), np.zeros(size), 0

    def act() -> np.ndarray:
        nonlocal target, action, left
        if left == 0:
            target = np.clip(rng.normal(0, 0.8 * scale, size), -1, 1)
            left = int(rng.integers(*HOLD_STEPS))
        left -= 1
        action = action + SMOOTHING * (target - action)
        return np.clip(action, -1, 1).astype(np.float32)

    return act


def random(env: gymnasium.Env, rng: np.random.Generator) -> Policy:
    """Smooth in a box (from bound to bound); of choices, a random one each time, or often the last again."""
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Box):
        box, move = space, smooth(env, rng)
        return lambda: from_unit(box, move())
    action = draw_choice(space, rng)

    def act() -> Any:
        nonlocal action
        action = action if rng.random() < REPEAT else draw_choice(space, rng)
        return action

    return act


def _room(env: Room, rng: np.random.Generator) -> Policy:
    """Wander for a random time, then walk to the named thing; sometimes push what is ahead."""
    wander = smooth(env, rng)
    wandering = int(rng.integers(0, 70))
    pushing = rng.random() < 0.5
    noise = rng.uniform(0.0, 0.3)
    step = 0

    def act() -> np.ndarray:
        nonlocal step
        step += 1
        x, y, yaw, pitch = env.pose
        towards = env.state_vector()[:2] - (x, y)
        off = (np.arctan2(towards[1], towards[0]) - yaw + np.pi) % (2 * np.pi) - np.pi
        action = wander().astype(np.float64)
        action[3] = np.clip(0.4 * action[3] - 1.5 * (pitch + 0.15), -1, 1)
        if step <= wandering:
            ahead = np.array([x, y]) + 0.9 * np.array([np.cos(yaw), np.sin(yaw)])
            action[0] = np.clip(action[0] + 0.25, -1, 1)
            if abs(ahead).max() > ROOM_HALF_M:
                inwards = (np.arctan2(-y, -x) - yaw + np.pi) % (2 * np.pi) - np.pi
                action[2], action[0] = np.sign(inwards), 0.3 * action[0]
        else:
            turn = off / (np.radians(YAW_DEG_S) * CONTROL_STEP_S)
            action[:3] = np.clip((np.cos(off), 0.0, turn), -1, 1) * 0.9 + noise * action[:3]
        near = np.linalg.norm(towards) < PUSH_RANGE_M + 0.4
        action[4] = 1.0 if pushing and near and step % 12 < 4 else -abs(action[4])
        return np.clip(action, -1, 1).astype(np.float32)

    return act


def _orbit(env: gymnasium.Env, rng: np.random.Generator) -> Policy:
    """Half of the episodes go round at full speed with a little wobble, half are smooth and random."""
    if rng.random() < 0.5:
        return smooth(env, rng)
    wobble = smooth(env, rng, scale=0.5 * float(rng.random() < 0.6))
    side = float(rng.choice([-1.0, 1.0]))

    def act() -> np.ndarray:
        action = 0.4 * wobble()
        action[0] = side
        return action

    return act


def _lab(env: Lab, rng: np.random.Generator) -> Policy:
    """Pushes and touches on the named thing at random times; without any in half of the free experiments."""
    handled = env.scene()["kind"] == "mark"
    idle = not handled and rng.random() < 0.5
    push = smooth(env, rng)
    first = 1 if handled else int(rng.integers(3, 25))
    chance = rng.uniform(0.2, 0.5) if handled else rng.uniform(0.03, 0.15)
    step, left = 0, 0

    def act() -> np.ndarray:
        nonlocal step, left
        action = push().copy()
        touching = rng.random() < chance
        if idle or step < first:
            action[:] = 0.0
        elif left == 0:
            left = int(rng.integers(2, 7)) if rng.random() < (0.45 if handled else 0.15) else 0
            action[:3] *= 0.0 if left == 0 else 1.0
        else:
            left -= 1
        action[1] *= 0.3
        action[3] = 1.0 if touching and not idle and step >= first else -1.0
        step += 1
        return action

    return act


def scripted(env: gymnasium.Env, rng: np.random.Generator) -> Policy:
    """The world's script.

    Raises:
        ValueError: the env has none; Room's and Lab's scripts read the exact state of a reference world.
    """
    world = env.unwrapped
    if isinstance(world, Room):
        return _room(world, rng)
    if isinstance(world, Lab):
        return _lab(world, rng)
    if getattr(world, "world", None) == "Orbit":
        return _orbit(env, rng)
    name = env.spec.id if env.spec else type(world).__name__
    raise ValueError(
        f"policy scripted needs a reference world such as orrery/Room-v0, got {name}; use random"
    )


POLICIES = {"random": random, "scripted": scripted}


def usual_policy(env: gymnasium.Env) -> str:
    """The policy to record an env with where none is named: the world's script if it has one."""
    return "scripted" if isinstance(env.unwrapped, MujocoWorld) else "random"
