"""What a user may say of the model's card; light to import, for the help of the commands."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CardArguments:
    """What a model card cannot know by itself."""

    license: str | None = field(
        default=None, metadata={"help": "Licence of the model for its card, as the Hub names it (mit, apache-2.0)."}
    )
    language: list[str] | None = field(
        default=None, metadata={"help": "Languages of the texts for the model card, by their codes (en, de)."}
    )
