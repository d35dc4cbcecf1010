"""Losses of the agents against losses written independently for one plain module at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from optex_rl.agents import ActorCritic, Batch, MlpPolicy, Reinforce, StackedPolicy, make_agent
from optex_rl.common.errors import ConfigError

from .networks import SharedExtractor, points_around

OBS = gymnasium.spaces.Box(-1, 1, (3,))
DISCRETE = gymnasium.spaces.Discrete(4)
BOX = gymnasium.spaces.Box(-1, 1, (2,))
T, E = 12, 3


def make_policy(kind: str) -> nn.Module:
    if kind == "shared":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return SharedExtractor(3, 4)
    return MlpPolicy(OBS, BOX if kind == "box" else DISCRETE, (16, 16), log_std_init=-0.3)


def list_final_rows(terminated: Tensor, truncated: Tensor, final_obs: Tensor) -> tuple[Tensor, Tensor]:
    """Padded lists, from a dense [N, T, E, O] array of successor observations."""
    listed = truncated & ~terminated
    listed[:, -1] |= ~terminated[:, -1]
    rows = [point.flatten().nonzero().flatten() for point in listed]
    final_index = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    picked = [obs.flatten(0, 1)[row] for obs, row in zip(final_obs, rows, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(picked, batch_first=True), final_index


def make_batch(N: int, box: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Batch, Tensor]:
    """A random window, and the dense successor observations that its lists were made of."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    actions = normal(N, T, E, 2) if box else torch.randint(4, (N, T, E), generator=generator)
    terminated, truncated = (torch.rand(2, N, T, E, generator=generator) < 0.15).unbind()
    final_dense = normal(N, T, E, 3)
    lists = list_final_rows(terminated, truncated, final_dense)
    return Batch(normal(N, T, E, 3), actions, normal(N, T, E), terminated, truncated, *lists), final_dense


def oracle_distribution(inputs: Tensor, box: bool) -> Any:
    if not box:
        return torch.distributions.Categorical(logits=inputs)
    mean, log_std = inputs.chunk(2, dim=-1)
    return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)


def oracle_targets(module: Any, batch: Batch, final_dense: Tensor, n: int, agent: Any) -> tuple[Tensor, Tensor]:
    """Advantages and value targets [T, E] of point n, one row after the other and from the end."""
    critic = agent.needs_critic
    with torch.no_grad():
        values = module.critic(batch.obs[n]) if critic else torch.zeros(T, E)
        finals = module.critic(final_dense[n]) if critic else torch.zeros(T, E)
    gae_lambda = getattr(agent, "gae_lambda", 1.0)
    advantages = torch.zeros_like(batch.rewards[n])
    for e in range(E):
        following = 0.0
        for t in reversed(range(T)):
            terminated, truncated = bool(batch.terminated[n, t, e]), bool(batch.truncated[n, t, e])
            successor = finals[t, e] if truncated or t == T - 1 else values[t + 1, e]
            tail = 0.0 if terminated else float(successor)
            carried = 0.0 if terminated or truncated else agent.gamma * gae_lambda * following
            following = float(batch.rewards[n, t, e]) + agent.gamma * tail - float(values[t, e]) + carried
            advantages[t, e] = following
    return advantages, advantages + values


def oracle_loss(module: Any, batch: Batch, final_dense: Tensor, n: int, agent: Any) -> Tensor:
    advantages, targets = oracle_targets(module, batch, final_dense, n, agent)
    if agent.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    distribution = oracle_distribution(module.actor(batch.obs[n]), box=batch.actions.dim() == 4)
    log_probs, entropy = distribution.log_prob(batch.actions[n]), distribution.entropy()
    loss: Tensor = -(advantages * log_probs).mean() - agent.ent_coef * entropy.mean()
    if agent.needs_critic:
        loss = loss + agent.vf_coef * nn.functional.mse_loss(module.critic(batch.obs[n]), targets)
    return loss


