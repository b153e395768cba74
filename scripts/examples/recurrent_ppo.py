"""Recurrent PPO on a T-maze: a signal at the entrance says where to turn at the end, several steps later.

    python scripts/examples/recurrent_ppo.py

`done[t]` belongs to action t: the episode ended with it. `reset[t] = done[t-1]` belongs to observation t: it is the
first of an episode, and the state before it is forgotten. Mixed up, every episode begins with the memory of the last.

Source: Bakker (2001), "Reinforcement learning with LSTM"; Schulman et al. (2017), "PPO algorithms", equation 7.
"""

import jax
import jax.numpy as jnp
import optax

import jaxrnn

T, B, H, LONGEST = 64, 32, 32, 8  # steps of a rollout, mazes, units, steps of the longest corridor
NET = jaxrnn.Network((jaxrnn.GRU(2, H),), jaxrnn.Readout(H, 3), jaxrnn.squared_error)  # two logits and a value
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(3e-3))


def enter(key: jax.Array) -> tuple:
    """Enters B mazes: which way is right, the length of the corridor, the place in it."""
    way, length = jax.random.randint(key, (2, B), jnp.array([[0], [3]]), jnp.array([[2], [LONGEST]]))
    return way, length, jnp.zeros(B, int)


def play(params: jaxrnn.NetworkParams, carried: tuple, key: jax.Array) -> tuple[tuple, tuple]:
    """Plays a step, all but the turn at the end being free; returns what to go on from, and what was seen and done."""
    ((way, length, place), state, reset), keys = carried, jax.random.split(key)
    done = place == length
    seen = jnp.stack([jnp.where(place == 0, 2.0 * way - 1, 0), done], -1)  # the signal, the junction: [B, 2]
    outputs, state = NET.apply(params, seen[None], state, reset=reset[None])
    action = jax.random.categorical(keys[0], outputs[0, :, :2])
    reward = jnp.where(done, jnp.where(action == way, 1.0, -1.0), 0)
    maze = jax.tree.map(lambda new, on: jnp.where(done, new, on), enter(keys[1]), (way, length, place + 1))
    return (maze, state, done), (seen, reset, action, outputs[0], reward, done)


def discount(following: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Computes R_t = r_t + 0.99 R_{t+1}, cut where the episode ends with t; twice, as a scan wants it."""
    return 2 * (step[0] + 0.99 * jnp.where(step[1], 0, following),)


def loss(params: jaxrnn.NetworkParams, state: tuple, rollout: tuple, returns: jax.Array) -> jax.Array:
    """Computes the objective of PPO; its gradient runs back through all T steps, and is cut at the resets."""
    seen, reset, action, before, *_ = rollout
    outputs, _ = NET.apply(params, seen, state, reset=reset)  # [T, B, 3]
    log_p, old = (jax.nn.log_softmax(logits[..., :2]) for logits in (outputs, before))
    ratio = jnp.exp(jnp.take_along_axis(log_p - old, action[..., None], -1)[..., 0])
    gain = returns - before[..., 2]
    return jnp.mean((outputs[..., 2] - returns) ** 2 / 2 - jnp.minimum(ratio * gain, jnp.clip(ratio, 0.8, 1.2) * gain))


def update(trained: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
    """Plays T steps, and takes four on what was played; returns the share of right turns besides."""
    (params, optimizer_state, carried), keys = trained, jax.random.split(key, T + 1)
    onward, rollout = jax.lax.scan(lambda carried, key: play(params, carried, key), carried, keys[:T])
    rewards, dones = rollout[-2:]
    following = play(params, onward, keys[T])[1][3][:, 2]  # the value of what comes after the rollout
    _, returns = jax.lax.scan(discount, following, (rewards, dones), reverse=True)
    for _ in range(4):
        grads = jax.grad(loss)(params, carried[1], rollout, returns)
        changes, optimizer_state = OPTIMIZER.update(grads, optimizer_state)
        params = optax.apply_updates(params, changes)
    return (params, optimizer_state, onward), jnp.sum(rewards > 0) / jnp.sum(dones)


def main(updates: int = 60) -> None:
    """Trains, and prints how often the turn is right: half the time by chance."""
    params, maze = NET.init(jax.random.key(0)), enter(jax.random.key(1))
    start = params, OPTIMIZER.init(params), (maze, NET.initial_state((B,)), jnp.ones(B, bool))
    _, right = jax.lax.scan(update, start, jax.random.split(jax.random.key(2), updates))
    for step in (0, updates // 2, updates - 1):
        print(f"update {step + 1}: {right[step]:.0%} of the turns are right")


if __name__ == "__main__":
    main()
