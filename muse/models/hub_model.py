"""A model of this project as transformers' clients know models: configuration, causal language model, cache.

The parameters keep their names, so that the weights of a folder are one file for `muse.from_pretrained`, transformers,
accelerate and safetensors. Writing keeps a state of fixed size where the blocks have one, else the last n_seq tokens:
the tokens are those of `muse.models.generate`, and so are its steps.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from muse.host.files import write_atomic
from muse.ops import logits

from . import layers, states, weights
from .generate import Recurrent
from .hub_files import MODEL_TYPE, MODELING_FILE, modeling_source
from .pretrained import OF_OUR_FILES, configured


class MuseConfig(PreTrainedConfig):
    """What a model is: `architectures` names its class, the other keys are the fields of that class's configuration."""

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012 - as the library declares it
        "hidden_size": "d_model", "num_hidden_layers": "n_layers", "max_position_embeddings": "n_seq"
    }  # fmt: skip

    def __init__(self, **values: object) -> None:
        super().__init__(**{key: value for key, value in values.items() if key not in OF_OUR_FILES})
        self.muse_class = (self.architectures or [None])[0]

    def to_dict(self) -> dict[str, object]:
        """As the library does; `architectures` stays the class that muse builds."""
        found = super().to_dict()
        name = found.pop("muse_class", None)
        return found | ({"architectures": [name]} if name else {})