AGENTS: dict[str, ActorCritic | Reinforce] = {
    "a2c": ActorCritic(gamma=0.97, gae_lambda=0.9, ent_coef=0.02, vf_coef=0.7),
    "a2c plain": ActorCritic(gae_lambda=1.0, normalize_advantage=False),
    "reinforce": Reinforce(gamma=0.97, ent_coef=0.02, normalize_advantage=False),
    "reinforce normalised": Reinforce(),
    "reinforce without baseline": Reinforce(gamma=0.9, baseline=False, ent_coef=0.1),
}


@pytest.mark.parametrize("N", [1, 4])
@pytest.mark.parametrize("kind", ["discrete", "box", "shared"])
@pytest.mark.parametrize("name", list(AGENTS))
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_fused_gradients_equal_separate_ones(name: str, kind: str, N: int, dtype: torch.dtype, limit: float) -> None:
    agent, policy = AGENTS[name], make_policy(kind).to(dtype)
    points = points_around(policy, N).requires_grad_()
    batch, final_dense = make_batch(N, kind == "box", dtype)
    losses = agent.loss(StackedPolicy(policy).bind(points), batch)
    (gradients,) = torch.autograd.grad(losses.total.sum(), points)
    for n in range(N):
        module = copy.deepcopy(policy)
        vector_to_parameters(points[n].detach().clone(), module.parameters())
        loss = oracle_loss(module, batch, final_dense, n, agent)
        pieces = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
        expected = torch.cat([piece.reshape(-1) for piece in pieces])
        assert (losses.total[n] - loss).abs().item() < limit * max(1.0, loss.abs().item())
        assert ((gradients[n] - expected).norm() / expected.norm()).item() < limit


@pytest.mark.parametrize("name", list(AGENTS))
def test_padding_has_no_effect(name: str) -> None:
    policy = make_policy("discrete")
    points, (batch, _) = points_around(policy, 2).requires_grad_(), make_batch(2)
    padding = torch.full((2, 4), -1)
    padded = batch._replace(
        final_obs=torch.cat([batch.final_obs, torch.full((2, 4, 3), 50.0)], dim=1),
        final_index=torch.cat([batch.final_index, padding], dim=1),
    )
    bound = StackedPolicy(policy).bind(points)
    for plain, longer in zip(AGENTS[name].loss(bound, batch), AGENTS[name].loss(bound, padded), strict=True):
        assert torch.equal(plain, longer)


def test_only_the_total_carries_a_gradient() -> None:
    policy = make_policy("discrete")
    losses = ActorCritic(ent_coef=0.1).loss(
        StackedPolicy(policy).bind(points_around(policy, 2).requires_grad_()), make_batch(2)[0]
    )
    assert [field.requires_grad for field in losses] == [True, False, False, False, False]
    assert all(field.shape == (2,) and field.isfinite().all() for field in losses)


def test_the_total_is_the_weighted_sum() -> None:
    policy = make_policy("box")
    agent = ActorCritic(ent_coef=0.1, vf_coef=0.3)
    losses = agent.loss(
        StackedPolicy(policy).bind(points_around(policy, 2).requires_grad_()), make_batch(2, box=True)[0]
    )
    total = losses.policy_loss + 0.3 * losses.value_loss - 0.1 * losses.entropy
    torch.testing.assert_close(losses.total.detach(), total)


def test_without_a_baseline_the_critic_neither_matters_nor_learns() -> None:
    policy = MlpPolicy(OBS, DISCRETE, (8,))
    points, (batch, _) = points_around(policy, 2).requires_grad_(), make_batch(2)
    losses = Reinforce(baseline=False).loss(StackedPolicy(policy).bind(points), batch)
    (gradients,) = torch.autograd.grad(losses.total.sum(), points)
    actor_size = sum(p.numel() for p in dict(policy.parameter_groups())["actor"])
    assert gradients[:, :actor_size].any(dim=1).all()
    assert not gradients[:, actor_size:].any()
    assert not losses.value_loss.any()
    assert not losses.explained_variance.any()
    bare = MlpPolicy(OBS, DISCRETE, (8,), critic=False)
    same = Reinforce(baseline=False).loss(StackedPolicy(bare).bind(points[:, :actor_size]), batch)
    assert torch.equal(same.total, losses.total)


