"""Continuous batching: many callers, each with its own adapter, on one backbone.

Requests join and leave between the steps of one loop. Each step is one packed row that holds the tokens of all running
requests, routed per token. The paged cache, the scheduling of steps and the loop itself are transformers'
(``transformers.generation.continuous_batching``, after Orca, Yu et al. 2022, and vLLM, Kwon et al. 2023); what is here
is the adapters: who gets a slot and when, which token goes through which one, and each request's own sampling.
"""

from lorary.adapters.engine.engine import Engine
from lorary.adapters.engine.request import Request
from lorary.adapters.engine.values import Completion, EngineSettings, EngineStats, Likelihood, Usage

__all__ = ["Completion", "Engine", "EngineSettings", "EngineStats", "Likelihood", "Request", "Usage"]
