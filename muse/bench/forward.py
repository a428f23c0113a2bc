"""Forward with logits written, the published protocol: this package's paths against the naive one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from muse.catalog import REFERENCE
from muse.measure.throughput import flops_per_token, forward_logits

from .context import Context
from .equality import check_rows
from .naive import NaiveStage1, perturb
from .paths import compiled, cuda_graph, num_bytes
from .timing import GroupResult, Trial

REFERENCE_TOKENS = {"cpu": 256}  # float64 takes long there: the first tokens of the first and the last sequence


def forward(bench: Context) -> Iterator[GroupResult]:
    """Compare forward passes of the reference model that write all logits, in complex32."""
    model = perturb(bench.build(REFERENCE, use_complex32=True), bench.settings.seed).eval()
    flops = flops_per_token(model, bench.n_tokens)
    for batch in bench.forward_batches:
        ids, _ = bench.batch(batch)
        rows = sorted({0, batch - 1})
        with torch.no_grad():
            want = NaiveStage1(model, checks=False).double()(ids[rows, : REFERENCE_TOKENS.get(bench.device.type)])

        def trial(make, ids=ids, rows=rows, want=want, graph=False) -> Trial:
            call = forward_logits(make(), ids)
            call = cuda_graph(call) if graph else call
            return Trial(call, partial(check_rows, call, rows, want, bench.complex32))

        paths = {"muse compiled": partial(trial, lambda: compiled(model, bench.device))}
        if bench.device.type == "cuda":
            paths["muse graph"] = partial(trial, lambda: compiled(model, bench.device), graph=True)
        paths |= {"muse eager": partial(trial, lambda: model), "naive": partial(trial, lambda: NaiveStage1(model))}
        least = num_bytes(*model.blocks.parameters(), *model.head_parameters())
        least += ids.numel() * (bench.settings.vocab_size + 2 * bench.settings.d_model) * 2
        yield bench.compare(f"forward_{batch}x{bench.n_tokens}", paths, tokens_per_call=ids.numel(),
                            flops_per_token=flops, least_bytes=least)  # fmt: skip
        del want
