"""MUSE's models for transformers and what builds on it: importing this makes the Auto classes know them.

    import muse.hub

    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER)
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM

from muse.models.hub_model import MuseCache, MuseConfig, MuseForCausalLM

__all__ = ["MuseCache", "MuseConfig", "MuseForCausalLM"]

AutoConfig.register(MuseConfig.model_type, MuseConfig, exist_ok=True)
AutoModelForCausalLM.register(MuseConfig, MuseForCausalLM, exist_ok=True)
