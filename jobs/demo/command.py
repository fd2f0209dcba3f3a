"""The command `tsdfm-pipeline demo`."""

from tsdfm.jobs.shell.flags import config_command, flags_of
from tsdfm.schemas.demo import DemoConfig
from tsdfm.schemas.reports import DemoReport


@config_command("demo", DemoConfig, common="--out --trajectories --updates -n --number", flags=flags_of(
    DemoConfig, {"samples": "-n --number"}))
def demo_command(config: DemoConfig) -> DemoReport:
    """The whole story on what ships with the package: what can 8 jumps do against 1,024? One page answers.

    Trajectories of the embedded teacher in 8 jumps, shaped and blind, a student of each, and both beside the teacher in few and
    in many jumps, at equal entropy. About ten minutes on two idle cores. A rerun keeps what is finished. CONFIG is a YAML file;
    flags override it.
    """
    from tsdfm.jobs.demo.run import demo

    return demo(config)
