"""The networks: what the tokenizer, the transformer and the flow promise, on small random weights."""

from dataclasses import replace

import pytest
import torch

from simulator import tokenizer as tokenizer_module
from simulator import transformer as transformer_module
from simulator.cache import Memory, extended
from simulator.detail import Detail, GridConv
from simulator.flow import add_noise, back, move, schedule, towards, velocity
from simulator.grow import grown
from simulator.optim import BatchedMuon
from simulator.sampling import denoise, row_noise
from simulator.tokenizer import Tokenizer
from simulator.transformer import Conditions, Prediction, Transformer, frames_before

TINY = transformer_module.PRESETS["tiny"]


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights without the zeros of initialisation, so that every path carries signal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.08 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def conditions(b: int, n: int, cells: int = 4, words: int = 5, seed: int = 0) -> Conditions:
    g = torch.Generator().manual_seed(seed)
    return Conditions(
        torch.randn(b, words, TINY.text_width, generator=g),
        torch.ones(b, words, dtype=torch.bool),
        torch.zeros(b, words, dtype=torch.long),
        torch.zeros(b, n, dtype=torch.long),
        torch.ones(b, dtype=torch.long),
        torch.randn(b, n, TINY.action_width, generator=g),
        torch.ones(b, n, dtype=torch.bool),
        torch.randn(b, n, 6, cells, cells, generator=g),
        torch.ones(b, n, dtype=torch.bool),
    )


def one_frame(c: Conditions, k: int) -> Conditions:
    return c._replace(
        shot=c.shot[:, k : k + 1],
        actions=c.actions[:, k : k + 1],
        actions_known=c.actions_known[:, k : k + 1],
        rays=c.rays[:, k : k + 1],
        rays_known=c.rays_known[:, k : k + 1],
    )


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    return randomised(Transformer(replace(TINY, layers=4, full_every=2, window=5)))


def test_the_flow_runs_from_noise_to_data_and_its_velocity_is_their_difference():
    data, noise = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    level = torch.rand(2, 3) * 0.8 + 0.1
    noisy = add_noise(data, noise, level)
    assert torch.allclose(velocity(noisy, data, level), noise - data, atol=1e-5)
    assert torch.allclose(move(noisy, data, level, torch.zeros(2, 3)), data, atol=1e-6)
    assert torch.allclose(move(noisy, data, level, torch.ones(2, 3)), noise, atol=1e-5)
    there = move(noisy, data, level, 0.3 * level)
    assert torch.allclose(towards(noisy, there, level, 0.3 * level), data, atol=1e-5)
    assert torch.equal(add_noise(data, noise, torch.zeros(2, 3)), data)


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_perfect_predictor_is_sampled_exactly_and_held_frames_stand_still(steps: int):
    data, noisy = torch.randn(1, 4, 2, 2, 2), torch.randn(1, 4, 2, 2, 2)
    start = torch.tensor([[0.0, 0.1, 1.0, 0.6]])
    levels = []

    def predict(x, level, next_level):
        levels.append(level)
        assert (next_level[0, 1:] < level[0, 1:]).all()
        memory = Memory([], x[:, -1:], level[:, -1:])
        return Prediction(data, *(torch.zeros(1, 4) for _ in range(3)), memory=memory)

    clean, *_ = denoise(predict, noisy, start, steps)
    assert torch.equal(clean[:, 0], noisy[:, 0])
    assert torch.allclose(clean[:, 1:], data[:, 1:], atol=1e-5)
    assert len(levels) == steps and all(level[0, 0] == 0 for level in levels)
    assert schedule(steps)[0] == 1 and schedule(steps)[-1] == 0


def test_what_is_taken_back_is_distributed_as_the_path_is_at_that_level():
    """Whose mean is (1 - level) of the data, and whose noise has the level's standard deviation."""
    g = torch.Generator().manual_seed(0)
    data = torch.full((1, 2, 40_000, 1, 1), 3.0)
    at, earlier = torch.tensor([[0.2, 0.4]]), torch.tensor([[0.7, 0.4]])
    arrived = add_noise(data, torch.randn(data.shape, generator=g), at)
    taken = back(arrived, torch.randn(data.shape, generator=g), at, earlier)
    torch.testing.assert_close(taken.mean(dim=(2, 3, 4)), 3 * (1 - earlier), atol=0.02, rtol=0)
    torch.testing.assert_close(taken.std(dim=(2, 3, 4)), earlier, atol=0.02, rtol=0)
    torch.testing.assert_close(taken[:, 1], arrived[:, 1], atol=1e-3, rtol=0)  # where it already is


