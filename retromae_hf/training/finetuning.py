"""Fine-tuning an encoder for retrieval on sentence-transformers' trainer, with its losses and its samplers."""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, load_from_disk
from transformers import TrainingArguments, set_seed

from ..checkpoints.hub import prepare_pushes, pushing
from ..checkpoints.sentence_models import load_sentence_transformer
from ..model.errors import RetroMAEError, check_at_least, in_one_sentence
from ..publishing.card_writer import CardArguments, describe_finetuning, describe_sentence_transformer, describing
from .finetuning_data import (
    JudgedCorpus,
    load_training_data,
    read_hard_negatives,
    read_scored_negatives,
    shorten,
)
from .negatives import mine_with_bm25, mine_with_model
from .resuming.run_folder import prepare_run
from .resuming.training_run import check_training_arguments, run_and_save

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from torch import nn

logger = logging.getLogger(__name__)

DEFAULT_FINETUNING_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "warmup_steps": 0.1,  # below 1 it is a share of the steps
    "per_device_train_batch_size": 128,
    "logging_steps": 50,
    "dataloader_drop_last": True,  # all processes must bring batches of one size to share their negatives
}
"""What `retromae-hf finetune` sets otherwise than sentence-transformers; flags and recipes go before it."""

OBJECTIVES = ("contrastive", "kl", "margin_mse")
MINERS = ("bm25", "model")
SIMILARITIES = ("cosine", "dot")


@dataclass
class FinetuneArguments:
    """What to fine-tune, on what, and how."""

    model_name_or_path: str = field(
        metadata={"help": "Exported encoder, or any encoder or sentence-transformers model."}
    )
    dataset: str = field(
        metadata={
            "help": "'pydocs', a folder in BEIR's layout with qrels/train.tsv, a .tsv file of triples, another file or "
            "a Hub dataset of query, positive and negatives."
        }
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    hard_negatives: str | None = field(
        default=None,
        metadata={"help": "'bm25' or 'model' to mine them so, or a file of JSON lines with query_id and negative_ids."},
    )
    num_negatives: int = field(default=4, metadata={"help": "Hard negatives a row."})
    negative_depth: int = field(default=100, metadata={"help": "Mined negatives are drawn from that many documents."})
    objective: str = field(
        default="contrastive",
        metadata={"help": "contrastive, or with a teacher's scores: kl (over lists) or margin_mse."},
    )
    teacher_scores: str | None = field(
        default=None, metadata={"help": "JSON lines of a cross-encoder's scores, one list for each line of negatives."}
    )
    similarity: str = field(default="cosine", metadata={"help": "cosine or dot."})
    temperature: float = field(default=0.05, metadata={"help": "What similarities are divided by; 1 goes with dot."})
    query_length: int = field(default=32, metadata={"help": "Tokens of a query, special tokens included."})
    passage_length: int = field(default=140, metadata={"help": "Tokens of a passage, special tokens included."})
    query_prompt: str | None = field(default=None, metadata={"help": "Text in front of every query."})
    passage_prompt: str | None = field(default=None, metadata={"help": "Text in front of every passage."})
    mini_batch_size: int = field(
        default=32,
        metadata={"help": "Texts encoded at a time; the batch may be far larger than the memory (GradCache)."},
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start anew where a run is already."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with the model; have read it before."}
    )

    def __post_init__(self) -> None:
        for name, values in (("objective", OBJECTIVES), ("similarity", SIMILARITIES)):
            if getattr(self, name) not in values:
                raise RetroMAEError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(values)}")
        check_at_least(
            1,
            num_negatives=self.num_negatives,
            negative_depth=self.negative_depth,
            mini_batch_size=self.mini_batch_size,
        )
        check_at_least(8, query_length=self.query_length, passage_length=self.passage_length)
        if self.temperature <= 0:
            raise RetroMAEError(f"temperature={self.temperature} must be above 0")
        if self.negative_depth < self.num_negatives:
            raise RetroMAEError(
                f"negative_depth={self.negative_depth} leaves less than num_negatives={self.num_negatives} to draw from"
            )
        if self.teacher_scores is not None and self.hard_negatives in (None, *MINERS):
            raise RetroMAEError("teacher_scores belong to a file of hard_negatives; name that too")
        if self.objective == "margin_mse" and self.similarity == "cosine":
            raise RetroMAEError(
                "margin_mse cannot reach a teacher's margins with cosines, which differ by 2 at most; give "
                "--similarity dot"
            )
        if self.teacher_scores is not None and self.objective == "contrastive":
            raise RetroMAEError("teacher_scores are for the objectives kl and margin_mse; choose one")


