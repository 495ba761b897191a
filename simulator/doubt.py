"""How wrong a dream expects its pictures to be, in grey levels.

The network says of every latent step how far off it expects its first guess to be, and errors go on into the
steps that follow. A picture that is all in doubt is no farther off than any other picture, so what counts is
the share that is in doubt; and what has not moved since a frame was last shown is seldom wrong. How much each
of both says was fitted once (`python -m simulator.calibration`), as calibrated regression does (Kuleshov,
Fenner and Ermon 2018).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from simulator.tokenizer import Past
from simulator.video import Video

KEPT = 0.95  # of the error expected so far, from one latent step to the next
# to 96 training episodes of each of the shipped model's worlds: grey levels, and powers of the share in doubt
# and of 1 and the change in grey levels
SCALE, OF_DOUBT, OF_CHANGE = 17.8, 0.45, 0.24


def share_in_doubt(doubts: Float[np.ndarray, " *n"]) -> Float[np.ndarray, " *n"]:
    """Of the latents' variance. doubts: mean squared error that is expected of them, in units of it."""
    return doubts / (1 + doubts)


def change(video: Video, past: Past) -> Float[np.ndarray, " b"]:
    """Root mean square difference of the last frame from the frame that was shown last, in grey levels."""
    if past.before is None:
        return np.zeros(len(video))
    apart = video[:, -1].clamp(-1, 1) - past.before[:, 3:6]
    return 127.5 * apart.square().mean(dim=(1, 2, 3)).sqrt().double().cpu().numpy()


def expected_error(
    doubts: Float[np.ndarray, " b"], video: Video | None = None, past: Past | None = None
) -> Float[np.ndarray, " b"]:
    """Root mean square error in grey levels that is expected of the last frame of each row; without a video,
    of one that nothing was shown before."""
    changed = np.zeros(len(doubts)) if video is None or past is None else change(video, past)
    expected = SCALE * share_in_doubt(doubts) ** OF_DOUBT * (1 + changed) ** OF_CHANGE
    return expected.astype(np.float32)
