"""Teaches an encoder the order in which a cross-encoder ranks its hard negatives (knowledge distillation).

python examples/finetune_distillation.py runs/finetune-contrastive
"""

from __future__ import annotations

import argparse

from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.cross_encoder import CrossEncoder
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from sentence_transformers.util import mine_hard_negatives, pairwise_cos_sim
from torch import Tensor, nn

from retromae_hf.data.held_out import load_held_out_pydocs

BATCH_SIZE, NEGATIVES = 32, 4


def similarity(queries: Tensor, passages: Tensor) -> Tensor:
    """Cosines lie between -1 and 1; on this scale their softmax can be as sharp as the teacher's."""
    return pairwise_cos_sim(queries, passages) / 0.05


def main(argv: list[str] | None = None) -> None:
    """Mine hard negatives with the encoder itself, score them with the teacher, train on the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", help="an encoder that was fine-tuned once, so that what it finds is hard")
    parser.add_argument("--teacher", default="cross-encoder/ms-marco-MiniLM-L6-v2")
    parser.add_argument("--output_dir", default="runs/finetune-distillation")
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args(argv)
    model = SentenceTransformer(args.encoder)
    model.model_card_data.generate_widget_examples = False  # it would tokenise the whole dataset

    pairs = load_held_out_pydocs().pairs.shuffle(seed=42)
    pairs = pairs.select(range(min(args.steps * BATCH_SIZE, len(pairs))))  # the teacher is slow, so no more than needed
    rows = mine_hard_negatives(pairs, model, num_negatives=NEGATIVES, output_format="n-tuple", verbose=False)

    # A cross-encoder reads query and passage together. Its raw scores, not their sigmoid, keep the distances.
    query, *passages = rows.column_names
    teacher = CrossEncoder(args.teacher, num_labels=1)
    read = [(row[query], row[passage]) for row in rows for passage in passages]
    scores = teacher.predict(read, activation_fn=nn.Identity(), show_progress_bar=True)
    rows = rows.add_column("label", scores.reshape(len(rows), len(passages)).tolist())

    loss = DistillKLDivLoss(model, similarity_fct=similarity)  # between the two softmaxes over a query's passages
    settings = {"per_device_train_batch_size": BATCH_SIZE, "learning_rate": 2e-5, "warmup_steps": 0.1}
    quiet = {"logging_steps": 10, "save_strategy": "no", "report_to": "none"}
    training_args = SentenceTransformerTrainingArguments(args.output_dir, max_steps=args.steps, **settings, **quiet)
    SentenceTransformerTrainer(model=model, args=training_args, train_dataset=rows, loss=loss).train()
    model.save_pretrained(args.output_dir)
    print(f"Next: retromae-hf evaluate --model_name_or_path {args.output_dir} --dataset pydocs")


if __name__ == "__main__":
    main()
