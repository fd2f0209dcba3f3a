"""A plan as people read it, and the options of every command that has one."""

from tsdfm.jobs.shell.console import clock, tell
from tsdfm.schemas.plan import Plan
from tsdfm.schemas.words import count


def show_plan(plan: Plan) -> None:
    """Print a plan on standard output."""
    rates = plan.rates
    width = max(len(name) for name in [*plan.makes, *plan.there, *plan.work, *(stage.what for stage in plan.stages), "rates"])
    tell(f"{plan.command}{'' if plan.out is None else f' into {plan.out}'}: nothing was made; this is what a run would do")
    for title, figures in (("makes", plan.makes), ("of it there already", plan.there), ("work that is left", plan.work)):
        if figures:
            tell(title)
        for name, number in figures.items():
            tell(f"  {name:<{width}}  {number:>17,.0f}")
    tell("time")
    for stage in plan.stages:
        tell(f"  {stage.what:<{width}}  {clock(stage.seconds):>17}")
    tell(f"  {'in all':<{width}}  {clock(plan.seconds):>17}")
    price = "" if plan.money is None or plan.price is None else f", {plan.money:,.2f} at {plan.price:g} an hour each"
    tell(f"cost: {count(plan.devices, 'device')} ({rates.machine.device}), {plan.device_hours:,.3f} device-hours{price}")
    source = "measured now" if plan.rates_from is None else f"from {plan.rates_from}"
    tell(f"rates: {source}, with {count(rates.workers, 'process')} at work at the same time")
    for remark in plan.remarks:
        tell(f"note: {remark}")
