"""Notebook 09: saved models looked at by hand, on a text of the reader's own; no stage of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from muse.catalog import CORPORA, LANGUAGES, SYNTHETIC, TOKENIZERS
from muse.data.corpora import TextCorpus, load_corpus
from muse.data.grammar import Grammar
from muse.host.lines import cut, one_line, shown
from muse.measure import reads, switches
from muse.models.build import build_model
from muse.models.generate import generate
from muse.models.pretrained import check_tokenizer, read_pretrained
from muse.models.weights import CONFIG_FILE, MODEL_FILE, WEIGHTS_FORMAT, load_trained, read_json, read_tensors
from muse.params import Folder, ParamsError, Seed, Text
from muse.report import explorer_page, figures
from muse.report.figures import explore
from muse.report.figures.style import style
from muse.report.runs import find_models

from . import notebook as notebook  # errors in three lines

BOOKS = Path(__file__).resolve().parent.parent.parent / "notebooks"
"""Where a folder of the parameters is looked for first; then in the working folder, then in the checkout."""

NARROW = 128  # channels up to which one thread is no slower than several, which wait for each other on a busy machine
SHOWN_TOKENS = 8  # rows of the table of next tokens
Count = Annotated[int, Field(ge=0, le=10**6)]


class Choices(BaseModel):
    """The parameters of the notebook."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    checkpoint_a: Folder
    checkpoint_b: Folder | None = None
    folders: list[Folder] = []
    corpus: Text = SYNTHETIC
    tokenizer: Text = "corpus"
    cache_dir: Folder | None = None
    text: str = Field(max_length=10**6)
    layer: Count = 0
    head: Count = 0
    position: Count = 0
    temperature: float = Field(1.0, ge=0, le=1e6)
    top_p: float = Field(1.0, gt=0, le=1)
    n_new_tokens: int = Field(40, ge=1, le=2000)
    seed: Seed = 0
    language: Literal[LANGUAGES] = "en"


@dataclass(frozen=True)
class Seen:
    """One model of the comparison, in float32, and what it is called."""

    label: str
    model: nn.Module


