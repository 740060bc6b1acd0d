"""Planted secrets, configs with them, and what shows them."""

from __future__ import annotations

from stars_engine import StarsConfig

TOKEN = "hf_PlantedTokenOfTheHub0123456789"
OTHER = "hf_AnotherToken9876543210"
PASSWORD = "planted-pa55word"
KEY = "sk-proj-PlantedKey0123456789"
PLANTED = (TOKEN, OTHER, PASSWORD, KEY)

KEYWORDS = {
    "proxies": {"https": f"http://user:{PASSWORD}@proxy:8080", "http": "http://proxy:8080"},
    "storage_options": [{"client_secret": PASSWORD}, {"AccessKey": KEY}],
    "headers": {"Authorization": f"Bearer {KEY}", "X-Api-Key": KEY, "Accept": "text/plain"},
    "credentials": {"user": PASSWORD, "pass": [PASSWORD]},
    "note": f"use {KEY}",
    "attn_implementation": "sdpa",
}
MODEL = {"name_or_path": "planted/model", "token": TOKEN, "model_kwargs": KEYWORDS}
REWARD = {
    "kind": "composite",
    "parts": {
        "a": {"reward": {"kind": "classifier", **MODEL}},
        "b": {
            "reward": {
                "kind": "yes_no",
                "preset": "llama-guard",
                "name_or_path": "planted/judge",
                "model_kwargs": {"token": OTHER},
                "device_map": {"lm_head": 0, "secret": PASSWORD},
            },
            "weight": 2.0,
        },
    },
}
LOCAL = {"name_or_path": "stars:embedded-lm", "token": TOKEN}
CONSTANT = {"schedule": {"kind": "constant", "value": 0.0}}


def planted() -> StarsConfig:
    return StarsConfig(model=MODEL, reward=REWARD, align=CONSTANT)


def leaks(shown: object) -> list[str]:
    text = shown if isinstance(shown, str) else repr(shown)
    return [secret for secret in PLANTED if secret in text]
