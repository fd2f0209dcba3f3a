"""`tsdfm-pipeline demo`: the main job, end to end, on what ships with the package."""

from tsdfm.jobs.console import people, ticker
from tsdfm.jobs.generate import generate
from tsdfm.jobs.inspect import show_summary, show_trajectory, write_page
from tsdfm.pipeline.inspection import summarise
from tsdfm.pipeline.storage import Store
from tsdfm.pipeline.verify import verify
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.generate import GenerateConfig


def demo(out: str, trajectories: int) -> dict[str, object]:
    """Generate paired trajectories, verify them, show the figures and one trajectory, and write a page that plays some."""
    config = GenerateConfig(out=out, trajectories=trajectories, arm="both", shard_size=max(1, trajectories // 6))
    people.rule("generate")
    report = generate(config)
    store = Store(out)
    people.rule("verify")
    with ticker("shards", int(str(report["shards"]))) as show:
        manifest, faults = verify(store, lambda done, total: show.update(done))
    if faults:
        raise WorkError(f"{out}: {len(faults)} faults, the first: {faults[0]}")
    people.print(f"sound: {manifest.totals.rows} trajectories", markup=False)
    people.rule("inspect")
    show_summary(summarise(store, lambda done, total: None))
    show_trajectory(store, 0, "shaped")
    page = f"{out.rstrip('/')}.html"
    write_page(store, page, None)
    people.print(f"\n{page} plays trajectories step by step; 'tsdfm-pipeline inspect {out}' shows the figures again",
                 markup=False)
    return {**report, "page": page}
