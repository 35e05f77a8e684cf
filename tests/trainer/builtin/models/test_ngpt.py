"""nGPT against a plain reference written from the paper's equations, and what stays on the sphere."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import silu

from podium.trainer.builtin.allocation import count_parameters
from podium.trainer.builtin.config import AdamWConfig, MuonConfig
from podium.trainer.builtin.model_config import NgptConfig
from podium.trainer.builtin.models.build import build_model
from podium.trainer.builtin.optim.build import build_optimizer

SMALL = {"vocab_size": 37, "d_model": 24, "n_layers": 2, "n_heads": 3, "d_ff": 64, "alpha": 0.15}
D, F, V, L, N = 24, 64, 37, 2, 3
H = D // N


def make(**settings):
    torch.manual_seed(0)
    model = build_model(NgptConfig(family="ngpt", **(SMALL | settings)))
    # away from the initial values, so that no factor is hidden
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter *= 1 + 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def tokens():
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randint(0, V, (2, 13), generator=generator)
    return drawn[:, :-1], drawn[:, 1:]


def norm(x):
    return x / x.pow(2).sum(-1, keepdim=True).sqrt()


def rope(x_BTNH):
    """Rotary positions, each pair turned by position · 10000^(−2i/H); the halves of a head form the pairs."""
    T = x_BTNH.shape[1]
    angles = torch.arange(T)[:, None] * 10000 ** (-torch.arange(0, H, 2) / H)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x_BTNH[..., : H // 2], x_BTNH[..., H // 2 :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def reference(weights, idx, targets):
    """The paper's equations one after another; stored scales as NVIDIA/ngpt has them: alpha, s_qk, s_z at 1/√D."""
    small = 1 / math.sqrt(D)
    h = weights["embedding.weight"][idx]
    B, T, _ = h.shape
    for layer in range(L):
        w = {name.removeprefix(f"blocks.{layer}."): value for name, value in weights.items()}
        q, k, v = ((h @ matrix.T).view(B, T, N, H) for matrix in w["qkv_3DD"])
        s_qk = (w["s_qk.stored"] * (1 / small)).view(N, H)
        q, k = norm(rope(q)) * s_qk, norm(rope(k)) * s_qk
        scores = torch.einsum("bqnh,bknh->bnqk", q, k) * math.sqrt(H)
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf)
        y = torch.einsum("bnqk,bknh->bqnh", scores.softmax(-1), v).reshape(B, T, D)
        h_a = norm(y @ w["attention_projection.weight"].T)
        alpha_a = (w["alpha_attention.stored"] * (0.15 / small)).abs()
        h = norm(h)
        h = norm(h + alpha_a * (h_a - h))
        gate, up = ((h @ matrix.T) for matrix in w["gate_up_2FD"])
        s_gate, s_up = w["s_uv.stored"].chunk(2)
        x = silu(gate * s_gate * math.sqrt(D)) * (up * s_up * math.sqrt(D))
        h_m = norm(x @ w["feed_forward_projection.weight"].T)
        alpha_m = (w["alpha_feed_forward.stored"] * (0.15 / small)).abs()
        h = norm(h)
        h = norm(h + alpha_m * (h_m - h))
    logits = (h @ weights["output.weight"].T) * (weights["s_z.stored"] / small)
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    return logits, -log_p.gather(-1, targets[..., None]).mean()


def test_logits_loss_and_gradients_are_those_of_the_papers_equations():
    model = make()
    idx, targets = tokens()
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    logits, loss = reference(weights, idx, targets)
    torch.testing.assert_close(model(idx)[0], logits, rtol=1e-5, atol=1e-5)
    ours = model(idx, targets)[1]
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
    loss.backward()
    ours.backward()
    for name, parameter in model.named_parameters():
        assert weights[name].grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-5, atol=1e-5)


def test_the_upper_halfs_factor_is_taken_away_by_the_normalisation():
    # why √d on both halves, as in the code, and on the gate alone, as in the paper, are one function
    model = make()
    idx, targets = tokens()
    before = model(idx, targets)[1]
    with torch.no_grad():
        for block in model.blocks:
            block.s_uv.stored[F:] /= math.sqrt(D)
    torch.testing.assert_close(model(idx, targets)[1], before)


def plain_projection(model):
    """Rows of embeddings, q, k, v, gate and up, and columns of the two projections, to norm 1."""
    made = {}
    for name, weight in model.state_dict().items():
        if weight.ndim >= 2:
            dim = -2 if "projection" in name else -1
            weight = weight / weight.pow(2).sum(dim, keepdim=True).sqrt()
        made[name] = weight
    return made


