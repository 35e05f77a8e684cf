"""The speedrun's GPT against a plain one written from its definition, and what makes its layers come in one by one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from podium.trainer.builtin.allocation import count_parameters
from podium.trainer.builtin.config import load_config
from podium.trainer.builtin.inputs import preset_mapping
from podium.trainer.builtin.model_config import DepthWarm, SpeedrunConfig
from podium.trainer.builtin.models import fused
from podium.trainer.builtin.models.build import build_model
from podium.trainer.builtin.models.speedrun import PalmBlock, active_layers, kept_layers
from podium.trainer.builtin.optim.build import build_optimizer, learning_rate
from podium.trainer.trial.errors import ConfigError

SMALL = {"vocab_size": 512, "d_model": 64, "n_layers": 3, "n_heads": 2}


class PlainBlock(nn.Module):
    """Oct-2024 block: separate q, k, v; QK-norm, then RoPE; ReLU²."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.c_q, self.c_k, self.c_v, self.c_o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.c_fc, self.c_proj = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)
        self.c_o.weight.data.zero_()
        self.c_proj.weight.data.zero_()

    def attention(self, x):
        B, T, D = x.shape
        q, k, v = (layer(x).view(B, T, self.heads, D // self.heads) for layer in (self.c_q, self.c_k, self.c_v))
        q, k = (rope(plain_norm(part)) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(D // self.heads)
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf"))
        return self.c_o((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D))

    def feed_forward(self, x):
        return self.c_proj(torch.relu(self.c_fc(x)) ** 2)

    def forward(self, x):
        x = x + self.attention(plain_norm(x))
        return x + self.feed_forward(plain_norm(x))


class PlainGPT(nn.Module):
    def __init__(self, vocab, d, layers, heads):
        super().__init__()
        self.wte = nn.Embedding(vocab, d)
        self.h = nn.ModuleList(PlainBlock(d, heads) for _ in range(layers))
        self.lm_head = nn.Linear(d, vocab, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx, targets):
        x = self.wte(idx)
        for block in self.h:
            x = block(x)
        return F.cross_entropy(self.lm_head(plain_norm(x)).float().flatten(0, 1), targets.flatten())


def plain_norm(x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)


def rope(x):
    _, T, _, H = x.shape
    angles = torch.outer(torch.arange(T).float(), 10000.0 ** -(torch.arange(0, H, 2).float() / H))[None, :, None]
    one, two = x[..., : H // 2], x[..., H // 2 :]
    return torch.cat((one * angles.cos() + two * angles.sin(), two * angles.cos() - one * angles.sin()), -1)


def plain_newton_schulz(g):
    x = g / (g.norm() + 1e-7)  # at the first step q, k and v have no gradient, since the projection is zero
    x = x.T if len(g) > len(g.T) else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if len(g) > len(g.T) else x


class PlainMuon:
    """The record's: sum form, Nesterov, update × √max(m, n); AdamW on the tied matrix."""

    def __init__(self, model, lr):
        self.lr = lr
        self.matrices = list(model.h.parameters())
        self.buffers = [torch.zeros_like(parameter) for parameter in self.matrices]
        self.adam = torch.optim.AdamW([model.wte.weight], lr=10 * lr, betas=(0.9, 0.95), weight_decay=0.0)

    @torch.no_grad()
    def step(self, scale):
        self.adam.param_groups[0]["lr"] = 10 * self.lr * scale
        self.adam.step()
        for parameter, buffer in zip(self.matrices, self.buffers, strict=True):
            buffer.mul_(0.95).add_(parameter.grad)
            update = plain_newton_schulz(parameter.grad + 0.95 * buffer)
            parameter -= self.lr * scale * math.sqrt(max(update.shape)) * update


def copy_weights(ours, plain):
    theirs = {"embedding.weight": plain.wte.weight}
    for index, block in enumerate(plain.h):
        names = ("attention.q", "attention.k", "attention.v", "attention.projection")
        names += ("feed_forward.expand", "feed_forward.projection")
        layers = (block.c_q, block.c_k, block.c_v, block.c_o, block.c_fc, block.c_proj)
        theirs |= {f"blocks.{index}.{name}.weight": layer.weight for name, layer in zip(names, layers, strict=True)}
    ours.load_state_dict({name: weight.detach().clone() for name, weight in theirs.items()})


def batches(count):
    """Few of the tokens only, so that there is something to learn."""
    tokens = torch.randint(16, (count, 4, 33), generator=torch.Generator().manual_seed(1))
    return [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in tokens]


@pytest.fixture
def model():
    def make(**changes):
        torch.manual_seed(0)
        return build_model(SpeedrunConfig(**{**SMALL, **changes}))

    return make


def test_the_first_ten_losses_are_the_plain_references(model):
    torch.manual_seed(3)
    plain = PlainGPT(512, 64, 3, 2)
    ours = model()
    copy_weights(ours, plain)
    config = load_config(
        {
            **preset_mapping("speedrun", None),
            "model": {"family": "speedrun", **SMALL},
            "max_steps": 10,
            "schedule": {"name": "warmdown", "warmup_fraction": 0.0, "final_fraction": 0.0, "warmdown_steps": 4},
            "evaluation": {"every_steps": 10},
        }
    )
    optimizer, reference = build_optimizer(ours, config.optimizer), PlainMuon(plain, 0.00036)
    assert config.optimizer.learning_rate == pytest.approx(0.2**-1 * 0.00036)
    for step, (x, y) in enumerate(batches(10), 1):
        _, loss = ours(x, y)
        expected = plain(x, y)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-4), step
        optimizer.zero_grad()
        plain.zero_grad()
        loss.backward()
        expected.backward()
        optimizer.set_learning_rate(learning_rate(step, 10, config.optimizer.learning_rate, config.schedule))
        optimizer.step()
        reference.step(min(1.0, (11 - step) / 4))  # the record counts from 0: its first step of the decay has the peak
    assert loss.item() < model()(x, y)[1].item() - 0.1  # both have learnt


def test_the_loss_at_step_0_is_16_with_the_heads_init_on_the_tied_matrix():
    torch.manual_seed(0)
    small = SpeedrunConfig(vocab_size=50304, n_layers=1)  # zero projections: more layers add nothing
    tokens = torch.randint(50257, (1, 513))
    with torch.no_grad():
        _, loss = build_model(small)(tokens[:, :-1], tokens[:, 1:])
        _, untied = build_model(small.model_copy(update={"tied_embeddings": False}))(tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(16.03, abs=0.1)
    assert untied.item() == pytest.approx(math.log(50304), abs=1e-5)


def test_the_counts_without_torch_are_those_of_the_model(model):
    assert count_parameters(SpeedrunConfig(vocab_size=50304)).total == 123_568_128
    for changes in ({}, {"tied_embeddings": False}, {"block": "palm"}):
        config = SpeedrunConfig(**{**SMALL, **changes})
        counts = count_parameters(config)
        assert counts.total == sum(parameter.numel() for parameter in model(**changes).parameters())
        assert counts.total == counts.embedding + counts.attention + counts.feed_forward + counts.norm + counts.output


def test_a_palm_block_is_its_plain_reference():
    torch.manual_seed(0)
    ours, plain = PalmBlock(64, 2, 256), PlainBlock(64, 2)
    for layer in (plain.c_o, plain.c_proj):
        nn.init.normal_(layer.weight, std=0.1)
    layers = (plain.c_q, plain.c_k, plain.c_v, plain.c_o, plain.c_fc, plain.c_proj)
    ours.load_state_dict(dict(zip(ours.state_dict(), (layer.weight.detach() for layer in layers), strict=True)))
    # in double precision: in single, processors differ by a few units of the last place, more than the bound
    ours, plain, x = ours.double(), plain.double(), torch.randn(2, 16, 64).double()
    n = plain_norm(x)
    angles = torch.outer(torch.arange(16).double(), 10000.0 ** -(torch.arange(0, 32, 2).double() / 32))[:, None]
    expected = x + (plain.attention(n) + plain.feed_forward(n)) / math.sqrt(2)
    torch.testing.assert_close(ours(x, angles.cos(), angles.sin()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", ["sequential", "palm"])
def test_a_newly_activated_block_changes_nothing(model, block):
    warm = {"start_layers": 1, "fraction": 0.5, "drop": 0.0}
    net = model(block=block, depth_warm=warm)
    x, y = batches(1)[0]
    net.begin_step(1, 8, seed=0)
    before, _ = net(x, None)
    _, loss = net(x, y)
    loss.backward()
    assert all(parameter.grad is None for parameter in net.blocks[1:].parameters())
    assert any(parameter.grad is not None for parameter in net.blocks[0].parameters())
    net.begin_step(3, 8, seed=0)
    assert net.active == 2
    after, _ = net(x, None)
    assert torch.equal(before, after)


def test_layers_come_in_one_by_one_and_all_are_there_in_time():
    warm = DepthWarm(start_layers=4, fraction=0.3)
    active = [active_layers(warm, 12, step, 100) for step in range(1, 101)]
    assert active[0] == 4
    assert active == sorted(active)
    assert max(after - before for before, after in itertools.pairwise(active)) == 1
    assert active[30] == 12
    assert active[29] < 12


def test_layers_are_skipped_by_seed_and_step_alone_and_never_once_all_are_there():
    warm = DepthWarm(start_layers=4, drop=0.5)
    kept = [kept_layers(warm, 12, 8, step, seed=1) for step in range(400)]
    assert kept == [kept_layers(warm, 12, 8, step, seed=1) for step in range(400)]
    assert kept != [kept_layers(warm, 12, 8, step, seed=2) for step in range(400)]
    shares = [sum(layer in step for step in kept) / 400 for layer in range(8)]
    assert shares[0] == 1.0
    assert shares[7] == pytest.approx(0.5, abs=0.1)
    assert all(kept_layers(warm, 12, 12, step, seed=1) == list(range(12)) for step in range(50))


def test_inactive_layers_keep_weights_and_moments_and_the_others_move(model):
    net = model(depth_warm={"start_layers": 2, "fraction": 0.5, "drop": 0.0})
    whole = model()
    config = load_config({**preset_mapping("speedrun", None), "model": {"family": "speedrun", **SMALL}})
    one, other = build_optimizer(net, config.optimizer), build_optimizer(whole, config.optimizer)
    for step, (x, y) in enumerate(batches(3), 1):
        net.begin_step(step, 100, seed=0)
        for each, optimizer in ((net, one), (whole, other)):
            optimizer.zero_grad()
            each(x, y)[1].backward()
            if each is whole:  # as if the reference had no third block
                for parameter in whole.blocks[2].parameters():
                    parameter.grad = None
            optimizer.step()
    first = model()
    for name, weight in net.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name]), name
        assert torch.equal(weight, first.state_dict()[name]) == name.startswith("blocks.2"), name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of the tracer itself
def test_a_model_whose_layers_come_and_go_is_compiled_once_a_block(model):
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    net = model(depth_warm={"start_layers": 1, "fraction": 0.9, "drop": 0.5})
    net.compile(backend="aot_eager")
    x, y = batches(1)[0]
    for step in range(1, 21):
        net.begin_step(step, 20, seed=0)
        net(x, y)[1].backward()
    assert counters["stats"]["unique_graphs"] <= 2  # the block and the head
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_made_a_chunk_at_a_time_give_the_same_loss_and_gradients(model, precision):
    x, y = batches(1)[0]
    whole, chunked = model(), model()
    chunked.head_chunk_tokens = 48  # of 128: the last is smaller
    context = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    for net in (whole, chunked):
        with context, pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused, "wants_plain", lambda x: True)  # as on a GPU
            net(x, y)[1].backward()
    with context:
        assert chunked(x, y)[1].item() == pytest.approx(
            whole(x, y)[1].item(), abs=1e-5 if precision == "fp32" else 0.02
        )
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if precision == "fp32" else {"rtol": 0.05, "atol": 2e-3}
    for (name, mine), theirs in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **tolerance, msg=name)


def test_the_residual_stream_may_have_the_format_of_the_products(model):
    x, y = batches(1)[0]
    seen = []
    for residual in ("fp32", "autocast"):
        net = model(residual=residual)
        net.blocks[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            _, loss = net(x, y)
        assert loss.dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16]


def test_dimensions_that_can_not_be_are_refused():
    with pytest.raises(ValueError, match="must be a whole even number, got 768 / 7"):
        SpeedrunConfig(vocab_size=512, n_heads=7)
    with pytest.raises(ValueError, match="must be at most n_layers = 12, got 13"):
        SpeedrunConfig(vocab_size=512, depth_warm=DepthWarm(start_layers=13))
    with pytest.raises(ConfigError, match=r"model\.family"):
        load_config({"model": {"family": "speed-run"}})
