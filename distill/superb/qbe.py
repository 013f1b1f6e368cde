"""QbE of SUPERB, for which s3prl 0.4.18 has the search, but no recipe."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from distill.files import write_text
from distill.superb.upstream import Upstream, load_upstream

TRUTH = {"dev": "groundtruth_quesst14_dev", "test": "groundtruth_quesst14_eval"}
SEARCH = {"dist_method": "cosine_exp", "minmax_norm": True, "step_pattern": "asymmetric", "subsequence": True}
"""The dynamic time warping of SUPERB."""


class QueryByExample:
    """Queries are searched in documents by s3prl's DTW of each hidden state, and scored by the corpus' own program.

    The state with the highest MTWV of the development queries is measured on the test queries (Yang et al. 2021, §3.1).
    It is called as a recipe of s3prl.
    """

    def default_config(self) -> dict[str, Any]:
        return {"prepare_data": {}, "dtwrc": dict(SEARCH), "feature_normalization": True, "max_workers": None}

    def run(
        self, target_dir: str, prepare_data: Mapping[str, str], build_upstream: Mapping[str, Any], device: str,
        num_workers: int, **search: Any,
    ) -> None:  # fmt: skip
        """Write result.yaml: mtwv, and the state's number."""
        data = {**prepare_data, "num_workers": num_workers, "batch_size": 1}
        settings = {**search, "silence_frame": None, "datarc": data}
        upstream = load_upstream(build_upstream["path_or_url"], **build_upstream["extra_conf"]).to(device)
        states, place = range(1 if upstream.last_state else len(upstream.model.encoder.blocks) + 1), Path(target_dir)
        found = {state: mtwv(upstream, state, "dev", settings, place, device) for state in states}
        best = max(states, key=lambda state: found[state])
        content = {"mtwv": mtwv(upstream, best, "test", settings, place, device), "state": best}
        write_text(place / "result.yaml", yaml.safe_dump(content))


def mtwv(upstream: Upstream, state: int, split: str, settings: Mapping[str, Any], place: Path, device: str) -> float:
    """Maximum term weighted value of one hidden state; raises ValueError where the corpus' program gives none."""
    from s3prl.downstream.quesst14_dtw.expert import DownstreamExpert

    folder, scoring = place / f"{split}-{state}", Path(settings["datarc"]["dataset_root"]) / "scoring"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "score.out"
    if not output.is_file():
        expert = DownstreamExpert(0, settings, str(folder))
        records: dict[str, list] = defaultdict(list)
        for waves, names in expert.get_dataloader(split):
            with torch.no_grad():
                states = upstream([torch.as_tensor(wave).to(device) for wave in waves])["hidden_states"][state]
            expert(split, states, names, records)
        expert.log_records(split, records)
        subprocess.run(["./score-TWV-Cnxe.sh", str(folder), TRUTH[split], "-10"], cwd=scoring, check=True)
    value = re.search(r"maxTWV:\s*([-+.\deE]+)", output.read_text() if output.is_file() else "")
    if value is None:
        raise ValueError(
            f"{scoring}/score-TWV-Cnxe.sh has written no maxTWV into {output}; it is a Java program: is Java there?"
        )
    return float(value[1])
