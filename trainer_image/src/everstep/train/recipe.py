"""The training loop."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from everstep.checkpoint.checkpointer import Checkpointer
from everstep.data import Batches
from everstep.data.share import Share
from everstep.errors import InvalidOperationError
from everstep.train import model as models
from everstep.train.board import Board
from everstep.train.config import OUTSIDE, DataConfig, TrainConfig
from everstep.train.data import VOCABULARY, Encode, TextDataset, Tokens, encode_bytes
from everstep.train.ranks import Ranks, start
from everstep.train.schedule import factor
from everstep.train.text import is_held_out, read_documents
from everstep.weights.assets import tokenizer_files


def run(config: TrainConfig) -> None:
    ranks = start(config)
    try:
        train(config, ranks)
    except Exception:
        raise  # without a farewell: the others may be in the middle of a step, and would be waited for
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def train(config: TrainConfig, ranks: Ranks) -> None:
    Share.here(config.global_batch)  # a batch that does not divide is refused before anything is read
    seed(config.seed)
    encode, vocabulary = tokenizer(config.data)
    learn, held_out = datasets(config.data, encode)
    data = batches(config, learn)
    model = models.build(config.model, vocabulary, config.data.sequence).to(ranks.device)
    models.shard(model, ranks.mesh, ranks.half)
    options = config.optimizer
    optimizer = torch.optim.AdamW(
        models.parameter_groups(model, options.weight_decay),
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factor(step, config.steps, options.warm_up, options.minimum)
    )
    seed(config.seed + 1 + ranks.rank)  # from here on each rank draws numbers of its own
    with Checkpointer.from_env(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        data=data,
        root=config.root,
        interval_steps=config.save_steps,
        interval_seconds=config.save_seconds,
        asynchronous=config.save_async,
        weights_steps=config.weights_steps,
        resume=config.resume,
        resume_step=config.resume_step,
        config=config.model_dump(mode="json", exclude=set(OUTSIDE)),
        assets={} if config.data.tokenizer == "bytes" else tokenizer_files(Path(config.data.tokenizer)),
    ) as checkpointer:
        begin(checkpointer, config)
        board = Board(checkpointer.store) if ranks.leads else None
        if board is not None:
            checkpointer.on_commit(board.committed)
            if checkpointer.resumed is not None:
                board.resumed(checkpointer.resumed)
        journal = Journal(config) if ranks.leads else None
        began = time.monotonic()
        for step in checkpointer.steps(config.steps):
            first = data.position
            tokens = next(data).to(ranks.device)
            loss, norm = optimize(model, optimizer, scheduler, tokens, config)
            mean = float(ranks.mean(loss))
            metrics = {"loss": mean, "gradient_norm": norm}
            score = None
            if step == config.steps or (config.evaluation.every and step % config.evaluation.every == 0):
                checkpointer.phase("evaluating")
                score = evaluate(model, held_out, config.evaluation.samples, ranks)
                metrics["eval_loss"] = score
                checkpointer.phase("training")
            seen = tokens[:, 1:].numel()
            checkpointer.report(samples=len(tokens), tokens=seen, epoch=data.epoch, score=score, **metrics)
            if board is not None and journal is not None:
                now = time.monotonic()
                metrics["learning_rate"] = float(scheduler.get_last_lr()[0])
                board.add(step, {**metrics, "seconds_per_step": now - began})
                journal.write(step, (first, data.position), metrics, now - began)
                began = now
        data.close()
        if board is not None:
            board.close()


def begin(checkpointer: Checkpointer, config: TrainConfig) -> None:
    """What is kept, and the state that the first step starts from."""
    keep = (
        (checkpointer.keep_last, config.keep_last),
        (checkpointer.keep_best, config.keep_best),
        (checkpointer.keep_every, config.keep_every),
    )
    for policy, count in keep:
        if count is not None:
            policy(count)
    if checkpointer.load_latest() is None and config.model.weights is not None:
        checkpointer.load_weights(config.model.weights)


def optimize(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    tokens: torch.Tensor,
    config: TrainConfig,
) -> tuple[torch.Tensor, float]:
    """One step on this rank's samples; returns its loss and the norm of the whole gradient before clipping."""
    parts: Sequence[torch.Tensor] = torch.split(tokens, config.micro_batch or len(tokens))
    total = torch.zeros((), device=tokens.device)
    for number, part in enumerate(parts):
        sharded: Any = model
        sharded.set_requires_gradient_sync(number == len(parts) - 1)
        loss = models.loss_of(model, part) * (len(part) / len(tokens))
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    full: Any = norm
    return total, float(full.full_tensor() if hasattr(full, "full_tensor") else full)