def test_steps_that_are_made_once_more_end_where_those_do_that_are_made_once():
    """Where the predictor is perfect; the last one of each pair counts."""
    g = torch.Generator().manual_seed(1)
    data, noise = torch.randn(2, 3, 4, 2, 2, generator=g), torch.randn(2, 3, 4, 2, 2, generator=g)
    calls, levels = [], torch.ones(2, 3)

    def predict(noisy, level, next_level):
        calls.append((float(level[0, 0]), float(next_level[0, 0])))
        return Prediction(data, *[None] * (len(Prediction._fields) - 1))

    def again(noisy, arrived, level, next_level):
        if level.max() == 1 or next_level.max() == 0:
            return None
        return back(arrived, torch.randn(arrived.shape, generator=g), next_level, level)

    clean, *_ = denoise(predict, noise, levels, 4, again=again)
    torch.testing.assert_close(clean, data)
    assert calls == [(1, 0.75), *[(0.75, 0.5)] * 2, *[(0.5, 0.25)] * 2, (0.25, 0)]


def test_a_closed_canvas_ends_where_it_begins():
    data = torch.randn(1, 5, 2, 2, 2)

    def predict(x, level, next_level):
        zeros = torch.zeros(1, 5)
        return Prediction(data, zeros, zeros, zeros, Memory([], x[:, -1:], level[:, -1:]))

    clean, *_ = denoise(predict, torch.randn(1, 5, 2, 2, 2), torch.ones(1, 5), 4, closed=True)
    assert torch.equal(clean[:, 0], clean[:, -1])
    assert torch.allclose(clean[:, 0], (data[:, 0] + data[:, -1]) / 2, atol=1e-5)


def test_noise_of_a_row_depends_on_its_own_seed_and_position_alone():
    together = row_noise([3, 9], 7, (2, 4), torch.device("cpu"))
    alone = row_noise([9], 7, (2, 4), torch.device("cpu"))
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(alone, row_noise([9], 8, (2, 4), torch.device("cpu")))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 96, "heads": 3, "kv_heads": 3},
        {"reach": 2},
        {"width": 128, "heads": 4, "kv_heads": 4, "reach": 2},
    ],
)
def test_a_grown_transformer_predicts_the_same_and_its_new_parts_learn(change: dict):
    small = randomised(Transformer(replace(TINY, kv_heads=2, layers=4)))
    large = grown(small, replace(small.config, **change))
    latents, level, c = torch.randn(2, 6, 8, 4, 4), torch.rand(2, 6), conditions(2, 6)
    ours, theirs = (model(latents, level, c, causal=True) for model in (large, small))
    for name in ("data", "reward", "terminated", "log_error"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-4), name
    assert theirs.data.abs().mean() > 0.1
    ours.data.square().mean().backward()
    listening = large.blocks[0].down.weight.grad  # of new hidden units, and into new channels
    assert (listening[:, -1].abs().sum() > 0) and (listening[-1].abs().sum() > 0)


def test_convolutions_added_to_a_trained_transformer_change_nothing_and_learn():
    small = randomised(Transformer(replace(TINY, detail_width=0)))
    large = grown(small, TINY)
    latents, level, c = torch.randn(2, 3, 8, 4, 4), torch.rand(2, 3), conditions(2, 3)
    ours, theirs = (model(latents, level, c, causal=True) for model in (large, small))
    assert torch.equal(ours.data, theirs.data) and torch.equal(ours.reward, theirs.reward)
    ours.data.square().mean().backward()
    assert large.detail is not None
    assert large.detail.carried.weight.grad.abs().sum() > 0
    assert large.detail.to_tokens.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [3, 5])