def finetune(
    args: FinetuneArguments, training_args: TrainingArguments, card_args: CardArguments | None = None
) -> SentenceTransformerTrainer:
    """Prepare the data, train, and save a sentence-transformers model and its card in the output folder.

    Args:
        args: what to do.
        training_args: `SentenceTransformerTrainingArguments`.
        card_args: what the user says of the model.

    Raises:
        RetroMAEError: bad input, found before anything is trained.
    """
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers.training_args import BatchSamplers

    if training_args.prompts is not None:
        raise RetroMAEError("prompts are named query_prompt and passage_prompt here; give those")
    check_training_arguments(training_args)
    prepare_pushes(training_args)
    run = prepare_run(training_args, args.overwrite_output_dir, [args.model_name_or_path], args)
    if args.objective == "contrastive" and training_args.batch_sampler == BatchSamplers.BATCH_SAMPLER:
        # A text that stands in a batch twice would be its own negative.
        training_args.batch_sampler = BatchSamplers.NO_DUPLICATES
    set_seed(training_args.seed)
    model = load_sentence_transformer(args.model_name_or_path, args.trust_remote_code)
    model.similarity_fn_name = args.similarity  # type: ignore[assignment]
    max_length = min(max(args.query_length, args.passage_length), model.max_seq_length or args.passage_length)
    model.max_seq_length = max_length
    prompts = {"query": args.query_prompt, "document": args.passage_prompt}
    model.prompts |= {name: prompt for name, prompt in prompts.items() if prompt is not None}
    with training_args.main_process_first(local=False, desc="preparing the data"):
        rows = prepare_rows(args, model, training_args, resumes=run.checkpoint is not None)
    passages = [name for name in rows.column_names if name not in ("query", "label")]
    training_args.prompts = {
        **({"query": args.query_prompt} if args.query_prompt else {}),
        **(dict.fromkeys(passages, args.passage_prompt) if args.passage_prompt else {}),
    } or None
    logger.info("%s rows with %d negatives each", f"{len(rows):,}", len(passages) - 1)
    batch = training_args.per_device_train_batch_size * training_args.world_size
    if training_args.dataloader_drop_last and len(rows) < batch:
        raise RetroMAEError(f"{len(rows)} rows fill no batch of {batch}; lower per_device_train_batch_size")
    model.model_card_data.generate_widget_examples = False  # it would tokenise the whole dataset
    with in_one_sentence("the training arguments cannot be used"):
        trainer = SentenceTransformerTrainer(
            model=model, args=training_args, train_dataset=rows, loss=loss_of(args, model, training_args.world_size > 1)
        )
    # The trainer would read a pickle there, as a whole where the checkpoint's own files ask for it.
    trainer._load_from_checkpoint = lambda folder: model.load_state_dict(  # type: ignore[assignment, method-assign]
        load_sentence_transformer(folder, args.trust_remote_code).state_dict()
    )
    stage, described = describe_finetuning(args, rows, max_length), describe_sentence_transformer(model)
    with pushing(trainer), describing(trainer, "encoder", described, stage, args.model_name_or_path, card_args):
        run_and_save(trainer, run)
    return trainer


def prepare_rows(
    args: FinetuneArguments, model: SentenceTransformer, training_args: TrainingArguments, resumes: bool
) -> Dataset:
    """`training_rows`; mined ones are kept in the output folder, for the other processes and to resume with."""
    if args.hard_negatives not in MINERS:
        return training_rows(args, model, training_args.seed)
    kept = Path(training_args.output_dir) / "_mined-negatives"  # "_" keeps Trainer from pushing the texts to the Hub
    if training_args.process_index == 0 and not (resumes and kept.is_dir()):
        aside = kept.with_name("_mined-negatives-new")
        shutil.rmtree(aside, ignore_errors=True)  # of a run that was cut off
        training_rows(args, model, training_args.seed).save_to_disk(aside)
        shutil.rmtree(kept, ignore_errors=True)  # of an earlier run
        aside.rename(kept)
    return load_from_disk(kept)


