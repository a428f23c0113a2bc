"""Forward with logits written, the published protocol: this package's paths against the naive one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from muse.catalog import REFERENCE
from muse.measure.throughput import flops_per_token, forward_logits

from .context import Context
from .gates import check_rows
from .naive import NaiveStage1, stir
from .paths import compiled, num_bytes, replayed
from .race import RaceResult, Trial

GATE_TOKENS = {"cpu": 256}  # float64 takes long there: the first tokens of the first and the last sequence


def forward(bench: Context) -> Iterator[RaceResult]:
    """Forward with logits written, the published protocol, in complex32."""
    model = stir(bench.build(REFERENCE, use_complex32=True), bench.sizes.seed).eval()
    flops = flops_per_token(model, bench.sizes.n_tokens)
    for batch in bench.sizes.forward_batches:
        ids, _ = bench.tokens(batch)
        rows = sorted({0, batch - 1})
        with torch.no_grad():
            want = NaiveStage1(model, checks=False).double()(ids[rows, : GATE_TOKENS.get(bench.device.type)])

        def trial(make, ids=ids, rows=rows, want=want, graph=False) -> Trial:
            call = forward_logits(make(), ids)
            call = replayed(call) if graph else call
            return Trial(call, partial(check_rows, call, rows, want, bench.complex32))

        candidates = {"muse compiled": partial(trial, lambda: compiled(model, bench.device))}
        if bench.device.type == "cuda":
            candidates["muse graph"] = partial(trial, lambda: compiled(model, bench.device), graph=True)
        candidates["muse eager"] = partial(trial, lambda: model)
        candidates["naive"] = partial(trial, lambda: NaiveStage1(model))
        least = num_bytes(*model.blocks.parameters(), *model.head_parameters())
        least += ids.numel() * (bench.sizes.vocab_size + 2 * bench.sizes.d_model) * 2
        yield bench.race(f"forward_{batch}x{bench.sizes.n_tokens}", candidates, tokens_per_call=ids.numel(),
                        flops_per_token=flops, least_bytes=least)  # fmt: skip
        del want