def test_a_grid_of_few_latents_is_convolved_to_the_same_values(size: int):
    conv, few = GridConv(6, 7, size), torch.randn(1, 4, 6, 6)
    kernel = conv.weight.unflatten(1, (size, size, 6)).permute(0, 3, 1, 2)
    truth = torch.nn.functional.conv2d(few.permute(0, 3, 1, 2), kernel, conv.bias, padding=size // 2)
    with torch.no_grad():
        product, many = conv(few), conv(few.expand(12, -1, -1, -1))
    for found in (conv(few), product, many[7:8]):
        assert torch.allclose(found.permute(0, 3, 1, 2), truth, atol=1e-5)


def test_convolutions_learn_to_carry_the_frame_before_where_the_action_says():
    """One cell to the left or to the right, unseen pictures, nearly exactly; the mean of the two would be
    off by half of the variance."""
    torch.manual_seed(0)
    detail, action_in = Detail(4, 2, 16, width=16, blocks=1), torch.nn.Linear(1, 16)
    optimizer = torch.optim.Adam([*detail.parameters(), *action_in.parameters()], 1e-2)
    nothing, inside = torch.zeros(32, 1, 4, 6, 6), (..., slice(1, -1))
    for _ in range(150):
        before, side = torch.randn(32, 1, 4, 6, 6), torch.randint(2, (32, 1, 1)) * 2.0 - 1
        truth = torch.where(side[..., None, None] > 0, before.roll(1, -1), before.roll(-1, -1))
        condition = torch.nn.functional.silu(action_in(side))
        tokens, grid = detail.before(nothing, before, condition)
        error = (detail.after(grid, tokens, before, condition) - truth)[inside].square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.03


def test_only_more_heads_a_longer_reach_and_first_convolutions_are_grown():
    small = Transformer(replace(TINY, reach=1))
    for change in (
        {"layers": 4},
        {"width": 128},
        {"reach": 0},
        {"width": 32, "heads": 1},
        {"window": 9},
        {"detail_width": 32},
        {"detail_width": 0},
    ):
        with pytest.raises(ValueError, match="does not grow into"):
            grown(small, replace(small.config, **change))


def test_a_frame_is_predicted_from_what_it_is_told_stood_before_it(transformer: Transformer):
    c, latents, level = conditions(2, 5), torch.randn(2, 5, 8, 4, 4), torch.rand(2, 5)
    own = frames_before(latents, level)
    with torch.no_grad():
        plain = transformer(latents, level, c, causal=True).data
        same = transformer(latents, level, c, causal=True, before=own).data
        told = own._replace(latents=own.latents.clone())
        told.latents[:, 3] += 1
        other = transformer(latents, level, c, causal=True, before=told).data
    assert torch.equal(plain, same) and torch.equal(other[:, :3], plain[:, :3])
    assert (other[:, 3] - plain[:, 3]).abs().mean() > 0.01


def test_a_frame_that_is_only_to_be_remembered_leaves_the_same_memory_and_heads(transformer: Transformer):
    c, latents, level = conditions(2, 5), torch.randn(2, 5, 8, 4, 4), torch.rand(2, 5)
    with torch.no_grad():
        whole, short = (transformer(latents, level, c, drawn=each) for each in (None, 0))
    assert torch.equal(short.data, latents) and torch.equal(whole.reward, short.reward)
    for ours, theirs in zip(short.memory.layers, whole.memory.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def test_drawing_the_last_frames_alone_draws_them_the_same(transformer: Transformer):
    c, latents, level = conditions(2, 5), torch.randn(2, 5, 8, 4, 4), torch.rand(2, 5)
    with torch.no_grad():
        whole, some = (transformer(latents, level, c, drawn=each).data for each in (5, 2))
    assert torch.equal(some[:, :3], latents[:, :3])
    assert torch.allclose(some[:, 3:], whole[:, 3:], atol=1e-5) and not torch.equal(whole, latents)


def test_rollout_with_cache_equals_one_forward_under_the_sliding_window(transformer: Transformer):
    n, window = 17, transformer.config.window
    c, latents, level = conditions(2, n), torch.randn(2, n, 8, 4, 4), torch.rand(2, n)
    with torch.no_grad():
        whole = transformer(latents, level, c, causal=True)
        past, found = None, []
        for k in range(n):
            step = transformer(
                latents[:, k : k + 1], level[:, k : k + 1], one_frame(c, k), None, float(k), past
            )
            found.append(step.data)
            past = step.memory if past is None else extended(past, step.memory, window)
    assert n > 3 * window and whole.data.abs().max() > 0.1
    assert torch.allclose(torch.cat(found, dim=1), whole.data, atol=2e-5)


def test_the_causal_mask_hides_the_future_and_the_open_one_does_not(transformer: Transformer):
    n = 6
    c, latents, level = conditions(1, n), torch.randn(1, n, 8, 4, 4), torch.rand(1, n)
    changed = latents.clone()
    changed[:, 4] += 1
    with torch.no_grad():
        for causal in (True, False):
            difference = (
                transformer(latents, level, c, causal=causal).data
                - transformer(changed, level, c, causal=causal).data
            ).abs()
            assert (difference[:, :4].max() == 0) == causal
            assert difference[:, 4:].max() > 0


def test_unknown_conditions_do_not_matter_and_known_ones_do(transformer: Transformer):
    n = 3
    c, latents, level = conditions(1, n), torch.randn(1, n, 8, 4, 4), torch.rand(1, n)
    for field, known in (("actions", "actions_known"), ("rays", "rays_known"), ("text", "text_known")):
        other = c._replace(**{field: getattr(c, field) + 1.5})
        with torch.no_grad():
            assert not torch.allclose(
                transformer(latents, level, c).data, transformer(latents, level, other).data
            )
            hide = {known: torch.zeros_like(getattr(c, known))}
            first, second = (transformer(latents, level, x._replace(**hide)).data for x in (c, other))
        assert torch.equal(first, second), field


def test_padding_a_prompt_and_batching_rows_change_nothing(transformer: Transformer):
    c, latents, level = conditions(2, 3), torch.randn(2, 3, 8, 4, 4), torch.rand(2, 3)
    padded = c._replace(
        text=torch.cat([c.text, torch.randn(2, 4, TINY.text_width)], dim=1),
        text_known=torch.cat([c.text_known, torch.zeros(2, 4, dtype=torch.bool)], dim=1),
        text_shot=torch.cat([c.text_shot, torch.zeros(2, 4, dtype=torch.long)], dim=1),
    )
    with torch.no_grad():
        together = transformer(latents, level, c).data
        assert torch.allclose(together, transformer(latents, level, padded).data, atol=1e-5)
        alone = transformer(latents[1:], level[1:], Conditions(*(x[1:] for x in c))).data
    assert torch.allclose(together[1:], alone, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_streamed_decoding_equals_whole_and_a_first_frame_is_an_image(factor: int):
    config = replace(tokenizer_module.PRESETS["tiny"], time_factor=factor)
    model = randomised(Tokenizer(config))
    video = torch.rand(2, 1 + 4 * factor, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        latents = model.encode(video)
        whole, past, parts = model.decode(latents), None, []
        for k in range(latents.shape[1]):
            part, past = model.decode_stream(latents[:, k : k + 1], past)
            parts.append(part)
        assert latents.shape == (2, 5, config.channels, 2, 3) and whole.shape == video.shape
        assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
        assert torch.allclose(model.encode(video[:, :1]), latents[:, :1], atol=1e-5)


def test_a_latent_step_is_made_from_its_own_frames_only_and_decoding_never_looks_ahead():
    model = randomised(Tokenizer(tokenizer_module.PRESETS["tiny"]))
    video = torch.rand(1, 5, 3, 16, 16) * 2 - 1
    other = video.clone()
    other[:, 3] = -other[:, 3]
    with torch.no_grad():
        a, b = model.encode(video), model.encode(other)
        assert torch.equal(a[:, [0, 1, 2, 4]], b[:, [0, 1, 2, 4]]) and not torch.equal(a[:, 3], b[:, 3])
        assert torch.equal(model.decode(a)[:, :3], model.decode(b)[:, :3])
        assert not torch.equal(model.decode(a)[:, 4], model.decode(b)[:, 4])


@pytest.mark.parametrize(
    ("height", "width", "words"), [(20, 16, "height must be .* got 20"), (16, 0, "width must be")]
)
def test_a_size_that_does_not_divide_is_named(height: int, width: int, words: str):
    with pytest.raises(ValueError, match=words):
        Tokenizer(tokenizer_module.PRESETS["tiny"]).check_size(height, width)


@pytest.mark.parametrize("preset", sorted(transformer_module.PRESETS))
def test_every_preset_fits_its_tokenizer(preset: str):
    tokenizers = tokenizer_module.PRESETS  # presets beyond the largest tokenizer run on that one
    tokens, network = tokenizers.get(preset, tokenizers["base"]), transformer_module.PRESETS[preset]
    assert tokens.channels == network.latent_channels
    assert network.width % network.heads == 0 and network.heads % network.kv_heads == 0
    assert network.head_width % 8 == 0, "the rotary embedding splits a head in quarters of pairs"
    assert network.layers % network.full_every == 0, "the last layer looks at all frames"


def test_muon_on_many_matrices_at_once_takes_the_steps_of_torchs_own():
    shapes = [(16, 48), (48, 16), (16, 48), (32, 32)]
    draws = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=draws) for shape in shapes]
    ends = []
    for kind in (torch.optim.Muon, BatchedMuon):
        matrices = [torch.nn.Parameter(start.clone()) for start in starts]
        muon = kind(matrices, lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        gradients = torch.Generator().manual_seed(1)
        for _ in range(3):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=gradients)
            muon.step()
        ends.append(matrices)
    for start, theirs, ours in zip(starts, *ends, strict=True):
        assert torch.allclose(theirs, ours, atol=2e-3) and (ours - start).abs().mean() > 5e-3
    with pytest.raises(ValueError, match="no closure"):
        BatchedMuon([torch.nn.Parameter(torch.zeros(2, 2))]).step(lambda: 0.0)
