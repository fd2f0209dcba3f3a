"""`tsdfm-pipeline schema COMMAND`: the JSON Schema of a command's config, for editors that check and complete YAML."""

import json

import click

from tsdfm.schemas.ablate import Sweep
from tsdfm.schemas.base import Frozen
from tsdfm.schemas.demo import DemoConfig
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.import_teacher import ImportConfig
from tsdfm.schemas.publish import PublishConfig
from tsdfm.schemas.sample import SampleConfig
from tsdfm.schemas.train import CompassConfig, PretrainConfig

CONFIGS: dict[str, type[Frozen]] = {
    "ablate": Sweep, "demo": DemoConfig, "distill": DistillConfig, "evaluate": EvaluateConfig, "fit-compass": CompassConfig,
    "generate": GenerateConfig, "import-teacher": ImportConfig, "pretrain": PretrainConfig, "publish": PublishConfig,
    "sample": SampleConfig,
}


@click.command("schema")
@click.argument("command", type=click.Choice(sorted(CONFIGS)))
def schema_command(command: str) -> None:
    """Print the JSON Schema of COMMAND's config: every field, its type, its range, its default and what it means."""
    click.echo(json.dumps(CONFIGS[command].model_json_schema(), indent=2))
