"""Fine-tunes an exported encoder for retrieval with sentence-transformers' own trainer, without a helper of ours.

python examples/finetune_contrastive.py runs/from-scratch/retromae-encoder
"""

from __future__ import annotations

import argparse

from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from retromae_hf.data.held_out import load_held_out_pydocs


def main(argv: list[str] | None = None) -> None:
    """First sentences of docstrings learn to find their bodies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", help="folder that retromae-hf export wrote, or a model on the Hub")
    parser.add_argument("--output_dir", default="runs/finetune-contrastive")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args(argv)

    # The folder says how to pool ([CLS]), so this is all that loading takes.
    model = SentenceTransformer(args.encoder)
    model.model_card_data.generate_widget_examples = False  # it would tokenise the whole dataset

    # Two columns, a question and its answer; the test queries of `retromae-hf evaluate` are not among them.
    pairs = load_held_out_pydocs().pairs

    # Every other answer of the batch is a wrong one, so large batches teach more. The cached loss encodes them
    # `mini_batch_size` texts at a time: the batch may be far larger than the memory.
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=32)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            args.output_dir,
            max_steps=args.steps,
            per_device_train_batch_size=128,
            learning_rate=5e-5,
            warmup_steps=0.1,  # a share of the steps
            batch_sampler="no_duplicates",  # a text that stands in a batch twice would be its own wrong answer
            logging_steps=20,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=pairs,
        loss=loss,
    )
    trainer.train()
    model.save_pretrained(args.output_dir)
    print(f"Next: retromae-hf evaluate --model_name_or_path {args.output_dir} --dataset pydocs")


if __name__ == "__main__":
    main()
