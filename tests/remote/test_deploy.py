"""The files in deploy/: their configs load, and names and ports agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from stars_engine import StarsConfig

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_compose_serves_what_the_config_asks_for() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    config = StarsConfig.from_file(DEPLOY / "stars.yaml")
    for part in (config.model, config.reward):
        for url in part.base_url:
            service = compose["services"][urlsplit(url).hostname]
            assert urlsplit(url).port == 8000
            assert f"--served-model-name={part.served_model}" in service["command"]
    assert "--runner=pooling" in compose["services"]["rm"]["command"]
    waited = compose["services"]["app"]["depends_on"]
    assert set(waited) == {"lm-0", "lm-1", "rm"}
    for service in waited:
        assert compose["services"][service]["healthcheck"]["test"]


def test_manifests_serve_what_the_config_asks_for() -> None:
    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    by_name: dict[tuple[str, str], Any] = {
        (item["kind"], item["metadata"]["name"]): item for item in objects
    }
    text = by_name["ConfigMap", "stars"]["data"]["stars.yaml"]
    config = StarsConfig.model_validate(yaml.safe_load(text))
    hosts = {urlsplit(url).hostname for url in config.model.base_url}
    servers = by_name["StatefulSet", "lm"]["spec"]
    assert hosts == {f"lm-{number}.lm" for number in range(servers["replicas"])}
    for kind, name in (("StatefulSet", "lm"), ("Deployment", "rm")):
        spec = by_name[kind, name]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels
        assert by_name["Service", name]["spec"]["selector"] == labels
        [container] = spec["template"]["spec"]["containers"]
        assert f"--served-model-name={name}" in container["args"]
        assert container["ports"][0]["containerPort"] == 8000