@pytest.mark.parametrize("agent", [ActorCritic(), Reinforce()])
def test_a_policy_without_a_critic_is_refused(agent: ActorCritic | Reinforce) -> None:
    assert agent.needs_critic
    policy, (batch, _) = MlpPolicy(OBS, DISCRETE, (8,), critic=False), make_batch(2)
    bound = StackedPolicy(policy).bind(points_around(policy, 2).requires_grad_())
    with pytest.raises(ConfigError, match="needs a policy with a critic, and the policy given has none"):
        agent.loss(bound, batch)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ActorCritic(gamma=1.5), r"^gamma must be a number between 0 and 1, got 1\.5\.$"),
        (lambda: ActorCritic(gae_lambda=-0.1), r"^gae_lambda must be a number between 0 and 1, got -0\.1\.$"),
        (lambda: ActorCritic(ent_coef=-1), r"^ent_coef must be a finite number >= 0, got -1\.$"),
        (lambda: ActorCritic(vf_coef=float("inf")), r"^vf_coef must be a finite number >= 0, got inf\.$"),
        (lambda: Reinforce(gamma=float("nan")), r"^gamma must be a number between 0 and 1, got nan\.$"),
        (lambda: make_agent("a2c", gamma=True), r"^gamma must be a number between 0 and 1, got True\.$"),
        (lambda: make_agent("a2c", gamma="0.9"), r"^gamma must be a number between 0 and 1, got '0\.9'\.$"),
        (lambda: make_agent("reinforce", baseline=1), r"^baseline must be True or False, got 1\.$"),
        (lambda: make_agent("ppo", clip_range=0.0), "clip_range must be above 0, got 0.0"),
        (lambda: make_agent("ppo", clip_range=-0.1), "clip_range must be a finite number >= 0, got -0.1"),
        (lambda: make_agent("ppo", target_kl=0.0), "target_kl must be above 0, got 0.0"),
        (lambda: make_agent("ppo", n_epochs=0), "n_epochs must be a whole number of at least 1, got 0"),
        (lambda: make_agent("ppo", batch_size=1.5), "batch_size must be a whole number of at least 1, got 1.5"),
        (lambda: make_agent("ppo", gae_lambda=2.0), "gae_lambda must be a number between 0 and 1, got 2.0"),
        (lambda: make_agent("ppo", clip=0.1), "has no hyper-parameter clip"),
        (lambda: make_agent("trpo", target_kl=0.0), "target_kl must be above 0, got 0.0"),
        (lambda: make_agent("trpo", cg_damping=-0.1), "cg_damping must be a finite number >= 0, got -0.1"),
        (lambda: make_agent("trpo", cg_max_steps=0), "cg_max_steps must be a whole number of at least 1, got 0"),
        (lambda: make_agent("trpo", line_search_max_iter=0), "line_search_max_iter must be a whole .* 1, got 0"),
        (lambda: make_agent("trpo", line_search_shrinking_factor=2.0), "_factor must be a number .* 0 and 1, got 2.0"),
        (lambda: make_agent("dqn"), r"^Unknown agent 'dqn': choose one of a2c, ppo, reinforce, trpo\.$"),
        (lambda: make_agent("reinforce", gae_lambda=0.9), r"^Agent 'reinforce' has no hyper-parameter gae_lambda: it"),
    ],
)
def test_wrong_hyperparameters_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_agents_by_name() -> None:
    assert make_agent("a2c", gamma=0.9) == ActorCritic(gamma=0.9)
    assert make_agent("reinforce", baseline=False) == Reinforce(baseline=False)
    assert not make_agent("reinforce", baseline=False).needs_critic
