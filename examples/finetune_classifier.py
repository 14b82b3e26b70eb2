"""Fine-tunes an exported encoder as a classifier with the plain `Trainer`: which package a docstring comes from.

python examples/finetune_classifier.py runs/from-scratch/retromae-encoder
"""

from __future__ import annotations

import argparse
from collections import Counter

from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from retromae_hf.data.pydocs import load_pydocs

PACKAGES = 10


def main(argv: list[str] | None = None) -> None:
    """Train on nine tenths of the docstrings of the largest packages and report the accuracy on the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", help="folder that retromae-hf export wrote, or a model on the Hub")
    parser.add_argument("--output_dir", default="runs/finetune-classifier")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args(argv)

    documents = load_pydocs()
    packages = [name.partition(".")[0] for name in documents["name"]]
    largest = [package for package, _ in Counter(packages).most_common(PACKAGES)]
    documents = documents.add_column("label", [largest.index(one) if one in largest else -1 for one in packages])
    documents = documents.filter(lambda label: label >= 0, input_columns="label")

    tokenizer = AutoTokenizer.from_pretrained(args.encoder)
    length = min(tokenizer.model_max_length, 128)
    rows = documents.map(lambda row: tokenizer(row["text"], truncation=True, max_length=length), batched=True)
    parts = rows.train_test_split(test_size=0.1, seed=42)

    # The export is an ordinary checkpoint: the layers are the encoder's, the layer that classifies is new.
    model = AutoModelForSequenceClassification.from_pretrained(args.encoder, num_labels=len(largest))
    model.config.id2label = dict(enumerate(largest))
    model.config.label2id = {package: label for label, package in enumerate(largest)}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            args.output_dir, max_steps=args.steps, learning_rate=5e-5, per_device_train_batch_size=32, report_to="none"
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        processing_class=tokenizer,  # pads every batch to its longest row
        compute_metrics=lambda guessed: {"accuracy": (guessed.predictions.argmax(1) == guessed.label_ids).mean()},
    )
    trainer.train()
    trainer.save_model()
    commonest = max(Counter(parts["test"]["label"][:]).values()) / len(parts["test"])
    accuracy = trainer.evaluate()["eval_accuracy"]
    print(f"Accuracy {accuracy:.3f} over {len(largest)} packages; always guessing the largest gives {commonest:.3f}.")


if __name__ == "__main__":
    main()
