"""The card of a published dataset: what a stranger needs to use it, and what `datasets` and the Hub read of it."""

from tsdfm.pipeline.dataset.card import (
    TAGS,
    arm_config,
    arms_config,
    column_table,
    default_config,
    reading_notes,
    sizes,
    windows_snippet,
)
from tsdfm.pipeline.dataset.manifest import digest
from tsdfm.pipeline.evaluation.figures import NONE, count, maybe, plus_minus
from tsdfm.pipeline.publishing.citations import BIBTEX
from tsdfm.schemas.manifest import DatasetManifest, Identity
from tsdfm.schemas.publish import PublishConfig
from tsdfm.schemas.summary import ArmSummary, DatasetSummary
from tsdfm.schemas.terms import Arm

PLOT_FILE = "energies.png"
_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]


def published_card(manifest: DatasetManifest, summary: DatasetSummary, splits: dict[Arm, str], config: PublishConfig) -> str:
    """The card's text; a function of its arguments alone. `splits`: name of an arm -> glob of its files, {} for none."""
    identity = manifest.identity
    parts = [
        _head(manifest, splits, config),
        f"# {config.repo.partition('/')[2]}: trajectories of a discrete flow matching teacher\n",
        _what(manifest), _loading(config.repo, identity, splits), _columns(identity), _how(manifest), _energies(summary),
        f"## Papers\n\n{BIBTEX}\n",
    ]
    return "\n".join(parts)


def _head(manifest: DatasetManifest, splits: dict[Arm, str], config: PublishConfig) -> str:
    """The YAML head."""
    from huggingface_hub import DatasetCardData

    configs: list[dict[str, object]] = [default_config(manifest.identity)]
    if splits:
        configs += [arms_config(splits), *(arm_config(arm, pattern) for arm, pattern in splits.items())]
    size = next((name for limit, name in _SIZES if manifest.totals.rows < limit), "10M<n<100M")
    data = DatasetCardData(
        license=config.license, task_categories=["text-generation"], size_categories=[size], tags=TAGS, configs=configs,
        trajectories=sizes(manifest.identity))
    return f"---\n{data.to_yaml()}\n---\n"


def _what(manifest: DatasetManifest) -> str:
    identity, totals = manifest.identity, manifest.totals
    start = "all [MASK]" if identity.teacher.source == "mask" else "independent uniform tokens"
    return f"""{count(totals.rows, 'trajectory')} of {count(identity.rollout.length or 0, 'token')}, made by tsdfm-pipeline
({count(totals.tokens, 'token')}, {count(totals.events, 'jump')}, {count(totals.bytes, 'byte')} of shards).

A discrete flow matching model writes a text in many small random jumps. Each row is one such text being written: where it
starts ({start}), every jump (step, position, token) in order, and, on the shaped arm, the K candidates
that were drawn at each step, with the energies that a compass gave them. Replaying the jumps on the source gives the state at
each of the {count(identity.rollout.steps, 'step')}, without loss: few-step students are distilled from these
rows, with no teacher.
"""


def _loading(repo: str, identity: Identity, splits: dict[Arm, str]) -> str:
    arms = "".join(
        f'\n{arm} = load_dataset("{repo}", "{arm}", split="train")' for arm in splits)
    return f"""## Use it

```python
from datasets import load_dataset

rows = load_dataset("{repo}", split="train")                           # every row; streaming=True downloads as it goes{arms}
```

{windows_snippet(identity)}

```sh
tsdfm-pipeline distill --data hf://datasets/{repo}@REVISION --out STUDENT
```

REVISION is a commit of this repository; every shard's checksum (`manifest.json`) is checked when it is read.
"""


def _columns(identity: Identity) -> str:
    return f"""## Columns

{column_table(identity)}

## Sizes, and how to read the lists

{reading_notes(identity)}
`manifest.json` holds the whole configuration.
"""


def _how(manifest: DatasetManifest) -> str:
    identity = manifest.identity
    teacher, shaping, rollout, prompts = identity.teacher, identity.shaping, identity.rollout, identity.prompts
    compass = f"`{identity.compass.kind}`, fingerprint `{identity.compass.fingerprint[:16]}`" if identity.compass else "none"
    blocks = identity.blocks
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    rows = {
        "teacher": f"{'embedded' if manifest.teacher == 'embedded' else 'fingerprint'} `{teacher.fingerprint[:16]}`, "
                   f"{teacher.source} source, {teacher.vocab_size} ids, kappa = t^{teacher.kappa_exponent:g}",
        "compass": compass,
        "shaping": f"{shaping.candidates} candidates, `{shaping.select}`, from t >= {shaping.tau:g}, "
                   f"one step in {shaping.shape_every}",
        "rollout": f"{count(rollout.steps, 'step')}, `{rollout.solver}`, temperature {rollout.temperature:g}, "
                   f"seed {rollout.seed}",
        "arms": ", ".join(identity.arms) + (" (paired: same rings, same first candidate)" if identity.arm == "both" else ""),
        **({} if prompts is None else {
            "prompts": f"each given to {count(prompts.per_prompt, 'trajectory')}; tokens `{prompts.sha256[:16]}` (sha256)"}),
        **({} if blocks is None else {
            "blocks": f"{blocks.per_text} trajectories are one text; each goes on from the last {blocks.overlap} tokens of the "
                      "one before, in its own arm" + ("" if teacher.end_id is None else ", or begins another if that ended")}),
        "identity": f"`{digest(identity)[:16]}` (sha256 of the configuration)",
        "made with": versions,
    }
    return "## How it was made\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {text} |" for name, text in rows.items()) + "\n"


def _energies(summary: DatasetSummary) -> str:
    head = "| arm | trajectories | final energy, nats/token | unigram entropy, bits | distinct-2 |\n|---|---|---|---|---|\n"
    text = "## Energies\n\n" + head + "\n".join(_arm(arm) for arm in summary.arms) + "\n"
    if summary.pairs is not None and summary.pairs.standard_error is not None:
        pairs = summary.pairs
        text += (f"\nPaired, shaped minus blind: {pairs.mean_difference:+.4f} ± {pairs.standard_error:.4f} (standard error) "
                 f"nats/token over {count(pairs.pairs, 'pair')}; shaped is lower in {pairs.share_lower:.1%}.\n")
    given = summary.arms[0].fixed
    if given is not None:
        text += f"\nThese figures are of whole texts, with what was given of them: {given.mean:.1f} tokens on average.\n"
    if any(arm.final_energy for arm in summary.arms):
        text += f"\n![Final energies by arm]({PLOT_FILE})\n"
    return text


def _arm(arm: ArmSummary) -> str:
    energy = arm.final_energy
    cells = [arm.arm, str(arm.events.count), NONE if energy is None else plus_minus(energy.mean, energy.deviation, 4),
             plus_minus(arm.entropy.mean, arm.entropy.deviation, 3), maybe(arm.distinct_2, ".4f")]
    return f"| {' | '.join(cells)} |"
