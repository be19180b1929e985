"""TRL's ``DPOTrainer`` for pairs that are token ids already, with the reference's log-probabilities beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trl import DPOConfig, DPOTrainer

from lorary.training.fitting.own_device import one_device


class PreferenceTrainer(DPOTrainer):
    """``DPOTrainer`` without what it does to rows and checkpoints on its own."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: checkpoints are removed after the run."""


def preference_trainer(
    model: Any, tokenizer: Any, settings: Mapping[str, Any], rows: Mapping[str, Any], *, beta: float, loss: str
) -> PreferenceTrainer:
    """The trainer, for rows of ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` and the reference's
    ``ref_chosen_logps`` and ``ref_rejected_logps``, which fit the model."""
    config = one_device(DPOConfig(**settings, max_length=None, beta=beta, loss_type=[loss]), model)
    own = model.peft_config["default"]
    # The trainer makes a second adapter to refer to, which the rows' log-probabilities stand for; and some ways to
    # begin one (PiSSA and its kin) would rewrite the base. Of AdaLoRA's PEFT has one at most that is trained.
    if hasattr(own, "init_lora_weights"):
        model.peft_config["default"] = replace(own, init_lora_weights=True, inference_mode=own.peft_type == "ADALORA")
    try:
        trainer = PreferenceTrainer(model=model, args=config, processing_class=tokenizer, **rows)
    finally:
        model.peft_config["default"] = own
    model.delete_adapter("ref")
    model.set_adapter("default")
    trainer.precompute_ref_logps = True
    return trainer
