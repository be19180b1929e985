"""TRL's ``SFTTrainer`` for rows that are token ids already, padded or packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer, pack_dataset

from lorary.training.fitting.own_device import one_device


class GenerationTrainer(SFTTrainer):
    """Validation rows are padded, not packed: their loss is weighed by the rows of a batch, and should stay so."""

    averages_steps = True
    data_collator: Callable[..., Any]
    validation_collator: Callable[..., Any]

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """As ``SFTTrainer``'s, with the padding collator."""
        packing, self.data_collator = self.data_collator, self.validation_collator
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = packing

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: checkpoints are removed after the run, and a card for each of them would be written for nobody."""


def generation_trainer(
    model: Any, tokenizer: Any, settings: Mapping[str, Any], rows: Mapping[str, Any], *,
    collator: Callable[..., Any], validation_collator: Callable[..., Any],
) -> GenerationTrainer:  # fmt: skip
    """The trainer, for rows of ``input_ids`` and ``labels`` that fit the model."""
    config = SFTConfig(**settings, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    # Of a mixture of experts TRL asks for the router's loss in each step, and has the base's own config ask for it too:
    # then what the base answers later would have it beside the logits, and in its loss.
    own = model.config.get_text_config()
    if hasattr(own, "num_local_experts") and not hasattr(own, "num_experts"):
        own.num_experts = own.num_local_experts  # the name that TRL (1.16) knows, and Granite's config doesn't
    asked = getattr(own, "output_router_logits", None)
    trainer = GenerationTrainer(
        model=model, args=one_device(config, model), data_collator=collator, processing_class=tokenizer, **rows
    )
    if asked is not None:
        own.output_router_logits = asked
    trainer.validation_collator = validation_collator
    return trainer


def pack_rows(rows: Any, length: int) -> Any:
    """A dataset of sequences of up to ``length`` tokens, each of several whole rows (best-fit decreasing, TRL's)."""
    return pack_dataset(rows.select_columns(["input_ids", "labels"]), length, "bfd")
