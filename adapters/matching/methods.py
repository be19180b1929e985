"""Which PEFT method loads how: the one table of PEFT's methods that the loader knows.

LoRA goes into the slots, unless a field of its config asks for what they can't hold
(:mod:`lorary.adapters.matching.support`). Every other method runs through PEFT itself, in a model of the adapter's own
over the backbone's weights, or is refused by name. ``docs/compatibility.md`` shows the same table; a test holds both
against PEFT's present methods.
"""

from __future__ import annotations

from collections.abc import Mapping

THROUGH_PEFT: Mapping[str, str] = {
    "ADALORA": "LoRA whose ranks were chosen in training (Zhang et al. 2023)",
    "ADAMSS": "updates in subspaces of the weights",
    "ADAPTION_PROMPT": "LLaMA-Adapter: gated prompts in the upper layers' attention (Zhang et al. 2023)",
    "BEFT": "biases added to projections",
    "BOFT": "butterfly factors of an orthogonal matrix (Liu et al. 2024)",
    "C3A": "circular convolutions (Chen et al. 2025)",
    "CARTRIDGE": "a trained cache of keys and values (Eyuboglu et al. 2025)",
    "CPT": "context-aware prompt tuning (Blau et al. 2024)",
    "DEFT": "decomposed updates",
    "DELORA": "normalised low-rank updates (Bini et al. 2025)",
    "FOURIERFT": "coefficients of a Fourier transform (Gao et al. 2024)",
    "FROD": "updates over a shared rotation of the weights",
    "GLORA": "generalised LoRA (Chavan et al. 2023)",
    "GRALORA": "block-wise LoRA (Jung et al. 2025)",
    "HIRA": "updates multiplied with the weights (Huang et al. 2025)",
    "HRA": "Householder reflections (Yuan et al. 2024)",
    "IA3": "rescaled activations (Liu et al. 2022)",
    "LILY": "low-rank updates that layers share",
    "LN_TUNING": "layer norms trained whole (Zhao et al. 2023)",
    "LOHA": "Hadamard products (Hyeon-Woo et al. 2022)",
    "LOKR": "Kronecker products (Yeh et al. 2024)",
    "MISS": "shared shards of the weights (Kang et al. 2024), Bone before",
    "OFT": "orthogonal factors (Qiu et al. 2023)",
    "OSF": "orthogonal subspaces of the weights; holds a decomposition of each weight it reaches",
    "P_TUNING": "virtual tokens from an encoder (Liu et al. 2021)",
    "PEANUT": "updates from small networks over the weights",
    "PREFIX_TUNING": "keys and values before each layer's own (Li and Liang 2021)",
    "PROMPT_TUNING": "virtual tokens before the text (Lester et al. 2021)",
    "PSOFT": "orthogonal updates in a principal subspace",
    "PVERA": "VeRA with a distribution over its scales",
    "RANDLORA": "full-rank updates from random bases (Albert et al. 2025)",
    "ROAD": "rotations of the activations (Liao and Monz 2024)",
    "SHIRA": "sparse updates (Bhardwaj et al. 2024)",
    "SUPERTUNING": "sparse and low-rank updates",
    "TINYLORA": "a handful of numbers over the weights' singular vectors",
    "TRAINABLE_TOKENS": "rows of the embedding trained anew",
    "UNILORA": "one trained vector for all layers",
    "VBLORA": "LoRA from a shared bank of vectors (Li et al. 2024)",
    "VERA": "scales over shared random matrices (Kopiczko et al. 2024)",
    "WAVEFT": "coefficients of a wavelet transform (Bilican et al. 2025)",
}
"""Methods that load through PEFT, and what they are."""

REFUSED: Mapping[str, str] = {
    "MULTITASK_PROMPT_TUNING": "it needs a task id with every call",
    "POLY": "it needs a task id with every call",
    "XLORA": "it routes between other adapters, which it loads from paths of its own",
    "SHADOW": "its model keeps a state from layer to layer, and may be fetched by name",
}
"""Methods that don't load, and why."""

ROWS_ALONE = frozenset({"LILY"})
"""Methods that average over a whole batch, so that a row would depend on its batch mates; they run row by row."""

CACHES = frozenset({"PREFIX_TUNING", "CARTRIDGE"})
"""Methods whose virtual tokens are keys and values of each layer, which stand in the cache before a text's own."""