class Explorer:
    """One text and the one or two models that read it, from the notebook's parameters to what it shows.

    ParamsError tells in one line which parameter is wrong, what was got and what is expected.
    """

    def __init__(self, namespace: Mapping[str, object]) -> None:
        """Check the parameters found in `namespace` (pass `globals()`) and read the models."""
        self.choices = _checked({key: namespace[key] for key in Choices.model_fields if key in namespace})
        self.language = self.choices.language
        self.corpus = self._corpus()
        self.seen = tuple(self._models())
        if all(one.model.config.d_model <= NARROW for one in self.seen):
            torch.set_num_threads(1)
        self.ids = torch.tensor(self._encoded())
        self.words = [self.corpus.decode([index]).replace("\n", "↵") for index in self.ids.tolist()]
        self.watched = next((one for one in self.seen if "no_imaginary" in switches.switches_of(one.model)), None)
        self._check_place()

    def _corpus(self) -> TextCorpus:
        """A little of the corpus: what is needed of it are its words."""
        corpus, tokenizer = (
            value if value in known else str(found_folder(key, value))
            for key, value, known in (
                ("corpus", self.choices.corpus, CORPORA), ("tokenizer", self.choices.tokenizer, TOKENIZERS)
            )
        )  # fmt: skip
        sizes, cache = {"validation": 2} if corpus == SYNTHETIC else None, self.choices.cache_dir
        try:
            return load_corpus(
                corpus, tokenizer, splits=("validation",), synthetic_tokens=sizes, cache_dir=cache and Path(cache)
            )
        except ValueError as error:
            raise _wrong("corpus", self.choices.corpus, f"text that can be read: {error}") from None

    def _models(self) -> Iterator[Seen]:
        given = {key: getattr(self.choices, key) for key in ("checkpoint_a", "checkpoint_b")}
        read = {key: (value, *_read(key, value)) for key, value in given.items() if value is not None}
        labels = [style(name, self.language).label for _, _, name, _ in read.values()]
        for (key, (folder, model, _, about)), label in zip(read.items(), labels, strict=True):
            self._check_vocabulary(key, folder, model, about)
            yield Seen(f"{label} ({Path(folder).name})" if labels.count(label) > 1 else label, model)

    def _check_vocabulary(self, key: str, folder: str, model: nn.Module, about: Mapping[str, object]) -> None:
        """Raise ParamsError for a model of another vocabulary than the corpus'."""
        try:
            check_tokenizer(about, self.corpus.tokenizer_sha256, self.corpus.tokenizer_name)
        except ValueError as error:
            raise _wrong(key, folder, f"a model of corpus and tokenizer: {error}") from None
        if (got := model.config.vocab_size) < self.corpus.vocab_size:
            raise _wrong(key, folder, f"a vocabulary of at least {self.corpus.vocab_size}, not {got}")

    def _encoded(self) -> list[int]:
        try:
            ids = self.corpus.encode(self.choices.text)
        except ValueError as error:
            raise ParamsError(f"parameters: text: {error}") from None
        longest = min(one.model.config.n_seq for one in self.seen)
        if not 2 <= len(ids) <= longest:
            raise _wrong("text", self.choices.text, f"2 to {longest} tokens, not {len(ids)}")
        return ids

    def _check_place(self) -> None:
        counts = {"position": len(self.ids)}
        if self.watched:
            blocks = reads.complex_blocks(self.watched.model)
            counts |= {"layer": len(blocks), "head": blocks[0].memory.n_heads}
        for key, count in counts.items():
            if getattr(self.choices, key) >= count:
                of = "of the text" if key == "position" else f"of {self.watched.label}"
                raise _wrong(key, getattr(self.choices, key), f"0 to {count - 1} {of}")

    @cached_property
    def surprises(self) -> dict[str, list[float]]:
        """Nats of each token but the first, by model; of the synthetic language also what it leaves open itself."""
        found = {one.label: switches.token_losses(one.model, self.ids).tolist() for one in self.seen}
        if self.corpus.name == SYNTHETIC:
            try:
                found[explorer_page.FLOOR] = Grammar().nll_nats(self.ids.tolist())[1:].tolist()
            except ValueError:  # no sentence of the language
                return found
        return found

    @cached_property
    def reads(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of the chosen read that each token up to the position gives, with and without rotation: (S,) twice."""
        place = self.choices.layer, self.choices.head, self.choices.position
        return tuple(
            reads.read_at(self.watched.model, self.ids, *place, rotated=rotated).signed.numpy()
            for rotated in (True, False)
        )

    @cached_property
    def traffic(self) -> reads.Traffic:
        """What the memory keeps, writes and holds along the text."""
        return reads.traffic(self.watched.model, self.ids)

    @cached_property
    def switched(self) -> dict[str, dict[str, np.ndarray]]:
        """Nats of each token but the first, by model and switch: float32 (T-1,)."""
        return {
            one.label: {
                name: switches.token_losses(switches.switched(one.model, name), self.ids).numpy()
                for name in switches.switches_of(one.model)
            }
            for one in self.seen
        }

    def show_models(self) -> None:
        """Show the models that lie in the folders, and which were chosen."""
        problems: list[str] = []
        folders = [found_folder("folders", folder, there=False) for folder in self.choices.folders]
        table = explorer_page.models_table(find_models(folders, problems.append), self.language)
        explorer_page.show_table(table, self.language)
        for problem in problems:
            print(problem)

    def show_surprise(self) -> None:
        """Show the text with the surprise of every token."""
        shown = explorer_page.surprise(self.words, self.surprises, self.choices.position, self.language)
        figures.show_bundle(shown)

    def show_next(self) -> None:
        """Show what each model expects after the position, and what came."""
        ids = self.ids[: self.choices.position + 1]
        columns = {one.label: switches.next_tokens(one.model, ids, SHOWN_TOKENS) for one in self.seen}
        named = {
            label: [(self.corpus.decode([index]).replace("\n", "↵"), share) for index, share in rows]
            for label, rows in columns.items()
        }
        came = self.words[len(ids)] if len(ids) < len(self.words) else ""
        table = explorer_page.next_table(named, self.words[: len(ids)], came, self.language)
        explorer_page.show_table(table, self.language)

    def show_phases(self) -> None:
        """Show phase and size of every channel, by token and layer."""
        if self._watches():
            states = reads.states(self.watched.model, self.ids).numpy()
            figures.show(explore.phases(states, self.words, self.watched.label, self.language))

    def show_read(self) -> None:
        """Show what each earlier token gives to one read, with and without rotation."""
        if self._watches():
            place = self.choices.layer, self.choices.head
            figures.show(explore.contributions(*self.reads, self.words, *place, self.language))

    def show_traffic(self) -> None:
        """Show what is written and forgotten along the text."""
        if self._watches():
            new, forgotten = self.traffic.new.numpy(), self.traffic.forgotten.numpy()
            figures.show(explore.traffic(new, forgotten, self.words, self.watched.label, self.language))

    def show_switches(self) -> None:
        """Show what becomes of the text's loss under each switch."""
        explorer_page.show_table(explorer_page.switch_table(self.switched, self.language), self.language)
        if self._watches():
            losses = self.switched[self.watched.label]
            figures.show(explore.switch_losses(losses, self.words[1:], self.watched.label, self.language))

    def show_writing(self) -> None:
        """Let each model write on from the end of the text."""
        written, choices = {}, self.choices
        for one in self.seen:
            n_new = choices.n_new_tokens
            if getattr(one.model, "positions", None) is not None and hasattr(one.model.blocks[0], "step"):
                n_new = min(n_new, one.model.config.n_seq - len(self.ids) + 1)
            drawn = {"temperature": choices.temperature, "top_p": choices.top_p, "seed": choices.seed}
            tokens = [token.item() for token in generate(one.model, self.ids[None], n_new, **drawn)]
            written[one.label] = self.corpus.decode(tokens)
        explorer_page.show_writing(written, choices.temperature, choices.top_p, choices.seed, self.language)

    def show_answer(self) -> None:
        """Say in words what was found on this text."""
        explorer_page.show_answer(self._answer(), self.language)

    def _answer(self) -> Iterator[str]:
        words, language, choices = self.words, self.language, self.choices
        yield from explorer_page.losses_in_words(self.surprises, words, language)
        if self.watched:
            yield from explore.read_in_words(*self.reads, words, choices.layer, choices.head, language)
            new, forgotten = self.traffic.new.numpy(), self.traffic.forgotten.numpy()
            yield explore.traffic_in_words(new, forgotten, words, language)
            label = self.watched.label
            yield explorer_page.switches_in_words(self.switched[label], label, language)

    def _watches(self) -> bool:
        if self.watched is None:
            print(f"no complex memory in {', '.join(one.label for one in self.seen)}: nothing to show")
        return self.watched is not None


def found_folder(key: str, value: str, *, there: bool = True) -> Path:
    """Return a folder of the parameters, the first that is one; ParamsError where none is and `there` wants one."""
    given = Path(value).expanduser()
    places = [BOOKS / given, given, BOOKS.parent / given]
    if found := next((place for place in places if place.is_dir()), None):
        return found
    if there:
        raise _wrong(key, value, f"a folder, {cut(str(given.absolute()), 120)} is none")
    return places[0]


def _read(key: str, value: str) -> tuple[nn.Module, str, Mapping[str, object]]:
    """A saved model in float32, its name and what its weights say about their training."""
    folder = found_folder(key, value)
    try:
        if "architectures" in read_json(folder / CONFIG_FILE, advice="expected a saved model"):
            model, about = read_pretrained(folder)
        else:
            model = load_trained(folder, build_model)
            about = read_tensors(folder / MODEL_FILE, WEIGHTS_FORMAT)[1]
    except (ValueError, OSError) as error:
        expected = "the folder of an exported model or of a finished training"
        raise _wrong(key, value, f"{expected}: {cut(one_line(str(error)), 200)}") from None
    return model.float().eval(), str(about.get("model_name") or type(model).__name__), about


def _checked(values: Mapping[str, object]) -> Choices:
    try:
        return Choices(**values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            expected = str(problem["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
            got = "nothing" if problem["type"] == "missing" else shown(problem["input"])
            lines.append(f"parameters: {key}: got {got}, expected {expected}")
        raise ParamsError("\n".join(lines)) from None


def _wrong(key: str, got: object, expected: str) -> ParamsError:
    return ParamsError(f"parameters: {key}: got {shown(got)}, expected {expected}")