def training_rows(args: FinetuneArguments, model: SentenceTransformer, seed: int) -> Dataset:
    """Rows as the loss takes them: query, positive, negatives, label."""
    data = load_training_data(args.dataset, args.dataset_config_name, args.dataset_split)
    if args.hard_negatives in MINERS:
        pairs = data.pairs() if isinstance(data, JudgedCorpus) else data.select_columns(["query", "positive"])
        documents = list(data.documents.values()) if isinstance(data, JudgedCorpus) else pairs["positive"][:]
        if args.hard_negatives == "bm25":
            rows = mine_with_bm25(pairs, documents, args.num_negatives, args.negative_depth, seed)
        else:
            rows = mine_with_model(
                pairs, documents, model, args.num_negatives, args.negative_depth, args.mini_batch_size, seed
            )
    elif args.hard_negatives is not None:
        if not isinstance(data, JudgedCorpus):
            raise RetroMAEError("a file of hard_negatives names ids; it goes with a folder in BEIR's layout")
        if args.teacher_scores is None:
            rows = read_hard_negatives(args.hard_negatives, data, args.num_negatives, seed)
        else:
            rows = read_scored_negatives(args.hard_negatives, args.teacher_scores, data, args.num_negatives)
    else:
        rows = data.pairs() if isinstance(data, JudgedCorpus) else data
    if args.objective == "contrastive" and "label" in rows.column_names:
        rows = rows.remove_columns("label")
    if args.objective != "contrastive" and "label" not in rows.column_names:
        raise RetroMAEError(
            f"objective={args.objective} needs a teacher's scores; give teacher_scores, or rows with a column label"
        )
    texts = [name for name in rows.column_names if name != "label"]
    whole = rows.filter(
        lambda *row: all(text is not None for text in row) and bool(row[0].strip()), input_columns=texts
    )
    if len(whole) < len(rows):
        logger.warning("%d rows have an empty query or a text missing and were dropped", len(rows) - len(whole))
    if len(whole) == 0:
        raise RetroMAEError(f"{args.dataset} holds no rows to train on; give query and positive as text")
    rows = whole if args.objective == "contrastive" else with_labels(whole, args.objective, len(texts) - 1)
    lengths = {name: args.query_length if name == "query" else args.passage_length for name in texts}
    prompts = {name: (args.query_prompt if name == "query" else args.passage_prompt) or "" for name in texts}
    return shorten(rows, model.tokenizer, lengths, prompts)


def with_labels(rows: Dataset, objective: str, passages: int) -> Dataset:
    """Rows whose `label` is as the loss takes it: scores of all passages for kl, margins for margin_mse.

    Args:
        rows: with a column `label`.
        objective: kl or margin_mse.
        passages: columns of passages.

    Raises:
        RetroMAEError: the labels are not that.
    """
    if passages < 2:
        raise RetroMAEError(f"objective={objective} compares passages of a query; give rows with negatives")
    accepted = {"kl": {passages}, "margin_mse": {passages, passages - 1}}[objective]

    def checked(label: Any, row: int) -> list[float]:
        scores = label if isinstance(label, list) else [label]
        numbers = all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
        if not numbers or len(scores) not in accepted:
            wanted = f"a list of {passages} scores, the positive's and those of its negatives"
            if objective == "margin_mse":
                wanted += f", or of {passages - 1} margins"
            raise RetroMAEError(f"row {row + 1} has the label {label!r}; objective={objective} takes {wanted}")
        if objective == "margin_mse" and len(scores) == passages:
            scores = [scores[0] - other for other in scores[1:]]
        return [float(score) for score in scores]

    labels = [checked(label, row) for row, label in enumerate(rows["label"][:])]
    return rows.remove_columns("label").add_column("label", labels)


def loss_of(args: FinetuneArguments, model: SentenceTransformer, several_processes: bool) -> nn.Module:
    """sentence-transformers' loss of an objective."""
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        DistillKLDivLoss,
        MarginMSELoss,
    )
    from sentence_transformers.util import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score

    if args.objective == "contrastive":
        return CachedMultipleNegativesRankingLoss(
            model,
            scale=1 / args.temperature,
            similarity_fct=cos_sim if args.similarity == "cosine" else dot_score,
            mini_batch_size=args.mini_batch_size,
            gather_across_devices=several_processes,
        )
    pairwise = pairwise_cos_sim if args.similarity == "cosine" else pairwise_dot_score
    if args.objective == "kl":
        # The loss's own temperature would divide the teacher's scores too.
        return DistillKLDivLoss(model, similarity_fct=lambda a, b: pairwise(a, b) / args.temperature)
    return MarginMSELoss(model, similarity_fct=pairwise)
