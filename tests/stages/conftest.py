from __future__ import annotations

from stage_fixtures import caught, chain, earlier, lora_chain

__all__ = ["caught", "chain", "earlier", "lora_chain"]