@torch.no_grad()
def evaluate(model: nn.Module, held_out: TextDataset, samples: int, ranks: Ranks) -> float:
    """Mean loss on the same held-out samples each time, spread over the ranks."""
    count = max(1, min(samples, len(held_out)) // ranks.world_size)
    stride = max(1, len(held_out) // (count * ranks.world_size))
    mine = [((i * ranks.world_size + ranks.rank) * stride) % len(held_out) for i in range(count)]
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for index in mine:
        total += models.loss_of(model, held_out[index].unsqueeze(0).to(ranks.device)).double()
    model.train()
    return float(ranks.mean(total / count))


def batches(config: TrainConfig, learn: TextDataset) -> Batches:
    if len(learn) < config.global_batch:
        raise InvalidOperationError(
            f"global_batch: {config.global_batch} samples a step, but the text has only {len(learn)} of "
            f"data.sequence = {learn.sequence} tokens; give more text (data.source, data.max_bytes), shorter samples "
            "or a smaller batch"
        )
    return Batches(
        learn,
        config.global_batch,
        seed=config.seed,
        seeded=False,  # a window of text draws nothing
        collate=torch.stack,
        workers=config.data.workers,
        on_change=config.data.on_change,
    )


def datasets(config: DataConfig, encode: Encode) -> tuple[TextDataset, TextDataset]:
    """What is learnt from, and what only evaluation sees."""
    documents = read_documents(config.source, config.text_field, config.max_bytes)
    held = [document for document in documents if is_held_out(document.name, config.held_out)]
    rest = [document for document in documents if not is_held_out(document.name, config.held_out)]
    if not held or not rest:  # few documents: the end of the text is held out
        return _by_length(TextDataset.of(documents, config.sequence, encode), config.held_out)
    return TextDataset.of(rest, config.sequence, encode), TextDataset.of(held, config.sequence, encode)


def _by_length(whole: TextDataset, share: float) -> tuple[TextDataset, TextDataset]:
    cut = int(whole.tokens.size * (1 - share))
    return TextDataset(whole.tokens[:cut], whole.sequence), TextDataset(whole.tokens[cut:], whole.sequence)


def tokenizer(config: DataConfig) -> tuple[Encode, int]:
    if config.tokenizer == "bytes":
        return encode_bytes, VOCABULARY
    from transformers import AutoTokenizer

    if not Path(config.tokenizer).is_dir():
        raise InvalidOperationError(f"data.tokenizer: {config.tokenizer} is neither 'bytes' nor a folder")
    try:
        loaded = AutoTokenizer.from_pretrained(config.tokenizer, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidOperationError(f"data.tokenizer: no tokenizer in {config.tokenizer}: {error}") from error
    end = loaded.eos_token_id

    def encode(text: bytes) -> Tokens:
        ids = loaded.encode(text.decode(errors="replace"), add_special_tokens=False)
        return np.asarray(ids if end is None else [*ids, end], dtype=np.uint32)

    return encode, len(loaded)


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


class Journal:
    """One JSON line a step, with the loss bit for bit, so that two runs can be compared."""

    def __init__(self, config: TrainConfig) -> None:
        self._file: IO[str] | None = config.loss_log.open("a") if config.loss_log else None

    def write(self, step: int, samples: tuple[int, int], metrics: dict[str, float], seconds: float) -> None:
        line = json.dumps(
            {
                "step": step,
                "loss": round(metrics["loss"], 6),
                "loss_hex": metrics["loss"].hex(),
                "samples": list(samples),
                **{name: round(value, 6) for name, value in metrics.items() if name != "loss"},
                "seconds": round(seconds, 3),
            }
        )
        print(line, flush=True)
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
