"""The card of a saved model: Markdown with the hub's front matter."""

from __future__ import annotations

import math
from collections.abc import Mapping

import yaml
from torch import nn

from muse.catalog import HUB_CORPORA
from muse.data.readers import WIKITEXT_HUB_ID

from .weights import dtype_of

NO_MIXING = (
    "This model **does not mix positions**: it sees one token and predicts the next one, so it is a bigram model."
)


RESEARCH = (
    "A research model, trained from scratch and small: no instruction tuning, no filter on what it writes, no claim "
    "that what it writes is true. It is made to be measured."
)


def model_card(model: nn.Module, training: Mapping[str, object] | None = None) -> str:
    """The card of a model, Markdown with the hub's front matter: sizes, training, limits, licence."""
    config, training = model.config, training or {}
    limits = [RESEARCH, f"It was made for sequences of at most {config.n_seq} tokens."]
    if getattr(config, "mixer", "") == "none":
        limits.insert(0, NO_MIXING)
    title = str(training.get("model_name") or type(model).__name__)
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(title, training), sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        "A language model of the MUSE workbook, which measures planar complex half-precision models against real ones.",
        "```python\nfrom muse import from_pretrained\n\nmodel = from_pretrained(FOLDER)  # ids (B T) to logits\n```",
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        "model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)\n```",
        "## Sizes",
        _table(_sizes(model)),
        "## Training",
        _table(_settings_of(training)) if training else "Nothing is recorded about it: the weights may be untrained.",
        "## Limits",
        "\n".join(f"- {line}" for line in limits),
        "## Licence",
        "MIT, like the code that made it. The text it was trained on has a licence of its own.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(title: str, training: Mapping[str, object]) -> dict[str, object]:
    """What the hub reads of a card; data, language and results where the training recorded them."""
    values = {
        "license": "mit",
        "library_name": "muse-workbook",
        "pipeline_tag": "text-generation",
        "tags": ["muse", "causal-lm"],
    }
    corpus, loss = training.get("corpus"), training.get("validation_loss_nats")
    name = str(corpus.get("name", "")) if isinstance(corpus, Mapping) else ""
    of_hub = name in HUB_CORPORA
    if of_hub:
        values |= {"datasets": [WIKITEXT_HUB_ID], "language": ["en"]}
    if name and loss is not None:
        data = {"name": name, "type": WIKITEXT_HUB_ID if of_hub else name, "split": "validation"}
        data |= {"config": HUB_CORPORA[name]} if of_hub else {}
        metric = {"type": "perplexity", "value": round(math.exp(loss), 4), "name": "perplexity per token"}
        task = {"type": "text-generation", "name": "language modeling"}
        result = {"task": task, "dataset": data, "metrics": [metric]}
        values |= {"metrics": ["perplexity"], "model-index": [{"name": title, "results": [result]}]}
    return values


def _sizes(model: nn.Module) -> dict[str, object]:
    config, parameters = model.config, list(model.parameters())
    stored = sum(p.numel() * p.element_size() for p in parameters)
    rows = {"architecture": type(model).__name__, "parameters": f"{sum(p.numel() for p in parameters):,}"}
    rows |= {f"parameters: {name}": f"{count:,}" for name, count in model.parameter_groups().items()}
    rows |= {"storage": f"{dtype_of(model)}, {stored / 2**20:.1f} MiB"}
    return rows | {name: getattr(config, name) for name in ("vocab_size", "d_model", "n_layers", "n_seq")}


def _settings_of(training: Mapping[str, object]) -> dict[str, object]:
    """What a training recorded about itself, one row each; lists and tables of it by their parts."""
    rows = {}
    loss = training.get("validation_loss_nats")
    if loss is not None:
        rows["validation loss"] = (
            f"{loss:.4f} nat per token (perplexity {math.exp(loss):.2f}), in the training's precision"
        )
    for key, value in training.items():
        if isinstance(value, Mapping):
            rows |= {f"{key}: {name}": part for name, part in value.items() if not isinstance(part, Mapping)}
        elif key not in ("validation_loss_nats", "model_name"):
            rows[key] = value
    return rows


def _table(rows: Mapping[str, object]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name.replace('_', ' ')} | {value} |" for name, value in rows.items())]
    )