class MuseForCausalLM(PreTrainedModel, GenerationMixin):
    """One of this project's models, as `muse`, behind the interface of transformers.

    Both hold the same dictionaries of parameters and modules: what is loaded, moved or replaced in one (by an adapter,
    say) is so in the other, under the names that the files have.
    """

    config_class = MuseConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _is_stateful = True  # a state of fixed size cannot be taken back by some tokens
    _no_split_modules = ["Block", "MemoryBlock", "Phase2Block"]  # noqa: RUF012 - as the library declares it

    def __init__(self, config: MuseConfig, *unused: object, **unused_too: object) -> None:
        super().__init__(config)
        object.__setattr__(self, "muse", _built(config))
        self.trained = {name: parameter.requires_grad for name, parameter in self.muse.named_parameters()}
        for registry in ("_parameters", "_modules", "_buffers", "_non_persistent_buffers_set"):
            object.__setattr__(self, registry, getattr(self.muse, registry))
        self.post_init()

    def init_weights(self) -> None:
        """Nothing: every parameter was drawn when the model was built, or is about to be loaded."""

    def initialize_weights(self) -> None:
        """Nothing, as in `init_weights`."""

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing, as in `init_weights`."""

    @classmethod
    def from_pretrained(cls, *arguments: object, **choices: object) -> MuseForCausalLM:
        """As the library does; a table of positions stays frozen."""
        found = super().from_pretrained(*arguments, **choices)
        model = found[0] if isinstance(found, tuple) else found  # with `output_loading_info`
        for name, trained in model.trained.items():
            model.get_parameter(name).requires_grad_(trained)
        return found

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes the cache that fits

    def _set_gradient_checkpointing(self, enable: bool = True, *unused: object, **unused_too: object) -> None:
        self.muse.recompute = enable

    def train(self, mode: bool = True) -> MuseForCausalLM:
        """As every module does; the model itself, which is no child, is told too."""
        self.muse.training = mode
        return super().train(mode)

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.muse.embedding if hasattr(self.muse, "embedding") else self.muse.gpt2.transformer.wte

    def get_output_embeddings(self) -> nn.Module | None:
        """Phase 2's head; the other models' heads are parameters or the token table."""
        return getattr(self.muse, "head", None)

    def save_pretrained(self, save_directory: str | Path, *arguments: object, **choices: object) -> None:
        """As the library does, and with the file that lets it read the folder without `import muse.hub`."""
        super().save_pretrained(save_directory, *arguments, **choices)
        write_atomic(Path(save_directory) / MODELING_FILE, modeling_source())

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: MuseCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **others: object,
    ) -> CausalLMOutputWithPast | tuple:
        """Ids (B T) to logits r(B T V), of the last `logits_to_keep` positions where that is not 0.

        With `labels` also the mean loss in nats: label t is what stands at t, not what follows; -100 counts nothing.
        Masked positions, on either side, are as if they were not there. ValueError for `inputs_embeds`, for a cache
        of another kind, and for ids as in `layers.check_token_ids`.
        """
        if input_ids is None:
            raise ValueError("input_ids: got nothing; token ids are all that these models read")
        if past_key_values is not None and not isinstance(past_key_values, MuseCache):
            raise ValueError(f"past_key_values: got {type(past_key_values).__name__}, expected a MuseCache")
        cache = past_key_values if past_key_values is not None else MuseCache() if use_cache else None
        mask = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :].bool()
        mask = None if mask is None or bool(mask.all()) else mask
        found = _read(self.muse, input_ids, mask, cache, logits_to_keep)
        loss = None
        if labels is not None:
            count = others.get("num_items_in_batch")
            loss = self.loss_function(found, labels, vocab_size=self.config.vocab_size, num_items_in_batch=count)
        output = CausalLMOutputWithPast(loss=loss, logits=found, past_key_values=cache)
        return output if return_dict is not False else output.to_tuple()


class MuseCache(Cache):
    """What a model has read: the states of its blocks, the same size after any number of tokens, or the last tokens."""

    is_compileable = False

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.reader: Recurrent | None = None  # of a model whose blocks keep states
        self.seen: Tensor | None = None  # (B T), ids before which unread ones may stand, for the other models
        self.lengths: list[int] = []  # tokens that each row has read
        self.columns = 0  # the same with masked ones

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far, masked ones included."""
        return self.columns

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what was read cannot be taken out of a state."""
        raise NotImplementedError("a state of fixed size cannot be taken back by some tokens")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows as a search over several beams wants them."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row as often in a row."""
        self.batch_select_indices(torch.arange(len(self.lengths)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """These rows, in this order."""
        if self.seen is not None:
            self.seen = self.seen.index_select(0, indices.to(self.seen.device))
        if self.reader is not None:
            self.reader.select(indices.to(states.model_device(self.reader.model)))
        self.lengths = [self.lengths[index] for index in indices.tolist()]

    def join(self, rows: list[MuseCache]) -> None:
        """Take over what was read row by row."""
        if rows[0].reader is not None:
            self.reader = Recurrent(rows[0].reader.model, False, states.joined([row.reader.state for row in rows]))
        if rows[0].seen is not None:
            width = max(row.seen.shape[1] for row in rows)
            padded = [nn.functional.pad(row.seen, (width - row.seen.shape[1], 0)) for row in rows]
            self.seen = torch.cat(padded)
        self.lengths = [length for row in rows for length in row.lengths]


def _built(config: MuseConfig) -> nn.Module:
    """The model of a configuration, on the CPU, in the dtype that the library has set as the default one.

    It is drawn in float32 as everywhere, or has no values yet where they will be loaded, as a meta device says.
    """
    model_class, own = configured(config.to_dict(), "config.json")
    dtype, loading = torch.get_default_dtype(), torch.get_default_device().type == "meta"
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), weights.WithoutDraws() if loading else nullcontext():
            return model_class(own).to(dtype)
    finally:
        torch.set_default_dtype(dtype)


def _read(model: nn.Module, ids: Tensor, mask: Tensor | None, cache: MuseCache | None, keep: int) -> Tensor:
    """Logits r(B T V) after ids (B T), of the last `keep` positions where that is not 0; the cache goes on."""
    if mask is not None and (cache is not None or not bool(mask[:, 0].all())):
        return _read_rows(model, ids, mask, cache, keep)
    ids = ids if mask is None else ids.masked_fill(~mask, 0)  # a padding token need not be one of the vocabulary
    if cache is None:
        return model(ids) if not keep else _head(model, model.features(ids)[:, -keep:])
    cache.columns += ids.shape[1]
    cache.lengths = [length + ids.shape[1] for length in cache.lengths or [0] * len(ids)]
    slides = not all(hasattr(block, "step") for block in model.blocks)
    if slides:
        seen = ids if cache.seen is None else torch.cat([cache.seen, ids], dim=1)
        cache.seen = seen[:, -model.config.n_seq :]
    if states.recurrent(model) and not (slides and max(cache.lengths) > model.config.n_seq):
        return _by_states(model, ids, cache, keep)
    return _head(model, _window(model, ids, cache, keep))


def _read_rows(model: nn.Module, ids: Tensor, mask: Tensor, cache: MuseCache | None, keep: int) -> Tensor:
    """The same with masked positions: each row alone, as if they were not there. Their logits are 0."""
    if cache is not None and cache.columns:
        raise ValueError("attention_mask: got masked tokens after the first call, expected them in a prompt only")
    if not bool(mask.any(1).all()):
        raise ValueError("attention_mask: got a row without any token")
    parts, rows = [], []
    for row, kept in zip(ids, mask, strict=True):
        rows.append(None if cache is None else MuseCache())
        found = _read(model, row[kept][None], None, rows[-1], 0)[0]
        parts.append(found.new_zeros(len(row), found.shape[-1]).masked_scatter(kept[:, None], found))
    if cache is not None:
        cache.join(rows)
        cache.columns = ids.shape[1]
    return torch.stack(parts)[:, -keep:]


def _head(model: nn.Module, features: Tensor) -> Tensor:
    return logits.head_logits(features, *model.head_parameters())


def _by_states(model: nn.Module, ids: Tensor, cache: MuseCache, keep: int) -> Tensor:
    """Logits r(B T V) through the states of blocks; the last ones alone, as `generate` asks, by the fast steps."""
    cache.reader = cache.reader or Recurrent(model, plain=False)
    if states.ends(model) and max(cache.lengths) > model.config.n_seq:
        raise ValueError(f"the position table ends at n_seq={model.config.n_seq}, got more tokens")
    if keep == 1 and not model.training and not torch.is_grad_enabled():
        return cache.reader(ids)[:, None]
    layers.check_token_ids(ids, model.config.vocab_size, max(ids.shape[1], 1))
    before = None if cache.reader.state is None else cache.reader.reached()
    z, blocks = states.advanced(model, ids, before)
    found = states.head(model, z[:, -keep:])
    lengths = torch.as_tensor(cache.lengths, device=ids.device)
    cache.reader = Recurrent(model, False, states.State(blocks, lengths, found[:, -1]))
    return found


def _window(model: nn.Module, ids: Tensor, cache: MuseCache, keep: int) -> Tensor:
    """What the head reads, from the last n_seq tokens of each row read anew."""
    n_seq, new = model.config.n_seq, ids.shape[1]
    if cache.seen.shape[1] < new:
        raise ValueError(f"token_ids must have 1 to n_seq={n_seq} positions, got {new}")
    widths = [min(length, n_seq) for length in cache.lengths]
    if len(set(widths)) == 1:
        found = model.features(cache.seen[:, -widths[0] :])[:, -new:]
    else:
        pairs = zip(cache.seen, widths, strict=True)
        found = torch.cat([model.features(row[None, -width:])[:, -new:] for row, width in pairs])
    return found[:, -keep:]