def train(model, config, steps, after):
    optimizer = build_optimizer(model, config)
    idx, targets = tokens()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(idx, targets)[1].backward()
        optimizer.step()
        after(model, step)


CONFIGS = [
    AdamWConfig(learning_rate=0.01, weight_decay=0.0),
    MuonConfig(name="muon", learning_rate=0.01, orthogonalization="polar_express"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["adamw", "muon"])
def test_all_normalised_rows_have_norm_one_after_a_step(config):
    model = make(projection_every=1)
    train(model, config, 1, lambda m, step: m.after_step(step))
    for weight, dim in model.normalised():
        norms = torch.linalg.vector_norm(weight, dim=dim)
        assert (norms - 1).abs().max().item() <= 1e-4
    held = {id(weight) for weight, _ in model.normalised()}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.ndim >= 2}


def test_vectors_are_normalised_along_d_model():
    model = make()
    dims = {tuple(weight.shape): weight.shape[dim] for weight, dim in model.normalised()}
    assert set(dims.values()) == {D}


@pytest.mark.parametrize("config", CONFIGS, ids=["adamw", "muon"])
def test_a_projection_after_every_step_is_the_reference(config):
    ours, theirs = make(projection_every=1), make(projection_every=1)
    train(ours, config, 5, lambda m, step: m.after_step(step))
    train(theirs, config, 5, lambda m, step: m.load_state_dict(plain_projection(m)))
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_a_lazy_projection_comes_every_third_step():
    model = make(projection_every=3)
    worst = []

    def after(m, step):
        m.after_step(step)
        norms = [torch.linalg.vector_norm(weight, dim=dim) for weight, dim in m.normalised()]
        worst.append(max((norm - 1).abs().max().item() for norm in norms) <= 1e-4)

    train(model, CONFIGS[1], 7, after)
    assert worst == [False, False, True, False, False, True, False]


def test_weights_are_normalised_at_the_start():
    torch.manual_seed(0)
    model = build_model(NgptConfig(family="ngpt", **SMALL, projection_every=100))
    for weight, dim in model.normalised():
        assert (torch.linalg.vector_norm(weight, dim=dim) - 1).abs().max().item() <= 1e-6


def hidden_state(model, idx):
    """The hidden state after the last block, in the number format of the run."""
    found = []
    hook = model.blocks[-1].register_forward_hook(lambda _, __, output: found.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        model(idx)
    hook.remove()
    return found[0]


def test_hidden_states_have_norm_one_in_fp32_under_bf16():
    h_BTD = hidden_state(make(), tokens()[0])
    assert h_BTD.dtype == torch.float32
    assert (torch.linalg.vector_norm(h_BTD, dim=-1) - 1).abs().max().item() < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of itself
def test_norms_stay_fp32_when_compiled():
    # inductor would fuse norms in bf16 with what stands beside them, and they drift
    model, plain = make(), make()
    idx, targets = tokens()
    for block in model.blocks:
        block.compile()
    h_BTD = hidden_state(model, idx)
    assert (torch.linalg.vector_norm(h_BTD, dim=-1) - 1).abs().max().item() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        mine, other = model(idx, targets)[1], plain(idx, targets)[1]
    torch.testing.assert_close(mine, other, rtol=0.01, atol=0.01)
    mine.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_studys_shape_has_155m_parameters():
    counts = count_parameters(NgptConfig(family="ngpt", vocab_size=50304, n_layers=11, d_model=768))
    assert abs(counts.total / 155e6 - 1) <= 0.005
    assert counts.attention + counts.feed_forward == 11 * 12 * 768**2
    assert counts.embedding == counts.output == 50304 * 768


def test_counted_parameters_are_those_of_the_model():
    model = make()
    assert count_parameters(model.config).total == sum(parameter.numel() for parameter in model.parameters())


def test_a_head_of_an_odd_size_is_refused():
    with pytest.raises(ValueError, match="whole even number"):
        NgptConfig(family="ngpt", vocab_size=10, d_model=9, n_heads=3)


def test_the_loss_at_the_start_is_that_of_no_knowledge():
    torch.manual_seed(0)
    model = build_model(NgptConfig(family="ngpt", vocab_size=512, d_model=64, n_layers=2, n_heads=4, d_ff=128))
    drawn = torch.randint(0, 512, (4, 33))
    # logits of unit vectors are at most 1, so the softmax is almost flat
    assert model(drawn[:, :-1], drawn[:, 1:])[1].item() == pytest.approx(math.log(512), abs=0.05)
