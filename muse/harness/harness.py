"""EleutherAI's lm-evaluation-harness on models of this project: an adapter, and a WikiText task over a local folder.

`python -m muse.harness` is the harness's own command line with this adapter in it, as `--model muse`.

Text becomes tokens line by line, as in `muse.data.corpora`. No model here has learned a token that starts a text, so
none is invented: in a rolling likelihood the first token is charged the mean of the others, as
`muse.measure.perplexity` does for words and bytes, and an empty context is read as one end of line. Needs the extra
`eval`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from torch import nn
from tqdm import tqdm

from muse.data import readers
from muse.data.corpus import TokenSplit
from muse.data.text import normalized
from muse.data.tokenizers import GPT2, gpt2_tokenizer
from muse.data.words import canonical_words, has_words, median_word_bytes
from muse.measure import measure_perplexity
from muse.measure.common import training_mode
from muse.models.generate import generate
from muse.models.hub_files import saved_tokenizer
from muse.models.pretrained import check_tokenizer, local_folder, read_pretrained
from muse.ops import planar
from muse.ops.logits import head_logits
from muse.records.reasons import NO_WORDS

TASKS = Path(__file__).parent / "tasks"
OWN = {path.stem for path in TASKS.glob("*.yaml")}
LINE = re.compile(r"[^\n]*\n|[^\n]+")
START = "\n"  # what an empty context is read as
NEW_TOKENS = 256  # the harness's own default for an answer
logger = logging.getLogger(__name__)


@register_model("muse")
class MuseLM(LM):
    """A saved model (or one in memory) with its own tokenizer, or GPT-2's from the hub or a folder.

    Products are those that are measured.
    Without a GPU, one that is asked for is replaced by the CPU, as the harness's own models do.
    """

    def __init__(
        self,
        pretrained: str | Path | nn.Module,
        tokenizer: str | Path | None = None,
        device: str | None = None,
        batch_size: int | str = 4,
        **unused: object,
    ) -> None:
        super().__init__()
        model, about, own = pretrained, {}, None
        if not isinstance(pretrained, nn.Module):
            folder = local_folder(pretrained)
            model, about = read_pretrained(folder)
            own = saved_tokenizer(folder) if tokenizer is None else None
        self._device = _device(device)
        self.model, self.tokenizer = model.to(self._device), own or gpt2_tokenizer(str(tokenizer or GPT2))
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size: got {batch_size!r}, expected a number of sequences")
        self.batch_size = int(batch_size)
        if self.tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"tokenizer {tokenizer}: got {self.tokenizer.vocab_size} tokens, "
                f"expected at most the model's {model.config.vocab_size}"
            )
        check_tokenizer(about, self.tokenizer.vocabulary_sha256, str(tokenizer or pretrained))

    @property
    def n_seq(self) -> int:
        """Tokens of the longest sequence that the model reads."""
        return self.model.config.n_seq

    def encode(self, strings: Sequence[str]) -> list[list[int]]:
        """Token ids of each string, its lines one by one, line ends and byte order marks as in a corpus."""
        lines = [LINE.findall(normalized(string)[0]) for string in strings]
        if not any(lines):
            return [[] for _ in strings]
        ids, lengths = self.tokenizer.encode([line for string in lines for line in string])
        ends = np.cumsum([0, *lengths])[np.cumsum([0, *map(len, lines)])]
        return [ids[start:end].tolist() for start, end in pairwise(ends)]

    def loglikelihood_rolling(self, requests: Sequence, disable_tqdm: bool = False) -> list[float]:
        """Nat of each whole text: windows of n_seq without overlap, every target once, the first charged the mean."""
        texts = tqdm(self.encode([request.args[0] for request in requests]), "texts", disable=disable_tqdm)
        with planar.cpu_compute("float32"):
            return [self._rolling(ids) for ids in texts]

    def _rolling(self, ids: list[int]) -> float:
        if len(ids) < 2:  # nothing stands before the only token: all are alike
            return -len(ids) * math.log(self.model.config.vocab_size)
        split = TokenSplit("text", torch.tensor(ids), torch.tensor([0]), num_words=0, num_bytes=0, sha256="")
        result = measure_perplexity(self.model, split, n_seq=self.n_seq, batch_size=self.batch_size)
        return -result.loss_nats * len(ids)

    def loglikelihood(self, requests: Sequence, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Nat of each continuation after its context, and whether each of its tokens is the likeliest one."""
        pairs = self._pairs([request.args for request in requests])
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]))
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        found: dict[int, tuple[float, bool]] = {}
        with planar.cpu_compute("float32"):
            for batch in tqdm(batches, "continuations", disable=disable_tqdm):
                found |= dict(zip(batch, self._scores([pairs[i] for i in batch]), strict=True))
        return [found[i] for i in range(len(pairs))]

    def _pairs(self, arguments: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
        """The last n_seq + 1 ids of context and continuation together, and how many belong to the continuation."""
        contexts = [context.rstrip() or context or START for context, _ in arguments]  # tokens begin with their space
        wholes = [c + a[0][len(c) :] + a[1] for c, a in zip(contexts, arguments, strict=True)]
        pairs = []
        for before, ids in zip(self.encode(contexts), self.encode(wholes), strict=True):
            if (count := len(ids) - len(before)) > self.n_seq:
                raise ValueError(f"continuation of {count} tokens, expected at most n_seq = {self.n_seq}")
            pairs.append((ids[-self.n_seq - 1 :], max(count, 0)))
        return pairs

    @torch.inference_mode()
    def _scores(self, pairs: Sequence[tuple[list[int], int]]) -> Iterator[tuple[float, bool]]:
        """Sequences of different lengths end in padding, which a causal model does not see before."""
        longest = max(1, *(len(ids) - 1 for ids, _ in pairs))
        padded = torch.tensor([ids[:-1] + [0] * (longest + 1 - len(ids)) for ids, _ in pairs], device=self._device)
        with training_mode(self.model, False):
            features = self.model.features(padded)
            for row, (ids, count) in zip(features, pairs, strict=True):
                asked = row[len(ids) - 1 - count : len(ids) - 1]
                logits = head_logits(asked[None], *self.model.head_parameters())[0].double()
                targets = torch.tensor(ids[len(ids) - count :], dtype=torch.int64, device=self._device)
                nats = logits.log_softmax(-1).gather(1, targets[:, None]).sum().item()
                yield nats, bool((logits.argmax(-1) == targets).all())

    def generate_until(self, requests: Sequence, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context until a stop string, greedily unless `do_sample` says otherwise."""
        contexts = self.encode([request.args[0] or START for request in requests])
        asked = zip(contexts, [request.args[1] for request in requests], strict=True)
        with planar.cpu_compute("float32"):
            return [self._answer(*one) for one in tqdm(asked, "answers", len(requests), disable=disable_tqdm)]

    def _answer(self, ids: list[int], options: Mapping[str, object]) -> str:
        """Prompt and answer together hold at most n_seq tokens; of a longer prompt the end is kept."""
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else [stop for stop in until if stop]
        n_new = max(1, min(int(options.get("max_gen_toks", NEW_TOKENS)), self.n_seq - 1))
        prompt = torch.tensor([ids[-(self.n_seq - n_new) :]], device=self._device)
        choices = {name: options[name] for name in ("top_k", "top_p") if options.get(name)}
        temperature = float(options.get("temperature") or 1.0) if options.get("do_sample") else 0.0
        answer, written = "", []
        for token in generate(self.model, prompt, n_new, temperature=temperature, **choices):
            written.append(token.item())
            answer = self.tokenizer.decode(written)
            if found := [answer.index(stop) for stop in until if stop in answer]:
                return answer[: min(found)]
        return answer


def _device(name: str | None) -> torch.device:
    if (name is None or name.startswith("cuda")) and not torch.cuda.is_available():
        if name is not None:
            logger.warning("device: got %s, which is not there: cpu is taken", name)
        return torch.device("cpu")
    return torch.device(name or "cuda")


def command_line() -> None:
    """The harness's own command line, which knows the adapter by now."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


def load_text(corpus: str | None = None, **unused: object) -> DatasetDict:
    """The test split of a corpus folder (test.txt or parquet) as one row, from `metadata={"corpus": FOLDER}`."""
    if corpus is None:
        raise ValueError("corpus: got nothing, expected a folder: metadata={'corpus': FOLDER}")
    lines, _ = readers.read_folder(Path(corpus), ["test"])
    return DatasetDict({"test": Dataset.from_dict({"page": ["".join(lines["test"])]})})


def page(doc: Mapping[str, str]) -> str:
    """The whole text, not a character changed."""
    return doc["page"]


def process_results(doc: Mapping[str, str], results: Sequence[float]) -> dict[str, tuple[float, int]]:
    """(nat, count) of a text: words are those of `muse.data.words`, one for each end of line included.

    Where no spaces part its words, NaN stands for their perplexity, and that of characters beside it.
    """
    (nats,), text = results, doc["page"]
    per_byte = (nats, len(text.encode()))
    found = {"word_perplexity": (nats, canonical_words(text)), "byte_perplexity": per_byte, "bits_per_byte": per_byte}
    if not has_words(median_word_bytes(text)):
        logger.warning("word_perplexity: not given, %s; see byte_perplexity, character_perplexity", NO_WORDS)
        found |= {"word_perplexity": (math.nan, 1), "character_perplexity": (nats, len(text))}
    return found


def evaluate(
    model: MuseLM,
    tasks: Sequence[str],
    corpus: str | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
) -> dict:
    """Return the harness's results of these tasks, its own, ours and those below `include_path`, by task.

    null stands where one is not finite. ValueError for a task that is not there.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    paths = [str(TASKS), *([str(include_path)] if include_path else [])]
    if missing := [path for path in paths if not Path(path).is_dir()]:
        raise ValueError(f"include path {missing[0]}: no such folder")
    manager = TaskManager(include_path=paths, include_defaults=False, metadata={"corpus": corpus})
    if not set(tasks) <= set(manager.all_tasks):  # reading the harness's own thousands takes seconds
        manager = TaskManager(include_path=paths, metadata={"corpus": corpus})
    if unknown := [task for task in tasks if task not in manager.all_tasks and not Path(task).is_file()]:
        expected = f"expected {', '.join(sorted(OWN))}, one of the harness's own or of those in the include path"
        raise ValueError(f"task: got {unknown[0]!r}, {expected}")
    found = simple_evaluate(model, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0)
    return {task: {name: _plain(value) for name, value in row.items()} for task, row in found["results"].items()}


def _plain(value: object) -> object:
    """A result as strict JSON can hold it: numbers of numpy as Python's own, None for NaN and infinity."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
