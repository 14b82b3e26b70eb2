"""Pretraining on a stream: what is held out, what the run takes from it, and where a resumed run goes on."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from ..checkpoints.arguments import ModelArguments
from ..data.document_stream import DocumentStream
from ..data.fingerprints import fingerprint_of_tokenizer
from ..data.passage_stream import Bookmarks, PassageStream
from ..data.passages import cut_passages, cutting_options
from ..data.reading.pydocs import PYDOCS, SEARCHED_BODIES, hold_out
from ..data.reading.whole_files import read_json, write_json
from ..data.words import WordSegmenter
from ..model.configuration_retromae import SEGMENT_OBJECTIVES
from ..model.errors import RetroMAEError, in_one_sentence
from ..retrieval.tasks import RetrievalTask, dev_task
from .arguments import DataArguments

logger = logging.getLogger(__name__)

FOLDER = "_stream"
"""In the output folder; what begins so stays behind when `Trainer` pushes to the Hub."""

SETTINGS_FILE = "settings.json"


def check_streaming(args: DataArguments, model_args: ModelArguments, run: TrainingArguments, resumed: bool) -> None:
    """Raise `RetroMAEError` for what a stream cannot give."""
    if PYDOCS in args.dataset:
        raise RetroMAEError("'pydocs' is read from this Python environment and is no stream; leave streaming out")
    if run.max_steps < 1:
        raise RetroMAEError("a stream has no known end, so the run needs one; give --max_steps")
    if not (resumed or model_args.model_name_or_path or model_args.tokenizer_name):
        raise RetroMAEError(
            "a new tokenizer is trained on the whole corpus, which is not at hand in a stream; name one with "
            "--tokenizer_name, or start from a checkpoint with --model_name_or_path"
        )
    if not run.dataloader_in_order:
        raise RetroMAEError("a stream is resumed by the order of its batches; leave dataloader_in_order at true")


def held_out_head(documents: DocumentStream, dev_queries: int) -> tuple[Dataset, RetrievalTask | None]:
    """The documents to evaluate on, taken from the head of the stream, and the task to watch, where they yield one."""
    texts = documents.hold_out_head()
    head = Dataset.from_dict({"name": [str(row) for row in range(len(texts))], "text": texts})
    held_out = hold_out(head, min(dev_queries, len(texts) // 5), SEARCHED_BODIES)
    task = dev_task(held_out, len(held_out.queries)) if held_out.queries else None
    return held_out.pretraining, task


def open_passage_stream(
    documents: DocumentStream,
    tokenizer: PreTrainedTokenizerBase,
    pair_objective: str | None,
    word_segmenter: WordSegmenter | None,
    args: DataArguments,
    run: TrainingArguments,
    checkpoint: str | None,
) -> PassageStream:
    """The passages that the run trains on, in the order of the run that is resumed where there is one.

    Args:
        documents: the stream, its head held out.
        tokenizer: the model's.
        pair_objective: likewise.
        word_segmenter: as `tokenize_passages` takes it.
        args: how passages are cut, and how many are shuffled among themselves.
        run: its loader is told to leave the order alone.
        checkpoint: the one to resume from.

    Raises:
        RetroMAEError: an argument is out of range, or the run that is resumed read another stream.
    """
    if pair_objective == "nsp":
        raise RetroMAEError(
            "NSP draws its false successors from the whole corpus, which is not at hand in a stream; "
            "take --pair_objective contrast, sop or none, or leave streaming out"
        )
    pairs = pair_objective in SEGMENT_OBJECTIVES
    options = cutting_options(
        tokenizer,
        args.max_length,
        args.short_seq_prob,
        run.seed,
        pairs,
        word_segmenter,
        args.stride,
        args.max_passages_per_document,
    )
    identity = {
        "num_shards": documents.num_shards,
        "first_document": documents.first,
        "seed": run.seed,
        "pair_objective": pair_objective,
        **{
            name: getattr(args, name)
            for name in (
                "max_length",
                "short_seq_prob",
                "stride",
                "max_passages_per_document",
                "segment_chinese",
                "shuffle_buffer_size",
            )
        },
        "tokenizer": fingerprint_of_tokenizer(tokenizer),
    }
    lanes = run.world_size * max(run.dataloader_num_workers, 1)
    a_step = run.gradient_accumulation_steps * run.train_batch_size * run.world_size
    settings = identity | {"lanes": lanes, "batch_size": run.train_batch_size}
    folder = Path(run.output_dir) / FOLDER
    left = Path(checkpoint).parent / FOLDER if checkpoint else None  # by the run that is resumed
    earlier = read_json(left / SETTINGS_FILE) if left else None
    if left and not earlier:
        logger.warning("%s holds no settings of a stream; it is read from the start to where the run stopped", left)
    if earlier:
        if changed := [name for name in identity if identity[name] != earlier.get(name)]:
            raise RetroMAEError(
                f"{checkpoint} is of a run on another stream, which differs in {', '.join(changed)}; resume it with "
                "the arguments and the data that it was started with"
            )
        settings |= earlier
    if run.local_process_index == 0:
        _prepare_folder(folder, settings, left if earlier else None)
    # The order is the stream's own.
    run.train_sampling_strategy = "sequential"
    # Of a data set that is not one of `datasets`, Trainer would drop the columns that the collator needs.
    run.remove_unused_columns = False
    return PassageStream(
        documents,
        partial(cut_passages, **options),
        run.max_steps * a_step,
        settings["batch_size"],
        settings["lanes"],
        args.shuffle_buffer_size,
        Bookmarks(folder),
    )


def _prepare_folder(folder: Path, settings: dict[str, Any], earlier: Path | None) -> None:
    """Make the folder of the bookmarks, with those of the run that is resumed and of no other."""
    with in_one_sentence(f"the folder {folder} cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        if earlier is None or earlier.resolve() != folder.resolve():
            for old in folder.glob("lane-*.jsonl"):
                old.unlink()
            if earlier is not None:
                shutil.copytree(earlier, folder, dirs_exist_ok=True)
        write_json(folder / SETTINGS_FILE, settings)
