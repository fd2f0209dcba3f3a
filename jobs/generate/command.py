"""The command `tsdfm-pipeline generate`."""

from tsdfm.jobs.plan.show import show_plan
from tsdfm.jobs.shell.console import say
from tsdfm.jobs.shell.flags import Planner, config_command
from tsdfm.pipeline.evaluation.figures import count
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.plan import Plan, PlanWish
from tsdfm.schemas.reports import GenerateReport


def _plan(config: GenerateConfig, wish: PlanWish) -> Plan:
    from tsdfm.jobs.generate.plan import plan_generate

    return plan_generate(config, wish)


@config_command("generate", GenerateConfig, planner=Planner(_plan, show_plan), common=(
    "--out --trajectories --teacher --compass --arm --steps --candidates --level --tau --seed --workers --address --plan "
    "--price"))
def generate_command(config: GenerateConfig) -> GenerateReport:
    """Roll a teacher out on Ray and freeze its trajectories as a dataset; run it again to resume.

    A trajectory is one text being written, in many small random jumps. A clock rings at a position, and its token is redrawn
    from the teacher. On the shaped arm, K candidate jumps are drawn at every step from time tau on, a compass scores each by
    its energy (lower is more coherent), and one is kept; the blind arm is the teacher alone.

    CONFIG is a YAML file; flags override it.
    """
    from tsdfm.jobs.generate.run import generate

    report = generate(config)
    say(f"{report.out}: {report.rows} trajectories in {count(report.shards, 'shard')} "
        f"({report.made} made, {report.kept} kept), "
        f"{report.bytes:,} bytes, {report.seconds} s")
    return report
