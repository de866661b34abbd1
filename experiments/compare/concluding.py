"""What a study's finished runs and measured times come to: findings, and the report of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from experiments.compare import figures, report
from experiments.compare.arms import Study
from experiments.compare.config import CompareConfig
from experiments.compare.findings import Findings, arm_finding, cost_of, findings, relative_times
from experiments.compare.runs import Run
from experiments.compare.sensitivity import sensitivities
from experiments.compare.timing import Timing
from experiments.run.rate_search import Search
from polycom_jax.models import ModelConfig
from polycom_jax.storage import Place


@dataclass(frozen=True)
class Finished:
    """All that a study's report is made of.

    Attributes:
        config: of the study.
        study: the arms that have results, and what is compared.
        base: the common model.
        searches: arm -> its learning rate.
        searched: arm -> the runs of its search.
        runs: arm -> the results, one a seed, the same seeds in the same order for all.
        times: of a step.
    """

    config: CompareConfig
    study: Study
    base: ModelConfig
    searches: Mapping[str, Search]
    searched: Mapping[str, Sequence[Run]]
    runs: Mapping[str, Sequence[Run]]
    times: Timing

    @property
    def _batch_tokens(self) -> int:
        return self.config.data.batch_size * self.base.context_length

    @cached_property
    def findings(self) -> Findings:
        """A row for each arm, a comparison for each pair."""
        study, times = self.study, self.times
        relative: dict[str, float] = {}
        for group in study.groups():
            relative |= relative_times({n: times.seconds[study.arm(n).folder] for n in group})
        arms = []
        for arm in study.arms:
            model = arm.model(self.base)
            cost = cost_of(
                model,
                batch_size=self.config.data.batch_size,
                seconds=times.seconds[arm.folder],
                relative=relative[arm.name],
                memory=times.memory[arm.folder],
            )
            own = (self.searches[arm.name], cost, self.runs[arm.name])
            arms.append(arm_finding(arm.name, model, *own, batch_tokens=self._batch_tokens))
        sensitive = sensitivities(self.searched, self.base.vocab_size)
        return findings(self.config.study, study, arms, self.runs, sensitive)

    @property
    def commits(self) -> str:
        """Of the code that trained the results."""
        runs = [run for own in self.runs.values() for run in own]
        return ", ".join(sorted({run.commit or "not known" for run in runs}))

    def write(self, root: Place, about: Mapping[str, Any]) -> tuple[Place, Place]:
        """Writes report.md, results.json and the figures; the paths of the first two.

        Args:
            root: the folder.
            about: where the numbers come from.
        """
        drawn = figures.draw_all(root / "plots", self.findings, self.runs, self._batch_tokens)
        return report.write(root, self.study.question, self.findings, about, drawn)
