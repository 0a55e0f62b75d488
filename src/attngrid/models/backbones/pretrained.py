"""Weights of timm's and torchvision's networks that are on this machine; nothing is downloaded."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import nn

from attngrid.core.errors import ConfigError


def find_weights(library: str, model: str) -> tuple[Path, str]:
    """The file of a model's weights, and its SHA-256.

    timm's are in the cache of Hugging Face, torchvision's (and some of timm's) among torch hub's
    checkpoints. torchvision's are its default ones.

    Raises:
        ConfigError: no such weights, no file, or a file with another SHA-256 than its name says.
    """
    file = _find_file(library, model)
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    # Hugging Face's cache has the SHA-256 as the name of the file that the link points to, torch
    # hub the beginning as in resnet18-f37072fd.pth
    named = re.fullmatch(r"[0-9a-f]{64}", file.resolve().name)
    named = named or re.search(r"(?<=-)[0-9a-f]{8,}(?=\.)", file.name)
    if named and not sha256.startswith(named[0]):
        raise ConfigError(
            f"pretrained: {file}: found SHA-256 {sha256}, its name says {named[0]}; copy it again"
        )
    return file, sha256


def _find_file(library: str, model: str) -> Path:
    looked: list[str] = []
    if library == "timm":
        import timm
        from huggingface_hub import constants, try_to_load_from_cache

        known = timm.get_pretrained_cfg(model)
        url = (known and known.url) or ""
        if known and known.hf_hub_id:
            repository, _, revision = known.hf_hub_id.partition("@")
            names = ("model.safetensors", "pytorch_model.bin")
            for name in [known.hf_hub_filename] if known.hf_hub_filename else names:
                cache = constants.HF_HUB_CACHE
                found = try_to_load_from_cache(repository, name, cache, revision or None)
                if isinstance(found, str):
                    return Path(found)
                looked.append(f"{name} of {repository} in {cache}")
    else:
        import torchvision

        url = torchvision.models.get_model_weights(model).DEFAULT.url
    if url:  # timm's may come with the name of the file
        name = url.rpartition("/")[2] if isinstance(url, str) else url[1]
        file = Path(torch.hub.get_dir()) / "checkpoints" / name
        if file.is_file():
            return file
        looked.append(str(file))
    if not looked:
        raise ConfigError(f"pretrained: {library} has no weights of {model!r}")
    raise ConfigError(
        f"pretrained: there is no {' and no '.join(looked)}; put it there (attngrid does not "
        "download it)"
    )


def load_weights(network: nn.Module, file: Path) -> None:
    """Load a state dict; a classifier of another number of classes keeps its own weights.

    Raises:
        ConfigError: the state dict is not that of the network.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        own = network.state_dict()
        other = {k: v for k, v in own.items() if k in state and state[k].shape != v.shape}
        if len({name.rpartition(".")[0] for name in other}) == 1:
            state |= other
        network.load_state_dict(state)
    except Exception as error:  # the loaders raise many types
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"pretrained: {file}: does not fit: {reason}") from error
