"""An ablation: short pretraining runs that differ in one thing each, over seeds, scored in the same way; one table.

python -m benchmarks.ablation --config configs/ablate/fmri.yaml corpus_dir=DIR out_dir=DIR [at_once=2] [seeds=[0,1,2]]

Run it again to make what is missing: a run that is finished is kept, one that was stopped continues. A run that fails
costs itself alone; the status is 1 then. out_dir gets ablation.json and ablation.png. only=VARIANT/SEED makes one run,
for a cluster's job array.

python -m benchmarks.ablation --table FILE     prints the Markdown tables of an ablation.json
"""

import json
import sys
from pathlib import Path

from mcsp.commands.main import run_alone
from mcsp.commands.settings import takes

from .settings import AblateConfig

PACKAGES = ("torch", "numpy", "deepspeed", "scikit-learn")


def main() -> int:
    """Make the runs, then the table of all that have a result."""
    if sys.argv[1:2] == ["--table"]:
        return show(sys.argv[2:])
    return run_alone(ablate, "python -m benchmarks.ablation")


@takes(AblateConfig)
def ablate(config: AblateConfig) -> int:
    """Short pretraining runs that differ in one thing each, over seeds, scored in the same way; one table.

    python -m benchmarks.ablation --config configs/ablate/fmri.yaml corpus_dir=DIR out_dir=DIR [at_once=2]
    """
    if config.only is not None:
        one(config, config.only)
        return 0
    from .runs import run_all

    failed = run_all(config, [sys.executable, "-m", "benchmarks.ablation", *sys.argv[1:]])
    tabulate(config, failed)
    return 1 if failed else 0


def show(arguments: list[str]) -> int:
    """Print the tables of a result file."""
    from .table import markdown

    try:
        (path,) = arguments
        content = json.loads(Path(path).read_text())
        print(markdown(content["table"], content["config"]["base"]))
    except (ValueError, KeyError, OSError) as error:
        print(f"error: --table: expected one ablation.json ({' '.join(str(error).split())})", file=sys.stderr)
        return 2
    return 0


def one(config: AblateConfig, run: str) -> None:
    """Train and score one run."""
    from mcsp.provenance import made_by

    from .runs import initial, remembered, train, write_result
    from .scores import score_model

    origin = made_by(PACKAGES)
    variant, seed = run.split("/")
    pretraining = config.pretraining(variant, int(seed))
    how = (config, config.evaluation(pretraining), pretraining.hemodynamic_delay_seconds)
    trained = score_model(train(pretraining), *how)
    before = remembered(config, pretraining, lambda: score_model(initial(pretraining), *how))
    write_result(config, run, {"trained": trained, "untrained": before}, origin)


def tabulate(config: AblateConfig, failed: list[str]) -> None:
    """Print the table; write it with all results beside it, and as a picture."""
    from .runs import read_result, result_file
    from .table import draw, markdown, summarise

    results = [found for run in config.runs() if (found := read_result(config, run)) is not None]
    if not results:
        raise ValueError(f"{config.out_dir}: no run has a result; see log.txt in the folders of the runs")
    rows = summarise(results, list(config.variants), config.base)
    print(markdown(rows, config.base))
    content = {**result_file(config, results), "failed": failed, "table": rows}
    (config.out_dir / "ablation.json").write_text(json.dumps(content, indent=1) + "\n")
    scores = results[0]["scores"]["trained"]
    chance = {key[len("chance_") :]: value for key, value in scores.items() if key.startswith("chance_") and value}
    figure = draw(rows, {**{key: 0.5 for key in scores if key.startswith("auroc")}, **chance})
    figure.savefig(config.out_dir / "ablation.png", dpi=120)
    print(f"results: {config.out_dir / 'ablation.json'}\nfigure:  {config.out_dir / 'ablation.png'}")


if __name__ == "__main__":
    sys.exit(main())
