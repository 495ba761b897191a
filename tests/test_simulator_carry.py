"""What a frame carries over from the one before: fetched where it was, and not over a cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.record import record
from simulator.carry import HOLDS, REACH, Carry, begun, inside, warped
from simulator.clips import list_episodes, read_frames
from simulator.frames import varied
from simulator.metrics import psnr
from simulator.tokenizer import PRESETS, Shown, Tokenizer
from simulator.video import to_uint8, to_unit
from simulator.world_model import WorldModel


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module", params=[1, 2])
def tokenizer(request) -> Tokenizer:
    """Of random weights, without the zeros of initialisation."""
    found = Tokenizer(replace(PRESETS["tiny"], time_factor=request.param))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.08 * torch.randn(parameter.shape, generator=generator))
    return found.eval().requires_grad_(False)


def test_pixels_come_from_where_the_flow_points():
    picture = noise(2, 3, 12, 16)
    nowhere = torch.zeros(2, 2, 12, 16)
    assert torch.allclose(warped(picture, nowhere), picture, atol=1e-5)
    flow = torch.stack([torch.full((12, 16), 3.0), torch.full((12, 16), -2.0)]).expand(2, -1, -1, -1)
    found = warped(picture, flow)
    assert torch.allclose(found[:, :, 2:, :-3], picture[:, :, :-2, 3:], atol=1e-5)
    assert torch.allclose(found[:, :, 2:, -3:], picture[:, :, :-2, -1:].expand(-1, -1, -1, 3), atol=1e-5)


def test_a_ramp_is_fetched_exactly_between_pixels():
    ramp = torch.arange(16.0).expand(1, 1, 8, 16)
    flow = torch.stack([torch.full((8, 16), 0.3), torch.zeros(8, 16)])[None]
    assert torch.allclose(warped(ramp, flow)[..., 2:-3], ramp[..., 2:-3] + 0.3, atol=0.05)


def test_inside_is_what_points_at_a_pixel_of_the_picture():
    flow = torch.tensor([3.4, -1.4])[None, :, None, None].expand(1, 2, 6, 8)
    expected = torch.zeros(6, 8)
    expected[1:, :5] = 1  # x + 3.4 < 7.5, y - 1.4 > -0.5
    assert torch.equal(inside(flow)[0, 0], expected)
    assert torch.equal(inside(-flow)[0, 0], expected.flip(0, 1))


@pytest.mark.parametrize("far", [True, False])
def test_a_texture_is_fetched_from_the_frame_that_was_shown_as_sharp_as_it_was(far: bool):
    """Half a pixel to the right and a quarter down, eight times: fetched again and again it blurs."""
    carry, steps = Carry(channels=2, width=16, blocks=1, frames=1, fold=4), 8
    with torch.no_grad():
        carry.flow.bias.copy_(torch.tensor([0.5, 0.25]).repeat_interleave(16) / REACH)
        sure = torch.tensor([1.0, 1.0 if far else -1.0, 1.0, 0, 0, 0])
        carry.mix[-1].bias.copy_(30 * sure.repeat_interleave(16))
        before = begun(texture := noise(1, 3, 24, 24))
        seen = carry.seen(torch.zeros(1, 2, 2, 3, 3))[:, 0]
        for _ in range(steps):
            made, before = carry(seen, torch.zeros(1, 1, 3, 24, 24), before)
    error = (made[0, 0, :, 2:-8, 2:-8] - texture[0, :, 4:-6, 6:-4]).square().mean()
    assert error < 1e-6 if far else error > 0.05
    assert torch.allclose(before[:, 6], torch.tensor(4.0)) and torch.allclose(before[:, 7], torch.tensor(2.0))


def test_trust_is_lost_step_by_step_and_moves_with_the_pixels():
    carry = Carry(channels=2, width=16, blocks=1, frames=1, fold=4)
    with torch.no_grad():
        carry.flow.bias.copy_(torch.tensor([1.0, 0.0]).repeat_interleave(16) / REACH)
        carry.mix[-1].bias.zero_()
        before = begun(noise(1, 3, 8, 8))
        before[:, 8, :, :4] = 0
        _, after = carry(carry.seen(torch.zeros(1, 2, 2, 1, 1))[:, 0], torch.zeros(1, 1, 3, 8, 8), before)
    holds = torch.tensor(HOLDS).sigmoid()
    assert torch.allclose(after[:, 8, :, 3:], holds) and not after[:, 8, :, :3].any()


def test_what_is_shown_changes_what_follows_alone(tokenizer: Tokenizer):
    factor = tokenizer.config.time_factor
    video, other = noise(2, 1 + 3 * factor, 3, 16, 24), noise(2, 1 + 3 * factor, 3, 16, 24, seed=1)
    latents, nothing = tokenizer.encode(video), torch.zeros(2, 4, dtype=torch.bool)
    own = tokenizer.decode(latents, Shown(other, nothing))
    assert torch.equal(tokenizer.decode(latents)[:, :1], own[:, :1])
    assert not torch.allclose(tokenizer.decode(latents)[:, 1:], own[:, 1:], atol=0.01)
    after = 1 + factor
    steps = torch.tensor([[False, True, False, False]]).expand(2, -1)
    shown = tokenizer.decode(latents, Shown(other, steps))
    assert torch.equal(shown[:, :after], own[:, :after])
    for later in range(after, own.shape[1]):
        assert not torch.equal(shown[:, later], own[:, later])
    as_decoded = tokenizer.decode(latents, Shown.first(own.clamp(-1, 1)))
    assert torch.allclose(as_decoded, own, atol=1e-5)
    unused = other.clone()
    unused[:, after:] = 0
    assert torch.equal(tokenizer.decode(latents, Shown(unused, steps)), shown)


def test_a_stream_is_shown_what_the_whole_clip_is(tokenizer: Tokenizer):
    factor = tokenizer.config.time_factor
    video = noise(2, 1 + 3 * factor, 3, 16, 24)
    latents, steps = (
        tokenizer.encode(video),
        torch.tensor([[True, False, True, False], [False, True, True, False]]),
    )
    whole, past, parts = tokenizer.decode(latents, Shown(video, steps)), None, []
    for n in range(4):
        now = slice(0, 1) if n == 0 else slice(1 + (n - 1) * factor, 1 + n * factor)
        shown = Shown(video[:, now], steps[:, n : n + 1])
        part, past = tokenizer.decode_stream(latents[:, n : n + 1], past, shown)
        parts.append(part)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


def test_rows_do_not_see_one_another(tokenizer: Tokenizer):
    video = noise(3, 1 + 2 * tokenizer.config.time_factor, 3, 16, 16)
    latents = tokenizer.encode(video)
    together = tokenizer.decode(latents, Shown.first(video))
    alone = tokenizer.decode(latents[1:2], Shown.first(video[1:2]))
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_it_learns_to_fetch_what_moved():
    """Textures that latents do not hold, shifted by what latents say: fetched, not made up."""
    torch.manual_seed(0)
    carry = Carry(channels=2, width=16, blocks=1, frames=1, fold=4)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(carry.parameters(), 3e-3)

    def error() -> torch.Tensor:
        shift = torch.randint(-2, 3, (16, 2), generator=generator)
        large = torch.rand(16, 3, 24, 24, generator=generator) * 2 - 1
        clips = [
            [clip[:, 4:20, 4:20], clip[:, 4 + dy : 20 + dy, 4 + dx : 20 + dx]]
            for clip, (dx, dy) in zip(large, shift.tolist(), strict=True)
        ]
        before, now = (torch.stack(frames) for frames in zip(*clips, strict=True))
        latents = torch.zeros(16, 2, 2, 2, 2)
        latents[:, 1] = (shift / 2.0)[:, :, None, None]
        made, _ = carry(carry.seen(latents)[:, 0], torch.zeros(16, 1, 3, 16, 16), begun(before))
        made = made[:, 0]
        return (made - now)[..., 2:-2, 2:-2].square().mean()

    with torch.no_grad():
        untrained = error().item()
    for _ in range(250):
        optimizer.zero_grad()
        loss = error()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.25 * untrained


def test_clips_are_cut_and_turned_at_the_borders_of_latent_steps():
    factor, rng = 2, np.random.default_rng(0)
    frames = 1 + 3 * factor
    found = varied(100 * np.arange(400)[:, None] + np.arange(frames), factor, rng)
    whose, when = found // 100, found % 100
    backwards, cut = when[:, 0] != 0, whose[:, 0] != whose[:, -1]
    assert 0.15 < backwards.mean() < 0.35 and 0.04 < cut.mean() < 0.17
    assert (whose[:, 0] == np.arange(400)).all()
    for row in whose[cut]:
        first = int((row != row[0]).argmax())
        assert (first - 1) % factor == 0 and (row[first:] == row[-1]).all()
    assert (when[~cut & backwards] == np.arange(frames)[::-1]).all()


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, np.ndarray]:
    """Held-out clips of the worlds, b t h w 3."""
    found = {}
    for world in ("Lab", "Orbit", "Room"):
        folder = tmp_path_factory.mktemp(world)
        record(f"orrery/{world}-v0", 6, folder, steps=2, seed=950_000_200, held_out=True, workers=1)
        found[world] = np.stack([read_frames(path) for path in list_episodes(folder)])
    return found


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return WorldModel.load().tokenizer


def decoded(tokenizer: Tokenizer, clips: np.ndarray, sight: bool) -> np.ndarray:
    video = to_unit(clips, "cpu")
    with torch.inference_mode():
        return to_uint8(tokenizer.decode(tokenizer.encode(video), Shown.first(video) if sight else None))


@pytest.mark.parametrize("world", ["Lab", "Orbit", "Room"])
def test_in_sight_of_the_true_frame_the_next_is_nearer_to_the_truth(
    shipped: Tokenizer, clips: dict, world: str
):
    """From the same latents, with the shipped weights: where nothing moves, and where the camera does."""
    truth = clips[world]
    after, alone = (decoded(shipped, truth, sight) for sight in (True, False))
    assert np.array_equal(after[:, 0], alone[:, 0])
    better = psnr(after[:, 1], truth[:, 1]) - psnr(alone[:, 1], truth[:, 1])
    assert better.mean() > 0.5
    if world == "Lab":
        still = (truth[:, 1] == truth[:, 0]).all(axis=-1)
        assert 0.5 < still.mean() < 1
        kept, made = (psnr(video[:, 1], truth[:, 1], still).mean() for video in (after, alone))
        assert kept > made + 1.5


def test_nothing_is_carried_over_a_cut(shipped: Tokenizer, clips: dict):
    truth = np.concatenate([clips["Room"][:, :1], clips["Lab"][:, :1]], axis=1)
    over, alone = decoded(shipped, truth, True)[:, 1], decoded(shipped, truth[:, 1:], False)[:, 0]
    assert psnr(over, truth[:, 1]).mean() > psnr(alone, truth[:, 1]).mean() - 0.5


def test_without_a_carry_frames_are_of_their_latents_alone():
    without = Tokenizer(replace(PRESETS["tiny"], carry_width=0)).eval()
    video = noise(1, 3, 3, 16, 16)
    with torch.no_grad():
        latents = without.encode(video)
        assert torch.equal(without.decode(latents, Shown.first(video)), without.decode(latents))
