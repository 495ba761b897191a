"""Control steps in compiled code: many small operations become few, and products find their weights laid out
for them ("freezing" of torch.compile).

Making it takes a minute, so all steps get the same shapes: what is not remembered yet, and words that were
not said, are filled up with what nothing looks at. Code is made anew for other numbers of rows, picture sizes
and threads, and for steps that pull or remember otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_map_only

from simulator.cache import Memory, padded
from simulator.flow import Levels
from simulator.tokenizer import Latents, Past, Tokenizer
from simulator.transformer import (
    EXTRA_TOKENS,
    Before,
    Conditions,
    Prediction,
    Transformer,
    TransformerConfig,
)
from simulator.video import Video

Given = TypeVar("Given")
MAKING = "making code for control steps of rows: {rows}, threads: {threads}; this takes about a minute"
WORDS = 32  # tokens of a prompt are filled up to a multiple of this


class Networks(NamedTuple):
    """What a control step calls: the two networks, or compiled code in their place."""

    forward: Callable[..., Prediction]  # as `Transformer.forward`
    decode_stream: Callable[[Latents, Past | None], tuple[Video, Past]]  # as `Tokenizer.decode_stream`


def networks(transformer: Transformer, tokenizer: Tokenizer, in_compiled_code: bool) -> Networks:
    """Those of control steps. Compiled code is made when a step first needs it.

    Raises ValueError if there is no C++ compiler to make it with.
    """
    if not in_compiled_code:
        return Networks(transformer, tokenizer.decode_stream)
    # slow to import
    import torch._inductor.config as inductor
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "compiled steps need a C++ compiler, found none; install g++ (Debian, Ubuntu: apt install g++), "
            "or set CXX to one"
        ) from error
    made: set[tuple] = set()  # kinds of steps that there is code for
    forward = torch.compile(transformer.forward, dynamic=False)
    decode_stream = torch.compile(tokenizer.decode_stream, dynamic=False)

    def like_any_other(
        latents: Latents,
        noise_level: Levels,
        conditions: Conditions,
        visible: Bool[Tensor, "b n m"] | None,
        frames: Float[Tensor, " n"],
        past: Memory,
        next_level: Levels | None,
        before: Before,
        drawn: int,
    ) -> Prediction:
        visible, past = _filled(latents, visible, past, transformer.config)
        words, threads = _worded(conditions), torch.get_num_threads()
        kind = (latents.shape, words.text.shape, drawn, next_level is None, threads)
        if kind not in made:
            made.add(kind)
            print(MAKING.format(rows=len(latents), threads=threads), file=sys.stderr, flush=True)
        given = (latents, noise_level, words, visible, frames, past, next_level, False, before)
        with inductor.patch(freezing=True):  # as an option of torch.compile it would come too late
            return forward(*alike(given), drawn)  # type: ignore[reportCallIssue]

    def decoded(latents: Latents, past: Past | None) -> tuple[Video, Past]:
        with inductor.patch(freezing=True):
            return decode_stream(*alike((latents, past)))

    return Networks(like_any_other, decoded)


def _filled(
    latents: Latents, visible: Bool[Tensor, "b n m"] | None, past: Memory, config: TransformerConfig
) -> tuple[Bool[Tensor, "b n most"], Memory]:
    """A memory of as many frames as a rollout ever sees, and what of it is."""
    b, n, _, height, width = latents.shape
    tokens = EXTRA_TOKENS + height * width // config.patch**2
    longest = config.window - 1
    kept = past.layers[0].keys.shape[2] // tokens
    may = latents.new_ones(b, n, kept + n, dtype=torch.bool) if visible is None else visible
    return pad(may, (longest - kept, 0)), padded(past, longest * tokens)


def _worded(conditions: Conditions) -> Conditions:
    """The same with room for more words."""
    more = -conditions.text.shape[1] % WORDS
    return conditions._replace(
        text=pad(conditions.text, (0, 0, 0, more)),
        text_known=pad(conditions.text_known, (0, more)),
        text_shot=pad(conditions.text_shot, (0, more)),
    )


def alike(given: Given) -> Given:
    """The same as tensors of inference mode, which those of a state that was put together or read are not,
    and with nothing between their values: code is made for one kind."""

    def plain(value: Tensor) -> Tensor:
        whole = value.untyped_storage().nbytes() == value.nbytes  # a row cut out counts as contiguous too
        good = value.is_inference() and value.is_contiguous() and whole
        return value if good else value.clone(memory_format=torch.contiguous_format)

    return tree_map_only(Tensor, plain, given)
