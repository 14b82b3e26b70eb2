"""What the published measurements say to a user who has to choose: two tables for the guide guides/choosing.md."""

from __future__ import annotations

from typing import Any

import first_result


def choices(tuned: dict[str, Any], scratch: dict[str, Any], crops: dict[str, Any]) -> str:
    """What to do with which encoder and text, and what was measured.

    Args:
        tuned: the results of a comparison that starts from an encoder that was tuned for retrieval.
        scratch: of one that starts from nothing.
        crops: of one whose fine-tuning knows no queries, with fine-tuning alone for as long among its rows.
    """
    start = tuned["recipe"]["model"]["model_name_or_path"].rpartition("/")[2]
    alone, before = (_mean(tuned, row, "finetuned") for row in ("untrained", "retromae"))
    ours, mlm, none = (_mean(scratch, row, "finetuned") for row in ("retromae", "mlm", "untrained"))
    bm25 = scratch["tasks"][first_result.TASK]["bm25"][first_result.MEASURE]
    task = next(iter(crops["tasks"]))
    longer, once = (crops["objectives"][row] for row in ("longer", "untrained"))
    fell, was = (row["finetuned"][task]["mrr@10"]["mean"] for row in (longer, once))
    rows = [
        (
            "an encoder that is tuned for retrieval (all-MiniLM, bge, e5 ...) and text of your own",
            "`adapt`, or `finetune` if you have queries; do not pretrain it",
            f"{start}: MRR@10 {_mean(tuned, 'untrained', 'zero_shot'):.3f} as it is, {alone:.3f} fine-tuned, "
            f"{before:.3f} with RetroMAE before that",
        ),
        (
            "a masked LM (BERT, ModernBERT, one of your field or language), much text and a GPU",
            "`pretrain` with RetroMAE, then `finetune`",
            "the paper's case; not measured here, where no such model could be downloaded",
        ),
        (
            "no encoder that fits: another language, a tiny one, a vocabulary of its own",
            "`pretrain` from scratch, then `finetune`",
            f"MRR@10 after fine-tuning: {ours:.3f} with RetroMAE, {mlm:.3f} with MLM, {none:.3f} without either; "
            f"BM25 has {bm25:.3f}, so join both rankings",
        ),
        (
            "an hour for an encoder that is tuned for retrieval, and no real queries",
            "a few minutes of fine-tuning on pairs of the text, and no more",
            f"on crops of {task}'s abstracts MRR@10 fell from {was:.3f} to {fell:.3f} in "
            f"{longer['finetuning_seconds'] / once['finetuning_seconds']:.0f} times the seconds",
        ),
    ]
    lines = [f"| {have} | {do} | {seen} |" for have, do, seen in rows]
    return "\n".join(["| you have | do this | what was measured |", "|---|---|---|", *lines])


def normal(scratch: dict[str, Any]) -> str:
    """How the losses of RetroMAE fell in a run from scratch, and what the embedding was worth in the end."""
    logs = scratch["objectives"]["retromae"]["logs"]
    trained = [entry for entry in logs if "decoder_loss" in entry]
    lines = ["| step | million tokens | `mlm_loss` | `decoder_loss` |", "|---:|---:|---:|---:|"]
    for entry in (trained[0], trained[len(trained) // 3], trained[2 * len(trained) // 3], trained[-1]):
        tokens = entry["num_input_tokens_seen"] / 1e6
        lines.append(f"| {entry['step']:,} | {tokens:.1f} | {entry['mlm_loss']:.2f} | {entry['decoder_loss']:.2f} |")
    (gap,) = (entry["eval_embedding_gap"] for entry in logs if "eval_embedding_gap" in entry)
    model, settings = scratch["recipe"]["model"], scratch["recipe"]["pretraining"]
    told = (
        f"{model['num_hidden_layers']} layers x {model['hidden_size']} from scratch, vocabulary "
        f"{model['vocab_size']:,}, passages of at most {settings['max_length']} tokens. At the end "
        f"`eval_embedding_gap` was {gap:.2f} nats a token."
    )
    return "\n".join([*lines, "", told])


def _mean(report: dict[str, Any], row: str, stage: str) -> float:
    return first_result.measured(report, row, stage)["mean"]
