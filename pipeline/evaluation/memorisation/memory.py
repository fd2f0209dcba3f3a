"""Memorisation in an evaluation: the shares of all rows' 8-grams that stand in the corpus, and in trajectories."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from tsdfm.pipeline.evaluation.memorisation.corpus import TrainingText
from tsdfm.pipeline.evaluation.memorisation.grams import Search
from tsdfm.pipeline.evaluation.memorisation.trajectories import Learnt, learnt_by
from tsdfm.pipeline.evaluation.sample_cache import Identity, SampleCache
from tsdfm.pipeline.evaluation.samples import Samples
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder
from tsdfm.pipeline.text.corpus import training_stream
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.evaluate import EvaluateConfig
from tsdfm.schemas.measures import Memorised
from tsdfm.schemas.progress import Progress, unheard


def look_in(config: EvaluateConfig, models: Mapping[str, ModelFolder[Denoiser]]) -> Learnt:
    """The trajectories that the texts of some models, by name, are looked for in. Raises as `learnt_by`."""
    return learnt_by(models, config.trajectories_of or ()) if config.memorisation and config.sampling else Learnt()


@dataclass(frozen=True)
class Memory:
    """The sets of texts of an evaluation, and where they are looked for. `remarks`: what was not looked at, and why."""

    corpus: Search
    trajectories: Search
    texts: dict[str, TrainingText]  # by vocabulary; empty where the corpus isn't asked
    learnt: Learnt
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: EvaluateConfig, cache: SampleCache, models: Mapping[str, ModelFolder[Denoiser]]) -> "Memory":
        """Of the models, by name, of an evaluation. Raises as `learnt_by`."""
        words = {opened.vocabulary.fingerprint: opened.vocabulary for opened in models.values()}
        asked = config.memorisation and (config.real or config.naive)
        texts = {name: TrainingText(name, config.corpus, partial(training_stream, config.corpus, own))
                 for name, own in words.items() if asked}
        learnt = look_in(config, models)
        return cls(Search(cache), Search(cache), texts, learnt, list(learnt.remarks))

    def add(self, identity: Identity, samples: Samples, model: str | None = None) -> None:
        """Take up a set of texts, of a model, by name, or of none."""
        if samples.vocabulary in self.texts:
            self.corpus.add(identity, samples, self.texts[samples.vocabulary])
        final = self.learnt.of(model, samples.vocabulary)
        if final is not None:
            self.trajectories.add(identity, samples, final)

    def count(self, progress: Progress = unheard) -> dict[str, Memorised]:
        """The figures, by the key of the texts' identity; of trajectories that can't be read none, and a remark.

        Raises InputError or WorkError where the corpus can't be read.
        """
        for place in self.corpus.places:
            self.corpus.look(place, progress)
        for place in self.trajectories.places:
            try:
                self.trajectories.look(place, progress)
            except (InputError, WorkError) as error:
                self.remarks.append(f"texts are not looked for in trajectories: {error}")
        found, learnt = self.corpus.shares(), self.trajectories.shares()
        return {key: Memorised(
            memorised=found[key].mean if key in found else None,
            memorised_standard_error=found[key].error if key in found else None,
            in_trajectories=learnt[key].mean if key in learnt else None,
            in_trajectories_standard_error=learnt[key].error if key in learnt else None,
        ) for key in found.keys() | learnt.keys()}
